"""SmtpProvider against a mail server on loopback that fails where it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from bellbuoy.adapters.smtp import SmtpProvider
from bellbuoy.adapters.smtp.session import read_url
from bellbuoy.clock import ManualClock
from bellbuoy.errors import (
    ConfigurationError,
    CredentialRejected,
    OutcomeUnknown,
    Permanent,
    ProviderError,
    RecipientGone,
    Transient,
)
from tests.unit.adapters.smtp.server import DROP, HANG, MailServer
from tests.unit.adapters.smtp.test_mail import message
from tests.unit.adapters.transport.fakes import Certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with MailServer().run() as running:
        yield running


@contextlib.asynccontextmanager
async def provider(server: MailServer, **changed: Any) -> AsyncIterator[SmtpProvider]:
    fields: dict[str, Any] = {
        "url": f"smtp://127.0.0.1:{server.port}",
        "sender": "Bellbuoy <noreply@bell.test>",
        "clock": ManualClock(),
    }
    made = SmtpProvider(**{**fields, **changed})
    yield made
    await made.aclose()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # The server's side has no event to wait for.
            await asyncio.sleep(0.005)


async def test_a_mail_is_handed_over(server: MailServer) -> None:
    async with provider(server) as smtp:
        receipt = await smtp.send(message())
    assert (receipt.provider_status, receipt.message_id) == (250, "4XyZ")
    assert "MAIL FROM:<noreply@bell.test>" in server.commands
    assert "RCPT TO:<someone@example.com>" in server.commands
    [mail] = server.mails
    assert b"\r\nMessage-ID: <6f0a7e0e-3a0f-5f5b-9e3c-0b6e6c6c7569@bell.test>\r\n" in mail
    assert mail.endswith(b"On its way.\r\n.\r\nSoon\r\n")


async def test_a_retry_is_the_same_mail(server: MailServer) -> None:
    async with provider(server) as smtp:
        await smtp.send(message())
        await smtp.send(message())
    assert server.mails[0] == server.mails[1]


async def test_a_session_is_used_again(server: MailServer) -> None:
    async with provider(server) as smtp:
        for _ in range(5):
            await smtp.send(message())
        assert server.sessions == 1
    await _until(lambda: server.open == 0)
    assert server.commands[-1] == "QUIT"


async def test_sessions_are_bounded(server: MailServer) -> None:
    async with provider(server, connections_max=3) as smtp:
        await asyncio.gather(*(smtp.send(message()) for _ in range(20)))
    assert server.sessions == 3
    assert len(server.mails) == 20


async def test_an_unused_session_is_closed(server: MailServer) -> None:
    async with provider(server, idle_s=0.02) as smtp:
        await smtp.send(message())
        await _until(lambda: server.open == 0)


async def test_a_rested_session_is_asked_first(server: MailServer) -> None:
    async with provider(server, check_after_s=0.0) as smtp:
        await smtp.send(message())
        await smtp.send(message())
        assert server.commands.count("NOOP") == 1
        server.replies["NOOP"] = "421 too long"
        await smtp.send(message())
        assert server.sessions == 2


@pytest.mark.parametrize("end", [DROP, "421 4.4.2 idle too long"])
async def test_a_session_that_died_at_rest_costs_nothing(server: MailServer, end: str) -> None:
    async with provider(server) as smtp:
        await smtp.send(message())
        server.replies["MAIL"] = end
        sending = asyncio.create_task(smtp.send(message()))
        await _until(lambda: server.sessions == 2 or sending.done())
        # The new session meets the same, and is not forgiven: it did not rest.
        with pytest.raises(Transient):
            await sending
        del server.replies["MAIL"]
        server.drop_all()
        await smtp.send(message())
    assert len(server.mails) == 2


@pytest.mark.parametrize(
    ("verb", "reply", "kind"),
    [
        ("RCPT", "550 5.1.1 unknown", RecipientGone),
        ("RCPT", "550 5.7.1 no", Permanent),
        ("RCPT", "451 4.7.1 greylisted", Transient),
        ("MAIL", "452 4.3.1 full", Transient),
        ("MAIL", "530 5.7.0 log in", CredentialRejected),
        ("DATA", "554 5.5.1 no", Permanent),
        (".", "554 5.7.1 spam", Permanent),
        (".", "451 4.3.0 oops", Transient),
        ("GREETING", "554 go away", CredentialRejected),
        ("GREETING", "421 busy", Transient),
    ],
)
async def test_refusals(server: MailServer, verb: str, reply: str, kind: type[ProviderError]) -> None:
    server.replies[verb] = reply
    async with provider(server) as smtp:
        with pytest.raises(kind) as caught:
            await smtp.send(message())
        assert type(caught.value) is kind
        server.replies.clear()
        await smtp.send(message())
    if verb != "GREETING":
        assert server.sessions == 1
        assert server.commands.count("RSET") == 1


@pytest.mark.parametrize(
    ("verb", "kind"),
    [
        ("GREETING", Transient),
        ("EHLO", Transient),
        ("MAIL", Transient),
        ("RCPT", Transient),
        ("DATA", Transient),
        (".", OutcomeUnknown),
    ],
)
@pytest.mark.parametrize("end", [DROP, HANG])
async def test_a_lost_session_is_unknown_only_once_the_mail_was_written(
    server: MailServer, verb: str, kind: type[ProviderError], end: str
) -> None:
    server.replies[verb] = end
    async with provider(server, answer_timeout_s=0.1, connect_timeout_s=0.1) as smtp:
        with pytest.raises(kind) as caught:
            await smtp.send(message())
        assert type(caught.value) is kind
        server.replies.clear()
        await smtp.send(message())


async def test_nothing_there_is_transient() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        server = MailServer()
        server.port = bound.getsockname()[1]
        async with provider(server) as smtp:
            with pytest.raises(Transient) as caught:
                await smtp.send(message())
    assert caught.value.error_code == "connect_failed"


async def test_an_unknown_name_is_transient(server: MailServer) -> None:
    async with provider(server, url="smtp://no-such-host.invalid") as smtp:
        with pytest.raises(Transient) as caught:
            await smtp.send(message())
    assert caught.value.error_code == "dns_failed"


async def test_a_cancelled_mail_leaves_no_half_used_session(server: MailServer) -> None:
    server.replies["RCPT"] = HANG
    async with provider(server, connections_max=1) as smtp:
        sending = asyncio.create_task(smtp.send(message()))
        await _until(lambda: any(c.startswith("RCPT") for c in server.commands))
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        server.replies.clear()
        await smtp.send(message())
    assert server.sessions == 2
    assert len(server.mails) == 1


@pytest.mark.parametrize("starttls", [True, False])
async def test_the_line_is_secured(certificates: Certificates, starttls: bool) -> None:
    tls = certificates.server_context()
    async with MailServer(tls, starttls=starttls, login=True).run() as server:
        scheme = "smtp" if starttls else "smtps"
        url = f"{scheme}://us%40er:p%20w@localhost:{server.port}"
        async with provider(server, url=url, ca_file=certificates.ca_file) as smtp:
            await smtp.send(message())
        assert server.secure == [True]
        # \0us@er\0p w
        assert "AUTH PLAIN AHVzQGVyAHAgdw==" in server.commands


@pytest.mark.parametrize("starttls", [True, False])
async def test_an_untrusted_certificate_is_refused(certificates: Certificates, starttls: bool) -> None:
    async with MailServer(certificates.server_context(), starttls=starttls).run() as server:
        url = f"{'smtp' if starttls else 'smtps'}://127.0.0.1:{server.port}"
        async with provider(server, url=url) as smtp:
            with pytest.raises(Transient) as caught:
                await smtp.send(message())
    assert caught.value.error_code == "tls_failed"
    assert "tls.ca_file" in (caught.value.hint or "")
    assert server.mails == []


async def test_a_server_without_starttls_is_refused_where_it_is_required(server: MailServer) -> None:
    async with provider(server, url=f"smtp://127.0.0.1:{server.port}?starttls=required") as smtp:
        with pytest.raises(CredentialRejected) as caught:
            await smtp.send(message())
    assert caught.value.error_code == "starttls_missing"
    assert not any(c.startswith("MAIL") for c in server.commands)


async def test_a_refused_login_is_a_rejected_credential(certificates: Certificates) -> None:
    async with MailServer(login=True).run() as server:
        server.replies["AUTH"] = "535 5.7.8 wrong s3cret"
        async with provider(server, url=f"smtp://user:s3cret@127.0.0.1:{server.port}") as smtp:
            with pytest.raises(CredentialRejected) as caught:
                await smtp.send(message())
            assert "s3cret" not in f"{caught.value}{caught.value.hint}"
            with pytest.raises(CredentialRejected):
                await smtp.probe()


async def test_a_server_without_login_is_a_rejected_credential(server: MailServer) -> None:
    async with provider(server, url=f"smtp://user:pw@127.0.0.1:{server.port}") as smtp:
        with pytest.raises(CredentialRejected) as caught:
            await smtp.send(message())
    assert caught.value.error_code == "auth_missing"


async def test_errors_hold_no_address(server: MailServer) -> None:
    server.replies["RCPT"] = "550 5.1.1 <someone@example.com> unknown"
    async with provider(server) as smtp:
        with pytest.raises(RecipientGone) as caught:
            await smtp.send(message())
    error: BaseException | None = caught.value
    while error is not None:
        assert "someone" not in repr(error) + str(error)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    "endpoint", ["", "someone", "a@b@c.test", "a b@c.test", "a@c.test\r\nRSET", "<a@c.test>", "a@c.test>"]
)
async def test_what_is_no_address_is_not_sent(server: MailServer, endpoint: str) -> None:
    async with provider(server) as smtp:
        with pytest.raises(Permanent):
            await smtp.send(message(endpoint=endpoint))
    assert server.sessions == 0


async def test_a_probe_asks_the_server_to_do_nothing(server: MailServer) -> None:
    async with provider(server) as smtp:
        await smtp.probe()
        assert server.commands[-1] == "NOOP"
        server.replies["NOOP"] = "421 closing"
        with pytest.raises(Transient):
            await smtp.probe()
    assert server.mails == []


async def test_closing_ends_what_is_in_flight_and_may_be_repeated(server: MailServer) -> None:
    server.replies["."] = HANG
    async with provider(server) as smtp:
        sending = asyncio.create_task(smtp.send(message()))
        await _until(lambda: len(server.mails) == 1)
        await smtp.aclose()
        with pytest.raises(OutcomeUnknown):
            await sending
        with pytest.raises(Transient):
            await smtp.send(message())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail.test", ("mail.test", 587, False, "required")),
        ("smtp://mail.test:25?starttls=optional", ("mail.test", 25, False, "optional")),
        ("smtp://localhost", ("localhost", 587, False, "optional")),
        ("smtp://localhost?starttls=required", ("localhost", 587, False, "required")),
        ("smtps://mail.test/", ("mail.test", 465, True, "required")),
        ("smtp://[::1]:2525", ("::1", 2525, False, "optional")),
    ],
)
def test_urls(url: str, expected: tuple[str, int, bool, str]) -> None:
    server = read_url(url)
    assert (server.host, server.port, server.tls, server.starttls) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mail.test",
        "http://mail.test",
        "smtp://",
        "smtp://s3cret@mail.test",
        "smtp://mail.test/inbox",
        "smtp://mail.test?starttls=never",
        "smtp://mail.test?s3cret=1",
        "smtp://u:s3cret@mail.test:port",
        "smtp://u:s3cret@[::1",
    ],
)
def test_a_useless_url_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_url(url)
    assert "providers.smtp.url" in (caught.value.hint or "")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("sender", ["", "Bellbuoy", "Bell <noreply>", "a@b.test\r\nBcc: x@y.test", "a@b, c@d"])
def test_a_useless_sender_is_a_configuration_error(sender: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        SmtpProvider(url="smtp://localhost", sender=sender, clock=ManualClock())
    assert "providers.smtp.from" in str(caught.value)


def test_a_useless_ca_file_is_a_configuration_error(tmp_path: Path) -> None:
    for content in (None, b"junk"):
        file = tmp_path / "ca.pem"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ConfigurationError):
            SmtpProvider(url="smtp://localhost", sender="a@b.test", ca_file=file, clock=ManualClock())
