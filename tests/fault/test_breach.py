"""A key is stolen: it is refused everywhere, nothing is sent until it may be, and the audit log shows every edit."""

from __future__ import annotations

import json
import statistics
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from bellbuoy.errors import BellbuoyError
from bellbuoy.service.cli.app import app
from bellbuoy.service.drills.proxy import Proxy
from tests.support.mongodb import REAL
from tests.support.rabbitmq import free_port
from tests.support.redis import RedisServer
from tests.support.server import KEY, Server, to_email, to_phone, wait_for

pytestmark = pytest.mark.fault
PROCESSES = 2
LOOKS = 12
"""How often each node is asked, so that each of its processes is."""


class Nodes:
    """Nodes that share a ledger, and the stand-ins that they send to."""

    def __init__(self, outside: Server, nodes: list[Server]) -> None:
        self.outside = outside
        self.nodes = nodes

    def new_key(self, name: str) -> tuple[str, str]:
        """A key that may send, which every process knows."""
        made = self.nodes[0].call("POST", "/v1/keys", {"name": name, "scopes": ["send"]}).json()
        wait_for(lambda: self.statuses(made["key"]) == {422}, why="every process knows the key")
        return str(made["id"]), str(made["key"])

    def statuses(self, key: str) -> set[int]:
        """What every process answers whoever has the key, to nothing at all."""
        return {node.call("POST", "/v1/notifications", {}, key=key).status for node in self.nodes for _ in range(LOOKS)}

    def isolate(self, **what: Any) -> dict[str, Any]:
        answer = self.nodes[0].call("POST", "/v1/breach/isolate", what)
        assert answer.status == 200, answer
        found: dict[str, Any] = answer.json()
        return found

    def modes(self) -> dict[str, list[str]]:
        """The modes of every process that answered, by its name; each knows its own best."""
        found: dict[str, list[str]] = {}
        for node in self.nodes:
            for _ in range(LOOKS):
                found |= node.get("/v1/modes")["workers"]
        return found

    def everywhere(self, mode: str, *, active: bool) -> None:
        """Wait until each of the two processes says so, however seldom one of them is the one that answers."""

        def told() -> bool:
            modes = self.modes()
            return len(modes) >= PROCESSES and all((mode in one) == active for one in modes.values())

        wait_for(told, why=f"{mode} is {active} everywhere")

    def sent(self) -> int:
        return sum(int(self.outside.received(name)["count"]) for name in ("smtp", "sms"))


@pytest.fixture
def cluster(tmp_path: Path, mongodb_url: str, redis_server: RedisServer) -> Iterator[tuple[Nodes, Proxy, Proxy]]:
    """Two nodes over MongoDB and Redis, and the ways of the second to both."""
    outside = Server(tmp_path / "outside", arguments=("sandbox", "--json", "--port", "0"))
    port = urlsplit(mongodb_url).port
    assert port is not None
    to_redis, to_mongodb = Proxy(redis_server.port), Proxy(port)
    with ExitStack() as stack:
        stack.callback(to_redis.close)
        stack.callback(to_mongodb.close)
        stack.callback(lambda: outside.kill() if outside.process is not None else None)
        wiring = outside.start_sandbox()
        # Otherwise the driver would follow the server's own word about where it is, past the proxy.
        direct = mongodb_url.replace(f":{port}/", f":{to_mongodb.port}/") + "?directConnection=true"
        ways = ((mongodb_url, redis_server.port), (direct, to_redis.port))
        nodes = [
            Server(
                tmp_path / f"node-{n}",
                wiring | {"BELLBUOY_LEDGER__URL": ledger, "BELLBUOY_CACHE__URL": f"redis://127.0.0.1:{cache}/0"},
                ("serve", "--port", str(free_port())),
            )
            for n, (ledger, cache) in enumerate(ways)
        ]
        for node in nodes:
            stack.enter_context(node)
        yield Nodes(outside, nodes), to_redis, to_mongodb


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Nodes]:
    """Two processes over one file."""
    with Server(tmp_path / "data", arguments=("serve", "--sandbox", "--port", "0", "--workers", "2")) as server:
        wait_for(lambda: sum(e["event"] == "service_started" for e in server.events()) == 2, why="both have started")
        yield Nodes(server, [server])


def refused_within(nodes: Nodes, name: str) -> float:
    """End a key on one node; returns the seconds until every process refuses it."""
    identity, key = nodes.new_key(name)
    began = time.monotonic()
    assert nodes.isolate(keys=[identity])["ended"] == [identity]
    wait_for(lambda: nodes.statuses(key) == {401}, within_s=10, why="every process refuses it")
    return time.monotonic() - began


