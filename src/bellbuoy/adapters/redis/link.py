"""The connections to Redis: a bounded pool for questions, and one connection that listens.

A call that its caller gives up goes on until its own time is up, so that whoever judges Redis hears how it ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any, Protocol, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from bellbuoy.clock import Clock
from bellbuoy.errors import ConfigurationError, Full, Unavailable

PREFIX = "bellbuoy:"
"""What every key and channel begins with."""

CALL_S = 2.0
"""Seconds for connecting, and for an answer."""

CALLS_MAX = 16
"""Connections for questions; the one that listens comes on top."""

ASKED_MAX = 2_000
"""Questions that wait for an answer or for a connection."""

QUIET_S = 1.0
"""Seconds without a word after which the listening connection asks for one; twice that without an answer ends it."""

PAUSE_S = (0.2, 1.0)
"""Seconds before the listening connection is made anew, at random between these."""

# A channel that is always listened to, so that there is one.
_ALL = f"{PREFIX}all"

T = TypeVar("T")
Heard = Callable[[bytes | None], None]

# Each says in its first word that the server answers and takes no writes.
_REFUSES = ("NOREPLICAS", "MISCONF", "OOM", "READONLY")


class Around(Protocol):
    """What stands around every call: makes it, or refuses with Unavailable."""

    def __call__(self, fn: Callable[[], Awaitable[Any]], /) -> Awaitable[Any]: ...


class Script:
    """A Lua script: what it does, it does at once and whole."""

    def __init__(self, source: str) -> None:
        self.source = source


class Link:
    """The way to one Redis.

    Args:
        url: `redis://` or `rediss://`.
        around: stands around every question.
        clock, rng: for listening.

    Raises:
        ConfigurationError: the URL is not valid.
    """

    def __init__(self, url: str, *, around: Around | None = None, clock: Clock, rng: Random) -> None:
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                protocol=3,
                max_connections=CALLS_MAX + 1,
                timeout=CALL_S,
                socket_timeout=CALL_S,
                socket_connect_timeout=CALL_S,
                retry=Retry(NoBackoff(), 0),  # Whoever asks decides whether to ask again.
                # With these on, the driver hands out connections that the server has closed, and after a restart each
                # costs a question, enough to open a breaker. They are for Redis Enterprise.
                maint_notifications_config=MaintNotificationsConfig(enabled=False),
            )
        except ValueError:
            # Not in the parser's words: they may quote the password.
            raise ConfigurationError(
                "[cache] url is not valid",
                hint="redis://USER:PASSWORD@HOST:PORT/DATABASE, special characters percent-encoded",
            ) from None
        self._redis: Any = Redis.from_pool(pool)
        self._around = around or _alone
        self._clock = clock
        self._rng = rng
        self._heard: dict[str, list[Heard]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._scripts: dict[Script, Any] = {}
        self.live = False

    async def ask(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Every question to Redis.

        Args:
            work: is given the client.

        Raises:
            Full: it answers, and takes no writes.
            Unavailable: it does not answer, in time or at all, or was not asked because it did not a moment ago.

        Cancellation: the question goes on to its end, unseen.
        """
        if len(self._tasks) >= ASKED_MAX:
            raise Unavailable("too much is asked of Redis", retry_after_s=1.0)
        task: asyncio.Task[T] = asyncio.ensure_future(self._around(lambda: self._ask(work)))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def run_script(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script; raises as `ask`. The server knows it by its digest, and is told it again when it forgot it."""
        known = self._scripts.get(script)
        if known is None:
            known = self._scripts[script] = self._redis.register_script(script.source)
        return await self.ask(lambda _: known(keys=[PREFIX + key for key in keys], args=list(args)))

    async def _ask(self, work: Callable[[Any], Awaitable[T]]) -> T:
        try:
            return await work(self._redis)
        except (OutOfMemoryError, ReadOnlyError) as error:
            raise Full("Redis takes no writes", retry_after_s=1.0) from error
        except AuthenticationError as error:
            raise Unavailable("Redis refuses our credentials", hint="check [cache] url") from error
        except ResponseError as error:
            if str(error).startswith(_REFUSES):
                raise Full("Redis takes no writes", retry_after_s=1.0) from error
            raise Unavailable(f"Redis refuses: {error}", retry_after_s=1.0) from error
        except Exception as error:  # The driver says it in many ways; whoever asks goes on without an answer.
            raise Unavailable("Redis does not answer", retry_after_s=1.0) from error

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Whoever asked was told, or has given up.

    # Listening.

    def listen(self, channel: str, heard: Heard) -> None:
        """Have `heard` called with what is said in a channel, and with None whenever something may have been missed."""
        if PREFIX + channel not in self._heard:
            self.live = False  # Until the server has confirmed it.
        self._heard.setdefault(PREFIX + channel, []).append(heard)

    async def run(self) -> None:
        """Listen until cancelled, over a connection that is made anew whenever it is lost."""
        while True:
            try:
                await self._listen()
            except Exception:  # A defect too: the next connection will do, and everybody knows that nothing is heard.
                self.live = False
            finally:
                self._miss(live=False)
            await self._clock.sleep(self._rng.uniform(*PAUSE_S))

    async def _listen(self) -> None:
        async with self._redis.pubsub() as listening:
            asked, waiting = set[str](), set[str]()
            asked_at, heard_at = float("-inf"), self._clock.monotonic()
            while True:
                if fresh := {_ALL, *self._heard} - asked:
                    async with asyncio.timeout(2 * CALL_S):
                        await listening.subscribe(*fresh)
                    asked |= fresh
                    waiting |= fresh
                message = await listening.get_message(timeout=QUIET_S)
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise asyncio.CancelledError  # The driver may lose one that comes as a connection breaks.
                now = self._clock.monotonic()
                if message is None:
                    if now - heard_at > 3 * QUIET_S:
                        raise Unavailable("Redis says nothing any more")
                    if now - asked_at >= QUIET_S:
                        asked_at = now
                        await listening.ping()
                    continue
                heard_at = now
                channel = message["channel"].decode() if message["channel"] else ""
                if message["type"] == "subscribe":
                    waiting.discard(channel)
                    if not waiting:
                        self._miss(live=True)
                elif message["type"] == "message":
                    for heard in self._heard.get(channel, ()):
                        heard(message["data"])

    def _miss(self, *, live: bool) -> None:
        self.live = live
        for heard in [one for those in self._heard.values() for one in those]:
            heard(None)

    # How it is.

    async def probe(self) -> None:
        """Write something and read it back. Raises Full, Unavailable."""
        value = f"{self._rng.getrandbits(64):x}"
        key = f"{PREFIX}probe:{value}"

        async def work(redis: Any) -> Any:
            async with redis.pipeline(transaction=False) as pipeline:
                return await pipeline.set(key, value, px=10_000).get(key).execute()

        if (await self.ask(work))[1] != value.encode():
            raise Unavailable("Redis does not read back what was written", retry_after_s=1.0)

    async def examine(self) -> dict[str, Any]:
        """What the server says of itself: `redis_version`, `aof_enabled`, `maxmemory_policy` and more."""

        async def work(redis: Any) -> dict[str, Any]:
            found: dict[str, Any] = await redis.info("everything")
            return found

        return await self.ask(work)

    async def aclose(self) -> None:
        """Let what is asked end, then close; safe to call twice."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self._redis.aclose()


async def _alone(fn: Callable[[], Awaitable[Any]], /) -> Any:
    async with asyncio.timeout(CALL_S):
        return await fn()
