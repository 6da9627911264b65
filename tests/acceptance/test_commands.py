"""The command line, as people and programs use it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bellbuoy.service.drills.node import NotAsExpected
from tests.support.server import KEY, Server, request, to_email, to_phone, wait_for

ROOT = Path(__file__).parents[2]


def lines(path: Path, documents: list[object]) -> str:
    path.write_text("".join((d if isinstance(d, str) else json.dumps(d)) + "\n" for d in documents))
    return str(path)


def test_the_readme_works_as_it_is_written(server: Server, tmp_path: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "bellbuoy-data").mkdir()
    (tmp_path / "bellbuoy-data" / "bootstrap.key").write_text(KEY)
    script = "set -e\n" + blocks[1].replace("http://127.0.0.1:8470", server.url)
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    sent = re.search(r'"id":"([0-9a-f-]{36})"', done.stdout)
    assert sent is not None, done.stdout
    server.wait_status(sent[1], "delivered")
    look = blocks[2].replace("http://127.0.0.1:8470", server.url).replace("ID", sent[1])
    look = look.replace(".venv/bin/bellbuoy", f"{sys.executable} -m bellbuoy")
    environment = {"PATH": "/usr/bin:/bin", "KEY": KEY, "BELLBUOY_URL": server.url, "BELLBUOY_API_KEY": KEY}
    shown = subprocess.run(
        ["sh", "-c", look], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    assert '"status":"delivered"' in shown.stdout
    assert "demo-token" in shown.stdout
    assert "fcm accepted it" in shown.stdout
    for fault in blocks[3].splitlines()[:2]:
        subprocess.run(["sh", "-c", fault.replace("http://127.0.0.1:8470", server.url)], check=True, timeout=20)
    assert server.received("fcm")["count"] >= 1


def test_users_are_imported_and_notifications_sent_from_files(server: Server, tmp_path: Path) -> None:
    users = [{"user_id": f"file-{n}", "email": f"f{n}@example.com"} for n in range(1_200)]
    out = server.cli("users", "import", lines(tmp_path / "users.ndjson", [*users, {"email": "x"}, "{"]), status=1)
    assert "1200 of 1202 users accepted" in out
    assert server.get("/v1/users/file-1199")["email"] == "f1199@example.com"
    documents = [{"recipient": {"user_id": u["user_id"]}, "content": {"title": "t"}} for u in users]
    path = lines(tmp_path / "notifications.ndjson", [*documents, {"content": {}}])
    before = server.books()["accepted"]
    report = json.loads(server.cli("send", "-f", path, "--once", "tuesday", "--json", status=1))
    assert report["accepted"] == 1_200
    assert [r["line"] for r in report["rejected"]] == [1_201]
    assert report["rejected"][0]["error"]["code"] == "invalid"
    again = json.loads(server.cli("send", "-f", path, "--once", "tuesday", "--json", status=1))
    assert again["accepted"] == 1_200
    assert server.books()["accepted"] == before + 1_200
    wait_for(lambda: server.books()["pending"] == 0)
    assert "the books balance" in server.cli("audit")


def test_what_it_says_to_people_and_to_programs(server: Server) -> None:
    sent = server.send(to_phone(5))
    server.wait_status(sent, "delivered")
    assert "sms accepted it" in server.cli("explain", sent)
    explained = json.loads(server.cli("explain", sent, "--json"))
    assert explained["next"] is None
    assert explained["timeline"][0]["event"] == "accepted"
    assert server.cli("status").startswith("healthy")
    assert json.loads(server.cli("status", "--json"))["health"]["status"] == "healthy"
    assert json.loads(server.cli("audit", "--json"))["difference"] == 0
    assert "closed" in server.cli("breakers", "list")
    assert json.loads(server.cli("dead-letters", "list", "--json")) == {"items": []}
    assert json.loads(server.cli("dead-letters", "--json")) == {"items": []}
    assert "bootstrap" in server.cli("keys")
    assert json.loads(server.cli("tombstones", "list", "--json")) == {"items": []}
    made = json.loads(server.cli("keys", "create", "ci", "--scope", "send", "--json"))
    assert server.call("GET", "/v1/health", key=made["key"]).status == 403
    assert "ci" in server.cli("keys", "list")
    server.cli("keys", "revoke", made["id"])
    assert server.call("GET", "/v1/health", key=made["key"]).status == 401
    server.cli("breakers", "set", "sms", "isolate")
    assert "isolated" in server.cli("breakers", "list")
    server.cli("breakers", "set", "sms", "close")


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("explain", "nothing"), 1, "there is no notification"),
        (("send", "-f", "/no/such/file"), 2, "cannot be read"),
        (("send",), 1, "standard input has no lines"),
        (("frobnicate",), 2, "No such command"),
        (("dead-letters", "replay"), 2, "--all"),
        (("dead-letters", "discard"), 2, "--expired"),
        (("dead-letters", "discard", "no-such-letter"), 1, "no-such-letter"),
        (("status", "--url", "http://example.com"), 2, "https"),
        (("status", "--url", "http://127.0.0.1:1"), 1, "bellbuoy serve"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_errors_name_the_cure(server: Server, arguments: tuple[str, ...], status: int, says: str) -> None:
    environment = {"PATH": "/usr/bin:/bin", "BELLBUOY_URL": server.url, "BELLBUOY_API_KEY": KEY}
    done = subprocess.run(
        [sys.executable, "-m", "bellbuoy", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_misspelt_setting_is_named_with_the_nearest(tmp_path: Path) -> None:
    config = tmp_path / "b.toml"
    config.write_text("[server]\nprot = 1\n")
    for arguments, extra in (
        (("serve", "--config", str(config)), {}),
        (("serve",), {"BELLBUOY_SERVER__PROT": "1"}),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "bellbuoy", *arguments],
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin", **extra},
            cwd=tmp_path,
            timeout=60,
        )
        assert done.returncode == 2
        assert re.search(r"did you mean (server\.port|BELLBUOY_SERVER__PORT)\?", done.stderr), done.stderr


def test_the_doctor_names_what_is_wrong_and_its_cure(server: Server, tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "BELLBUOY_DATA__DIR": str(tmp_path / "d")}
    done = subprocess.run(
        [sys.executable, "-m", "bellbuoy", "doctor"], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "[providers.apns] team_id" in done.stdout
    environment |= {
        "BELLBUOY_PROVIDERS__SMTP__URL": "smtp://127.0.0.1:1",
        "BELLBUOY_PROVIDERS__SMTP__FROM": "a@example.com",
    }
    done = subprocess.run(
        [sys.executable, "-m", "bellbuoy", "doctor", "--json"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 1
    finding = next(f for f in json.loads(done.stdout)["findings"] if f["subject"] == "smtp")
    assert finding["level"] == "error"
    assert finding["cure"]


def test_a_first_start_makes_a_key_that_only_its_owner_can_read(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", arguments=("serve", "--port", "0"))
    server.env = {"BELLBUOY_BOOTSTRAP_KEY": ""}
    with pytest.raises(NotAsExpected, match="at least 24"):
        server.start()
    assert server.process is not None
    server.process.wait(timeout=10)
    assert server.process.stdout is not None
    server.process.stdout.close()


def test_a_command_finds_the_service_of_a_data_directory_on_whatever_port(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BELLBUOY_")}
    command = [sys.executable, "-m", "bellbuoy", "audit", "--json", "--data-dir", str(tmp_path / "data")]
    with Server(tmp_path / "data", no_key=True) as server:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
        assert json.loads(done.stdout)["accepted"] == 0
        server.stop()
        assert not list((tmp_path / "data").glob("url-*"))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert (done.returncode, "is it running?" in done.stderr) == (1, True)


def test_the_bootstrap_key_is_written_once(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", arguments=("serve", "--port", "0"))
    server.no_key = True
    with server:
        path = tmp_path / "data" / "bootstrap.key"
        assert path.stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
        key = path.read_text().strip()
        assert request("GET", f"{server.url}/v1/health", headers={"Authorization": f"Bearer {key}"}).status == 200
        server.stop()
        assert key.encode() not in (tmp_path / "data" / "bellbuoy.db").read_bytes()
        assert key not in server.log.read_text()
        server.start()
        assert path.read_text().strip() == key
        assert (
            request(
                "POST",
                f"{server.url}/v1/notifications",
                json.dumps(to_email(1)).encode(),
                {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            ).status
            == 202
        )
