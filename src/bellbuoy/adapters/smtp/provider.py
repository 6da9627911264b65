"""Mail over a submission server as a `Provider`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.errors import MessageError
from email.utils import formataddr, parseaddr
from pathlib import Path
from typing import ClassVar

from aiosmtplib import SMTP, SMTPException, SMTPResponseException

from bellbuoy.adapters.smtp.answers import explain
from bellbuoy.adapters.smtp.mail import ADDRESS, CONTROL, compose, queue_name
from bellbuoy.adapters.smtp.session import Session, read_url
from bellbuoy.clock import Clock
from bellbuoy.errors import ConfigurationError, CredentialRejected, Permanent, ProviderError, Transient
from bellbuoy.model.delivery import Message, ProviderName, Receipt


class SmtpProvider:
    """Sends each message as one mail, over a few sessions that are used again.

    A mail whose end was written and not answered is `OutcomeUnknown`; everything before that is safe to repeat.

    Args:
        url: see `read_url`.
        sender: `ADDRESS` or `Name <ADDRESS>`.
        ca_file: a PEM file of certificate authorities to trust besides the system's; None for none.
        clock: dates the mails.
        connections_max: sessions at most; a mail waits for one as long as its guard lets it.
        connect_timeout_s: seconds for name, TCP and TLS.
        answer_timeout_s: seconds for each reply, so that no wait is unbounded.
        idle_s: seconds after which an unused session is closed; servers do so themselves after five minutes.
        check_after_s: seconds of rest after which a session is asked whether it lives (NOOP) before it is used.

    Raises:
        ConfigurationError: an argument is not usable.
    """

    name: ClassVar[ProviderName] = "smtp"

    server_error_wait_s: float = 60.0
    """Seconds to wait at least after a server's failure; mail is not in a hurry, and RFC 5321 asks for patience."""

    def __init__(
        self,
        *,
        url: str,
        sender: str,
        ca_file: str | Path | None = None,
        clock: Clock,
        connections_max: int = 10,
        connect_timeout_s: float = 5.0,
        answer_timeout_s: float = 30.0,
        idle_s: float = 60.0,
        check_after_s: float = 10.0,
    ) -> None:
        self._server = read_url(url)
        shown, self._sender = parseaddr(sender)
        # A list of addresses would be read as its first one, so what was read must be all there is.
        whole = sender.strip().endswith((self._sender, f"<{self._sender}>"))
        if not ADDRESS.fullmatch(self._sender) or not whole or CONTROL.search(sender):
            raise ConfigurationError(
                "providers.smtp.from is not a mail address", hint="set it to ADDRESS or Name <ADDRESS>"
            )
        self._from = formataddr((shown, self._sender))
        self._tls = ssl.create_default_context()
        if ca_file is not None:
            try:
                self._tls.load_verify_locations(cafile=str(ca_file))
            except (OSError, ssl.SSLError):
                raise ConfigurationError(
                    f"tls.ca_file {str(ca_file)!r} cannot be read as PEM certificates",
                    hint="set tls.ca_file to a file with one or more PEM certificates, or leave it out",
                ) from None
        self._clock = clock
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._idle_s = idle_s
        self._check_after_s = check_after_s
        self._places = asyncio.Semaphore(connections_max)
        self._idle: list[Session] = []
        self._busy: set[Session] = set()
        self._closed = False

    async def send(self, message: Message) -> Receipt:
        """See `Provider.send`."""
        if not ADDRESS.fullmatch(message.endpoint):
            raise Permanent("the mail address is malformed", error_code="malformed_address")
        try:
            mail = compose(message, self._from, datetime.fromtimestamp(self._clock.time(), UTC))
        except (MessageError, ValueError):
            mail = None
        if mail is None:
            raise Permanent("the content cannot be written as a mail", error_code="unsendable")
        async with self._places:
            failure = await self._attempt(message.endpoint, mail)
            if failure is None:
                # A session that rested had been closed at the other end: this is the same attempt on a new one.
                failure = await self._attempt(message.endpoint, mail, fresh=True)
        if isinstance(failure, Receipt):
            return failure
        assert failure is not None
        raise failure

    async def probe(self) -> None:
        """Ask a session to do nothing (NOOP): it shows that the server answers and that our login is good."""
        async with self._places:
            failure = await self._ask_nothing()
        if failure is not None:
            raise failure

    async def renew(self) -> None:
        """See `Provider.renew`; mail that is being handed over ends as it will."""
        for connection in self._idle:
            connection.hang_up()
        self._idle.clear()

    async def aclose(self) -> None:
        """See `Provider.aclose`."""
        self._closed = True
        for connection in (*self._idle, *self._busy):
            connection.hang_up()
        self._idle.clear()

    async def _attempt(self, recipient: str, mail: bytes, *, fresh: bool = False) -> Receipt | ProviderError | None:
        """One mail over one session; None when the session was an old one and dead before it had the mail."""
        async with self._session(fresh) as session:
            if isinstance(session, ProviderError):
                return session
            old = session.used
            try:
                words = await session.transfer(self._sender, recipient, mail)
            except (SMTPException, OSError, ValueError) as error:
                answered = error.code if isinstance(error, SMTPResponseException) else None
                if answered is None or answered == 421 or not await self._reset(session):
                    session.hang_up()
                if old and session.stage == "mail" and answered in (None, 421):
                    return None
                return explain(error, session.stage)
            return Receipt(250, queue_name(words))

    async def _ask_nothing(self) -> ProviderError | None:
        async with self._session(fresh=False) as session:
            if isinstance(session, ProviderError):
                return session
            try:
                await session.client.noop()
            except (SMTPException, OSError) as error:
                session.hang_up()
                return explain(error, "mail")
            return None

    @contextlib.asynccontextmanager
    async def _session(self, fresh: bool) -> AsyncIterator[Session | ProviderError]:
        """Lend a session, old or new; it is kept if it is still connected and nobody was cancelled in the middle."""
        session = None if fresh else await self._rested()
        if session is None:
            opened = await self._open()
            if isinstance(opened, ProviderError):
                yield opened
                return
            session = opened
        self._busy.add(session)
        kept = False
        try:
            yield session
            kept = True
        finally:
            self._busy.discard(session)
            if kept and session.client.is_connected and not self._closed:
                loop = asyncio.get_running_loop()
                session.idle_since = loop.time()
                self._idle.append(session)
                loop.call_later(self._idle_s, self._close_rested)
            else:
                session.hang_up()

    async def _rested(self) -> Session | None:
        """The session used last, if there is one that lives."""
        while self._idle:
            session = self._idle.pop()
            rest_s = asyncio.get_running_loop().time() - session.idle_since
            alive = session.client.is_connected and rest_s < self._idle_s
            if alive and rest_s >= self._check_after_s:
                try:
                    await session.client.noop()
                except (SMTPException, OSError):
                    alive = False
                except asyncio.CancelledError:
                    session.hang_up()
                    raise
            if alive:
                return session
            session.hang_up()
        return None

    async def _open(self) -> Session | ProviderError:
        if self._closed:
            return Transient("the provider is closed", error_code="transport_closed")
        server = self._server
        session = Session(
            SMTP(
                hostname=server.host,
                port=server.port,
                use_tls=server.tls,
                start_tls=False,
                tls_context=self._tls,
                timeout=self._answer_timeout_s,
                local_hostname=socket.gethostname() or "localhost",
            )
        )
        ready = False
        try:
            await session.open(server, connect_timeout_s=self._connect_timeout_s)
            ready = True
        except CredentialRejected as error:
            return error
        except (SMTPException, OSError, ValueError) as error:
            return explain(error, session.stage)
        finally:
            if not ready:
                session.hang_up()
        return session

    async def _reset(self, session: Session) -> bool:
        """Clear a refused mail from the session; False when the session is of no more use."""
        try:
            await session.client.rset()
        except (SMTPException, OSError):
            return False
        return True

    def _close_rested(self) -> None:
        until = asyncio.get_running_loop().time() - self._idle_s
        for session in [s for s in self._idle if s.idle_since <= until or not s.client.is_connected]:
            self._idle.remove(session)
            session.hang_up()