def nothing_is_sent_until_lift(nodes: Nodes) -> None:
    """Stop sending, accept on every node, send nothing, lift, and find everything delivered once."""
    nodes.isolate(stop_sending=True)
    nodes.everywhere("sending_stopped", active=True)
    before = nodes.sent()
    ids = [node.send(make(n)) for n in range(10) for node in nodes.nodes for make in (to_email, to_phone)]
    began = time.monotonic()
    while time.monotonic() - began < 2.0:  # Four times as long as a worker waits between two looks for work.
        assert nodes.sent() == before
    assert nodes.nodes[0].books()["pending"] == len(ids)
    assert nodes.nodes[0].call("POST", "/v1/breach/lift").status == 200
    nodes.everywhere("sending_stopped", active=False)
    for one in ids:
        nodes.nodes[0].wait_status(one, "delivered", within_s=60)
    books = nodes.nodes[0].books()
    assert (books["difference"], books["pending"], nodes.sent() - before) == (0, 0, len(ids))


@pytest.mark.timeout(240)
@pytest.mark.skipif(REAL is not None, reason="it cuts the way to the server")
def test_on_two_nodes_a_key_is_refused_within_a_second_and_sending_stops(cluster: tuple[Nodes, Proxy, Proxy]) -> None:
    nodes, to_redis, to_mongodb = cluster
    took = [refused_within(nodes, f"stolen-{n}") for n in range(3)]
    assert statistics.median(took) < 1.0, took
    nothing_is_sent_until_lift(nodes)
    # Redis is a hint only: a node that is cut off from it hears of everything all the same.
    to_redis.cut()
    try:
        took = [refused_within(nodes, f"stolen-cut-{n}") for n in range(3)]
        assert statistics.median(took) < 1.0, took
        nodes.isolate(stop_accepting=True)
        nodes.everywhere("accepting_stopped", active=True)
        for node in nodes.nodes:
            refused = node.call("POST", "/v1/notifications", to_email(1))
            assert (refused.status, refused.json()["code"]) == (503, "accepting_stopped")
        assert nodes.nodes[1].call("POST", "/v1/breach/lift").status == 200
        nodes.everywhere("accepting_stopped", active=False)
        # One that can reach nothing at all is asked itself, and tells the others when it can.
        identity, key = nodes.new_key("stolen-alone")
        alone = nodes.nodes[1]
        to_mongodb.cut()
        told = alone.call("POST", "/v1/breach/isolate", {"keys": [identity], "stop_sending": True}).json()
        assert (told["ended"], told["everywhere"], told["sending_stopped"]) == ([identity], False, True)
        assert alone.call("POST", "/v1/notifications", {}, key=key).status == 401
        assert nodes.nodes[0].call("POST", "/v1/notifications", {}, key=key).status == 422
        to_mongodb.mend()
        wait_for(lambda: nodes.statuses(key) == {401}, within_s=60, why="the ledger is told")
        nodes.everywhere("sending_stopped", active=True)
        assert alone.get("/v1/breach")["everywhere"] is True
    finally:
        to_redis.mend()
        to_mongodb.mend()


def test_of_two_processes_over_one_file_both_refuse_and_both_stop(embedded: Nodes) -> None:
    took = [refused_within(embedded, f"stolen-{n}") for n in range(3)]
    assert statistics.median(took) < 1.0, took
    nothing_is_sent_until_lift(embedded)


def run(server: Server, *arguments: str, status: int = 0) -> str:
    """Run a command in this process, which spares a test of many commands the start of each; returns its output."""
    env = {"BELLBUOY_URL": server.url, "BELLBUOY_API_KEY": KEY, "COLUMNS": "200"}
    done = CliRunner().invoke(app, list(arguments), env=env)
    code = 1 if isinstance(done.exception, BellbuoyError) else done.exit_code
    assert code == status, (done.output, done.exception)
    return done.stdout


