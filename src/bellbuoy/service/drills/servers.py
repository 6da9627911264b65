"""The servers of a cluster, each a process of our own on loopback, to be killed, frozen and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

from bellbuoy.service.drills.node import NotAsExpected, free_port, wait_for
from bellbuoy.service.drills.stack import CannotRun
from bellbuoy.service.drills.warden import watch

START_S_MAX = 20.0
RABBITMQ_START_S_MAX = 90.0
ANSWER_S_MAX = 2.0
TRANSACTION_S_MAX = 5
"""Seconds after which MongoDB ends what a killed process had begun; before that nobody else can write the same."""
_RABBITMQ_HOMES = "/usr/lib/rabbitmq/lib"
# MongoDB's OP_MSG with one body, and `ping` and `replSetInitiate` of the database `admin` as BSON.
_OP_MSG = 2013
_TO_ADMIN = b"\x02$db\x00\x06\x00\x00\x00admin\x00"


class Server(Protocol):
    """What can be done to any of them."""

    port: int

    def kill(self) -> None: ...

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...


class _Process(ABC):
    """A program in a process of its own, with its data in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def kill(self) -> None:
        """kill -9; nothing where it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)
            self._process = None

    @property
    def running(self) -> bool:
        return self._process is not None

    def lose(self) -> None:
        """Kill it, and delete all that it has."""
        self.kill()
        shutil.rmtree(self._folder)
        self._folder.mkdir()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _run(self, command: Sequence[str], name: str) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  # A server that was looked up on the PATH.
                command, stdout=log, stderr=log, cwd=self._folder, process_group=0
            )
        watch(self._process)
        wait_for(self._answers, within_s=START_S_MAX, why=f"{name}: {self._folder / 'log'}")

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise NotAsExpected(f"it ended: {(self._folder / 'log').read_text(errors='replace')[-2000:]}")
        return self.answers()

    @abstractmethod
    def answers(self) -> bool:
        """Whether it answers a question of its protocol."""


class MongoServer(_Process):
    """MongoDB as a replica set of one; without a `mongod` SecantusDB, which speaks its protocol."""

    def stand_in(self) -> list[str] | None:
        """What runs SecantusDB, None where it is not installed."""
        found = _beside_python("secantusd-py")
        return None if found is None else [found]

    def start(self) -> Self:
        """Start it, on what an earlier run has left, and wait until it answers. Raises CannotRun and NotAsExpected."""
        (self._folder / "data").mkdir(exist_ok=True)
        port, data = str(self.port), str(self._folder / "data")
        mongod, secantus = shutil.which("mongod"), self.stand_in()
        if mongod is not None:
            where = ["--bind_ip", "127.0.0.1", "--port", port, "--dbpath", data, "--replSet", "rs0"]
            limit = ["--setParameter", f"transactionLifetimeLimitSeconds={TRANSACTION_S_MAX}"]
            self._run([mongod, *where, *limit], "mongod")
            _mongodb(self.port, "replSetInitiate", {})
        elif secantus is not None:
            where = ["--host", "127.0.0.1", "--port", port, "--storage-path", data]
            # Its commitTransaction does not look at `j`, as MongoDB's does; this makes it write every journal.
            self._run([*secantus, *where, "--enable-test-commands", "--sync-on-commit"], "secantusd-py")
        else:
            raise CannotRun("there is no MongoDB", hint="put mongod or secantusd-py on the PATH, or give --mongodb-uri")
        return self

    def uri(self, database: str) -> str:
        return f"mongodb://127.0.0.1:{self.port}/{database}"

    def answers(self) -> bool:
        return _mongodb(self.port, "ping", 1)


def _mongodb(port: int, command: str, argument: int | dict[str, str]) -> bool:
    """Give MongoDB a command; returns whether it answered."""
    name = command.encode() + b"\x00"
    first = b"\x10" + name + struct.pack("<i", argument) if isinstance(argument, int) else b"\x03" + name + _EMPTY
    document = first + _TO_ADMIN
    body = struct.pack("<IB", 0, 0) + struct.pack("<i", len(document) + 5) + document + b"\x00"
    message = struct.pack("<iiii", len(body) + 16, 1, 0, _OP_MSG) + body
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), ANSWER_S_MAX) as peer:
        peer.sendall(message)
        return len(peer.recv(4096)) > 16
    return False


_EMPTY = struct.pack("<i", 5) + b"\x00"


class RedisServer(_Process):
    """Redis, or a server that speaks its protocol, that writes everything to its append-only file at once."""

    def start(self) -> RedisServer:
        """Start it, on what an earlier run has left, and wait until it answers. Raises CannotRun and NotAsExpected."""
        found = shutil.which("redis-server") or shutil.which("valkey-server")
        if found is None:
            raise CannotRun("redis-server is not on the PATH", hint="install redis-server")
        settings = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self._folder), "save": ""}
        settings |= {"appendonly": "yes", "appendfsync": "always"}
        self._run([found, *(part for name, value in settings.items() for part in (f"--{name}", value))], "redis-server")
        return self

    def uri(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), ANSWER_S_MAX) as peer:
            peer.settimeout(ANSWER_S_MAX)
            peer.sendall(b"PING\r\n")
            return peer.recv(7).startswith(b"+PONG")
        return False


def rabbitmq_program(name: str) -> str:
    """The path of one of RabbitMQ's programs; the one on the PATH switches user. Raises CannotRun."""
    for home in sorted(Path(_RABBITMQ_HOMES).glob("rabbitmq_server-*"), reverse=True):
        if (home / "sbin" / name).exists():
            return str(home / "sbin" / name)
    raise CannotRun("rabbitmq-server is not installed", hint="install rabbitmq-server")


