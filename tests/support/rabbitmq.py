"""A real RabbitMQ to test with: a node of our own on loopback, booted once a session, a virtual host a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.server import wait_for

BOOT_S_MAX = 90.0
_HOMES = "/usr/lib/rabbitmq/lib"


def program(name: str) -> str:
    """The path of one of RabbitMQ's programs; the one on the PATH switches user."""
    for home in sorted(Path(_HOMES).glob("rabbitmq_server-*"), reverse=True):
        if (home / "sbin" / name).exists():
            return str(home / "sbin" / name)
    if os.environ.get("CI") == "true":
        pytest.fail("rabbitmq-server is not installed, and in CI a missing server is a failure")
    pytest.skip("rabbitmq-server is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_epmd(port: int) -> subprocess.Popen[bytes] | None:
    """The name server of Erlang's nodes, as a child of ours; otherwise the first node would leave one behind."""
    epmd = shutil.which("epmd")
    return subprocess.Popen([epmd, "-port", str(port), "-address", "127.0.0.1"]) if epmd is not None else None


def node_name() -> str:
    """A name that no other node on this machine has: epmds differ in their ports, but names must too."""
    return f"b{uuid.uuid4().hex[:8]}@localhost"


class RabbitServer:
    """One node in a folder of its own.

    Args:
        folder: where it lives; made here.
        node: its name; one of its own when None.
        members: the names of all nodes of its cluster, itself included; none for a node by itself.
        epmd_port: where the epmd of its cluster is, which somebody else runs; None for one of its own.
    """

    def __init__(
        self, folder: Path, *, node: str | None = None, members: Sequence[str] = (), epmd_port: int | None = None
    ) -> None:
        self._folder = folder
        self.port = free_port()
        self._own_epmd = epmd_port is None
        self._epmd_port = epmd_port or free_port()
        self.node = node or node_name()
        home = folder / "home"
        home.mkdir(parents=True)
        cookie = home / ".erlang.cookie"
        cookie.write_text("BELLBUOYTESTS")
        cookie.chmod(0o400)
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.default = 127.0.0.1:{self.port}\nloopback_users = none\n"
            "vm_memory_high_watermark.absolute = 1GB\ndisk_free_limit.absolute = 50MB\n"
            + "".join(f"cluster_formation.classic_config.nodes.{n} = {one}\n" for n, one in enumerate(members, 1))
        )
        (folder / "plugins").write_text("[].")
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ("+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}"),
        }
        self._epmd: subprocess.Popen[bytes] | None = None
        self._shell: subprocess.Popen[bytes] | None = None
        self._beam = 0

    def start(self) -> RabbitServer:
        """Boot it, on what an earlier run has left, and wait until it answers."""
        if self._own_epmd and self._epmd is None:
            self._epmd = start_epmd(self._epmd_port)
        with (self._folder / "out").open("ab") as log:
            self._shell = subprocess.Popen(
                [program("rabbitmq-server")], env=self._env, stdout=log, stderr=log, cwd=self._folder
            )
        wait_for(self._answers, within_s=BOOT_S_MAX, why=f"RabbitMQ: {self._folder / 'out'}")
        self._beam = int((self._folder / "pid").read_text())
        return self

    def uri(self, vhost: str) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl; returns what it prints."""
        done = subprocess.run(
            [program("rabbitmqctl"), "-q", *arguments], env=self._env, capture_output=True, timeout=60, check=True
        )
        return done.stdout.decode()

    def make_vhost(self) -> str:
        """A virtual host of its own for a test."""
        name = f"t{uuid.uuid4().hex[:10]}"
        # One start of the control program costs a second, so the rest goes through an expression inside the node.
        self.control(
            "eval",
            f'rabbit_vhost:add(<<"{name}">>, <<"test">>), '
            f'rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"{name}">>, '
            '<<".*">>, <<".*">>, <<".*">>, <<"test">>).',
        )
        return name

    def refuse_writes(self, refusing: bool) -> None:
        """Raise, or take back, the alarm of a full disk: the broker reads from no connection that publishes."""
        self.control("set_disk_free_limit", "100000GB" if refusing else "50MB")

    def kill(self) -> None:
        """kill -9, of the node itself: the process that was started is a shell."""
        self._signal(signal.SIGKILL)
        if self._shell is not None:
            self._shell.wait(timeout=30)
            self._shell = None

    @property
    def running(self) -> bool:
        return self._shell is not None

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._shell is not None:
            with contextlib.suppress(ProcessLookupError):
                self.thaw()
            self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(timeout=10)

    def _signal(self, number: signal.Signals) -> None:
        os.kill(self._beam, number)

    def _answers(self) -> bool:
        if not (self._folder / "pid").exists():
            return False
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as peer:
            peer.settimeout(2)
            peer.sendall(b"AMQP\x00\x00\x09\x01")
            return len(peer.recv(8)) == 8
        return False


class RabbitCluster:
    """Three nodes that are one broker."""

    def __init__(self, folder: Path) -> None:
        self._epmd_port = free_port()
        self._epmd: subprocess.Popen[bytes] | None = None
        names = [node_name() for _ in range(3)]
        self.nodes = [
            RabbitServer(folder / f"node-{n}", node=name, members=names, epmd_port=self._epmd_port)
            for n, name in enumerate(names)
        ]

    def start(self) -> RabbitCluster:
        """Boot all at once and wait until they know each other."""
        self._epmd = start_epmd(self._epmd_port)
        with ThreadPoolExecutor() as pool:
            list(pool.map(RabbitServer.start, self.nodes))
        self.nodes[0].control("await_online_nodes", str(len(self.nodes)), "--timeout", "60")
        return self

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(timeout=10)

    def uri(self, vhost: str) -> str:
        """The URL that names every node."""
        return f"amqp://guest:guest@{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}/{vhost}"

    def leader_of(self, queue: str, vhost: str) -> RabbitServer:
        """The node that leads a quorum queue."""
        for node in self.nodes:
            if node.running:
                lines = node.control("list_queues", "-p", vhost, "name", "leader", "--no-table-headers").splitlines()
                leaders = dict(line.split("\t") for line in lines)
                return next(one for one in self.nodes if one.node == leaders[queue])
        raise AssertionError("no node runs")


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitServer]:
    """The session's node."""
    server = RabbitServer(tmp_path_factory.mktemp("rabbitmq"))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def amqp_url(rabbitmq: RabbitServer) -> str:
    """A virtual host of the test's own."""
    return rabbitmq.uri(rabbitmq.make_vhost())