def test_from_the_theft_to_the_letter(tmp_path: Path) -> None:
    """The whole story, by the command line: isolate, seal, scope, tell, report; and an edit of the log is found."""
    with Server(tmp_path / "data") as server:
        here = ("--data-dir", str(server.data_dir))
        stolen = json.loads(run(server, "keys", "create", "app", "--scope", "send", "--scope", "read", "--json", *here))
        for name in ("ann", "bob", "eve"):
            server.call("PUT", f"/v1/users/{name}", {"email": f"{name}@example.com"})
        for name in ("ann", "bob"):
            assert server.call("GET", f"/v1/users/{name}", key=stolen["key"]).status == 200
        server.call("POST", "/v1/notifications", to_email(1), key=stolen["key"])

        server.cli("breach", "isolate", "--key-id", stolen["id"], "--stop-sending", *here)
        assert server.call("GET", "/v1/users/ann", key=stolen["key"]).status == 401
        assert "stopped" in run(server, "breach", *here)

        archive = tmp_path / "evidence.tar"
        sealed = json.loads(run(server, "breach", "evidence", "--out", str(archive), "--json", *here))
        assert sealed["findings"] == []
        server.cli("breach", "verify", *here)
        run(server, "breach", "verify", str(archive), "--public", sealed["public"], *here)
        run(server, "breach", "verify", "--against", str(archive), *here)

        scope = tmp_path / "scope.json"
        scope.write_text(run(server, "breach", "scope", "--key-id", stolen["id"], "--json", *here))
        found = json.loads(scope.read_text())
        assert {name: one["times"] for name, one in found["users"].items()} == {"ann": 1, "bob": 1}
        assert "email" in found["users"]["ann"]["fields"]
        assert found["unnamed"] == 1
        twice = ("--evidence", str(archive)) * 2
        of_archives = json.loads(run(server, "breach", "scope", "--key-id", stolen["id"], *twice, "--json", *here))
        assert of_archives["users"] == found["users"]

        notify = ("breach", "notify", "--scope", str(scope), "--title", "About your data", "--body", "Somebody read it")
        run(server, *notify, *here, status=1)
        assert json.loads(run(server, *notify, "--dry-run", "--json", *here))["users"] == 2
        run(server, "breach", "isolate", "--stop-accepting", *here)
        refused = CliRunner().invoke(app, [*notify, "--allow", "--url", server.url, "--key", KEY, *here])
        assert "accepting is stopped" in str(refused.exception), "it is said at once, and nothing is tried"
        run(server, "breach", "lift", *here)
        for _ in range(2):
            assert json.loads(run(server, *notify, "--json", *here))["accepted"] == 2
        wait_for(lambda: server.received("smtp")["count"] == 3, why="each was told once")
        reached = json.loads(run(server, *notify, "--wait", "30", "--json", *here))
        assert (reached["reached"], reached["not_reached"]) == (2, [])
        another = (*notify, "--channel", "sms", "--user", "ann", "--wait", "30", "--json", *here)
        (unreached,) = json.loads(run(server, *another, status=1))["not_reached"]
        assert (unreached["user_id"], unreached["status"]) == ("ann", "failed")
        run(server, *notify, "--user", "nobody", *here, status=1)
        assert server.received("smtp")["count"] == 3

        text = run(server, "breach", "report", "--key-id", stolen["id"], *here)
        assert "POST /v1/breach/isolate stop_sending" in text
        assert "2 users were touched" in text
        assert "example.com" not in text
        document = json.loads(run(server, "breach", "report", "--json", *here))
        assert document["timeline"][0]["what"].startswith("POST /v1/keys")

        everything = b"".join(path.read_bytes() for path in (server.data_dir / "audit").glob("*/*.log"))
        for secret in (b"example.com", b"Somebody read it", stolen["key"].encode()):
            assert secret not in everything

        server.stop()
        (log,) = (server.data_dir / "audit").glob("*/*.log")
        written = log.read_bytes()
        at = written.index(b'"status":2', written.index(b"GET /v1/users"))
        log.write_bytes(written[:at] + written[at:].replace(b'"status":2', b'"status":4', 1))
        (finding,) = json.loads(run(server, "breach", "verify", "--json", *here, status=1))["findings"]
        before = written[:at]
        assert (finding["entry"], finding["offset"]) == (before.count(b"\n"), before.rfind(b"\n") + 1)
        # The tail is cut off. The chain cannot know; an archive and the heads that the service has recorded do.
        lines = written.splitlines(keepends=True)
        log.write_bytes(b"".join(lines[: sealed["entries"]]))
        run(server, "breach", "verify", *here)
        assert "at the end are missing" in run(server, "breach", "verify", "--against", str(archive), *here, status=1)
        server.start()
        assert "at the end are missing" in run(server, "breach", "verify", *here, status=1)


def test_a_log_is_known_by_its_id_and_what_a_key_may_not_see_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(tmp_path / "data") as server:
        here = ("--data-dir", str(server.data_dir))
        admin = json.loads(run(server, "keys", "create", "admin", "--scope", "admin", "--json", *here))["key"]
        server.call("PUT", "/v1/users/ann", {"email": "ann@example.com"})
        for name, key, missing in (("a", admin, {"incidents"}), ("b", "wrong", {"state", "incidents", "keys"})):
            out = ("--out", str(tmp_path / f"{name}.tar"))
            sealed = json.loads(run(server, "breach", "evidence", *out, "--key", key, "--json", *here))
            assert missing <= set(sealed["missing"]), sealed
            assert all(why.startswith("the key was refused, HTTP 40") for why in sealed["missing"].values())
            document = json.loads(run(server, "breach", "report", "--key", key, "--json", *here))
            assert missing - {"keys"} <= set(document["missing"])
        with tarfile.open(tmp_path / "a.tar") as archive:
            assert {"keys.json", "state.json"} <= set(archive.getnames())
        verified = json.loads(run(server, "breach", "verify", "--json", *here))
        assert [one["heads"] > 0 for one in verified["chains"]] == [True]
        assert (
            json.loads(run(server, "breach", "scope", "--from", "2020-01-01T00:00:00Z", "--json", *here))["verified"]
            is True
        )
        # A container that is made anew has another name, and the same log, of which the tail is cut off.
        server.stop()
        (log,) = (server.data_dir / "audit").glob("*/*.log")
        log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
        server.start()
        monkeypatch.setattr("socket.gethostname", lambda: "another")
        found = json.loads(run(server, "breach", "verify", "--json", *here, status=1))
        assert found["elsewhere"] == []
        assert found["findings"]