def start_epmd(port: int) -> subprocess.Popen[bytes] | None:
    """The name server of Erlang's nodes, as a child of ours; otherwise the first node would leave one behind."""
    epmd = shutil.which("epmd")
    if epmd is None:
        return None
    command = [epmd, "-port", str(port), "-address", "127.0.0.1"]
    process = subprocess.Popen(command, process_group=0)  # noqa: S603  # A program that was looked up on the PATH.
    watch(process)
    return process


def node_name() -> str:
    """A name that no other node on this machine has: epmds differ in their ports, but names must too."""
    return f"b{uuid.uuid4().hex[:8]}@localhost"


class RabbitServer:
    """One node of RabbitMQ in a folder of its own.

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
        cookie.write_text("BELLBUOYDRILLS")
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
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
        }
        self._epmd: subprocess.Popen[bytes] | None = None
        self._shell: subprocess.Popen[bytes] | None = None
        self._beam = 0

    def start(self) -> RabbitServer:
        """Boot it, on what an earlier run has left, and wait until it answers. Raises CannotRun and NotAsExpected."""
        program = rabbitmq_program("rabbitmq-server")
        if self._own_epmd and self._epmd is None:
            self._epmd = start_epmd(self._epmd_port)
        with (self._folder / "out").open("ab") as log:
            self._shell = subprocess.Popen(  # noqa: S603
                [program], env=self._env, stdout=log, stderr=log, cwd=self._folder, process_group=0
            )
        watch(self._shell)
        wait_for(self._answers, within_s=RABBITMQ_START_S_MAX, why=f"RabbitMQ: {self._folder / 'out'}")
        self._beam = int((self._folder / "pid").read_text())
        return self

    def uri(self, vhost: str) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"

    def control(self, *arguments: str) -> str:
        """Run rabbitmqctl; returns what it prints."""
        command = [rabbitmq_program("rabbitmqctl"), "-q", *arguments]
        done = subprocess.run(command, env=self._env, capture_output=True, timeout=60, check=True)  # noqa: S603
        return done.stdout.decode()

    def make_vhost(self) -> str:
        """Another virtual host, of which guest may do everything."""
        name = f"t{uuid.uuid4().hex[:10]}"
        # One start of the control program costs a second, so the rest goes through an expression inside the node.
        self.control(
            "eval",
            f'rabbit_vhost:add(<<"{name}">>, <<"test">>), '
            f'rabbit_auth_backend_internal:set_permissions(<<"guest">>, <<"{name}">>, '
            '<<".*">>, <<".*">>, <<".*">>, <<"test">>).',
        )
        return name

    def kill(self) -> None:
        """kill -9, of the node itself: the process that was started is a shell. Nothing where it does not run."""
        if self._shell is not None:
            with contextlib.suppress(ProcessLookupError):  # It may have ended by itself, and the rest has to end too.
                self._signal(signal.SIGKILL)
            self._shell.wait(timeout=30)
            self._shell = None

    @property
    def running(self) -> bool:
        return self._shell is not None

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it and its epmd, whatever it does."""
        if self._shell is not None:
            with contextlib.suppress(ProcessLookupError):
                self.thaw()
            self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait(timeout=10)
            self._epmd = None

    def _signal(self, number: signal.Signals) -> None:
        if self._beam:
            os.kill(self._beam, number)
        elif self._shell is not None:
            self._shell.send_signal(number)  # It never came up.

    def _answers(self) -> bool:
        if not (self._folder / "pid").exists():
            return False
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as peer:
            peer.settimeout(ANSWER_S_MAX)
            peer.sendall(b"AMQP\x00\x00\x09\x01")
            return len(peer.recv(8)) == 8
        return False


def _beside_python(name: str) -> str | None:
    """A program on the PATH, or beside the Python that runs this."""
    beside = Path(sys.executable).with_name(name)
    return shutil.which(name) or (str(beside) if beside.exists() else None)
