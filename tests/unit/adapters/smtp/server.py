"""A mail server that answers each command as it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

HANG, DROP = "hang", "drop"
"""Instead of a reply: say nothing, or end the connection."""


class MailServer:
    """`replies` maps a command (`MAIL`, ..., `GREETING`, and `.` for the end of a mail) to a reply of its own."""

    def __init__(self, tls: ssl.SSLContext | None = None, *, starttls: bool = False, login: bool = False) -> None:
        self.tls = tls
        self.starttls = starttls
        self.login = login
        self.replies: dict[str, str] = {}
        self.sessions = 0
        self.open = 0
        self.commands: list[str] = []
        self.mails: list[bytes] = []
        self.secure: list[bool] = []
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[MailServer]:
        direct = None if self.starttls else self.tls
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=direct)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.drop_all()
            await server.wait_closed()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sessions += 1
        self.open += 1
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.append(task)
        # Cancelled only when the server ends, after which nobody asks for the handler's result.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError, _DroppedError):
            await self._session(reader, writer)
        self._writers.discard(writer)
        writer.transport.abort()
        self.open -= 1

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        secure = self.tls is not None and not self.starttls
        await self._say(writer, "GREETING", "220 ready")
        while line := await reader.readline():
            words = line.decode().strip()
            verb = words.partition(" ")[0].upper()
            self.commands.append(words)
            if verb == "EHLO":
                offers = ["250-mail.test", "250-8BITMIME"]
                offers += ["250-STARTTLS"] if self.starttls and not secure else []
                offers += ["250-AUTH PLAIN"] if self.login else []
                await self._say(writer, verb, "\r\n".join([*offers, "250 HELP"]))
            elif verb == "STARTTLS":
                await self._say(writer, verb, "220 go ahead")
                assert self.tls is not None
                await writer.start_tls(self.tls)
                secure = True
            elif verb == "DATA":
                await self._say(writer, verb, "354 go ahead")
                if self.replies.get(verb, "354").startswith("354"):
                    mail = (await reader.readuntil(b"\r\n.\r\n"))[:-3]
                    self.mails.append(mail.replace(b"\r\n..", b"\r\n."))
                    self.secure.append(secure)
                    await self._say(writer, ".", "250 2.0.0 Ok: queued as 4XyZ")
            else:
                usual = {"AUTH": "235 2.7.0 welcome", "QUIT": "221 bye"}
                await self._say(writer, verb, usual.get(verb, "250 2.0.0 ok"))

    async def _say(self, writer: asyncio.StreamWriter, verb: str, usual: str) -> None:
        reply = self.replies.get(verb, usual)
        if reply == HANG:
            await asyncio.Event().wait()
        if reply == DROP:
            raise _DroppedError
        writer.write(reply.encode() + b"\r\n")
        await writer.drain()


class _DroppedError(Exception):
    pass
