"""The console in a real Chromium: what an operator sees, does, and cannot be tricked into."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.support.rabbitmq import free_port
from tests.support.server import KEY, Server, to_email

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(CHROMIUM is None and not os.environ.get("CI"), reason="it needs chromium on the PATH"),
]
WITHIN_MS = 20_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("console") / "data") as running:
        yield running


@pytest.fixture
def page(server: Server) -> Iterator[Page]:
    """The console before anybody has given a key; it must have had nothing to complain about at the end."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(color_scheme="dark" if os.environ.get("BELLBUOY_TEST_DARK") else "light")
        page.set_default_timeout(WITHIN_MS)
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if "Content Security" in said.text else None)
        page.goto(f"{server.url}/console")
        yield page
        assert complaints == []
        browser.close()


def enter(page: Page, key: str = KEY) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Connect").click()


def status(page: Page, text: str) -> None:
    expect(page.locator("#status")).to_have_text(text, timeout=WITHIN_MS)


def test_what_is_wrong_shows_as_it_happens_and_can_be_acted_on(page: Page, server: Server, tmp_path: Path) -> None:
    enter(page)
    status(page, "healthy")
    smtp = page.locator("#dependencies tr", has_text="smtp")
    smtp.get_by_role("button", name="Isolate").click()
    expect(smtp).to_contain_text("isolated", timeout=WITHIN_MS)
    status(page, "degraded")
    expect(page.locator("#events")).to_contain_text("circuit_breaker_isolated", timeout=WITHIN_MS)
    held = server.send(to_email(1))
    page.get_by_role("textbox", name="Id").fill(held)
    page.get_by_role("button", name="Explain").last.click()
    expect(page.locator("#story")).to_contain_text("accepted", timeout=WITHIN_MS)
    page.screenshot(path=tmp_path / "console.png", full_page=True)
    smtp.get_by_role("button", name="Close").click()
    server.wait_status(held, "delivered")
    status(page, "healthy")
    expect(page.locator("#books")).to_contain_text("difference")


def test_the_key_stays_in_the_tab_until_it_is_forgotten(page: Page) -> None:
    enter(page)
    status(page, "healthy")
    page.reload()
    status(page, "healthy")
    page.get_by_role("button", name="Forget the key").click()
    page.reload()
    status(page, "not connected")
    assert page.evaluate("sessionStorage.length + localStorage.length + document.cookie.length") == 0


def test_a_key_that_is_not_known_is_told_so(page: Page) -> None:
    enter(page, "no-such-key-at-all-000000")
    expect(page.locator("#refused")).to_contain_text("not known", timeout=WITHIN_MS)
    expect(page.locator("#shown")).to_be_hidden()


def test_a_flag_is_switched_and_what_a_sender_wrote_is_never_markup(page: Page, server: Server) -> None:
    server.call("PUT", "/v1/flags/email_fallback", {"enabled": False})
    enter(page)
    flag = page.locator("#flags tr", has_text="email_fallback")
    flag.get_by_role("button", name="Switch on").click()
    expect(flag.get_by_role("button", name="Switch off")).to_be_visible(timeout=WITHIN_MS)
    assert server.get("/v1/flags/email_fallback")["enabled"] is True
    page.get_by_role("textbox", name="Id").fill("<img src=x onerror=document.title='taken'>")
    page.get_by_role("button", name="Explain").last.click()
    expect(page.locator("#story li.bad")).to_be_visible(timeout=WITHIN_MS)
    assert page.title() == "Bellbuoy"
    assert page.locator("#story img").count() == 0


def test_it_goes_on_when_the_service_is_back(page: Page, tmp_path: Path) -> None:
    # On the same port again, as the browser expects.
    with Server(tmp_path / "data", arguments=("serve", "--sandbox", "--port", str(free_port()))) as server:
        page.goto(f"{server.url}/console")
        enter(page)
        status(page, "healthy")
        server.stop()
        status(page, "not connected")
        server.start()
        status(page, "healthy")
