"""The stand-in for a mail server: ESMTP with STARTTLS, SIZE and optional AUTH, over aiosmtpd.

Facts: RFC 5321 for the conversation, RFC 3207 for STARTTLS, RFC 4954 for AUTH, RFC 3463 for the codes.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import secrets
import ssl
from email.message import EmailMessage
from typing import Any, ClassVar, cast

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from bellbuoy.sandbox.faults import Action, Delay, ErrorTable, Goaway, Hold, Refuse, Reset, Row
from bellbuoy.sandbox.http import Connection, Exchange, reset_transport
from bellbuoy.sandbox.listener import Listener
from bellbuoy.sandbox.received import Item
from bellbuoy.sandbox.station import HELD_MAX, Station, Surroundings

SIZE_BYTES_MAX = 10_485_760

TABLE = ErrorTable(
    rows={
        "4.2.1": Row(450, "The recipient is receiving mail at a rate that prevents more from being delivered"),
        "4.2.2": Row(452, "The recipient's inbox is out of storage space"),
        "4.3.0": Row(451, "Temporary failure, try again later"),
        "4.3.1": Row(452, "Insufficient system storage"),
        "4.3.2": Row(421, "Service not available, closing transmission channel"),
        "4.4.2": Row(421, "Connection timed out"),
        "4.7.0": Row(421, "Too many messages, try again later"),
        "4.7.1": Row(451, "Greylisted, try again later"),
        "5.1.1": Row(550, "The account does not exist"),
        "5.1.2": Row(550, "The domain does not exist"),
        "5.1.3": Row(553, "The address is not valid"),
        "5.2.1": Row(550, "The mailbox is disabled"),
        "5.2.2": Row(552, "The mailbox is over quota"),
        "5.3.4": Row(552, "The message is too large"),
        "5.6.0": Row(554, "The message content is not acceptable"),
        "5.7.0": Row(530, "Authentication required"),
        "5.7.1": Row(554, "Refused by policy"),
        "5.7.8": Row(535, "Authentication credentials invalid"),
    },
    outage="4.3.2",
    error_rate="4.3.0",
    quota="4.7.0",
    bad_credentials="5.7.8",
    unregistered="5.1.1",
    quota_retry_after_s=None,
)

MAGIC_ADDRESSES: dict[str, str] = {
    "sandbox-unknown": "5.1.1",
    "sandbox-disabled": "5.2.1",
    "sandbox-full": "4.2.2",
    "sandbox-greylist": "4.7.1",
    "sandbox-rejected": "5.7.1",
    "sandbox-unavailable": "4.3.2",
}
"""What an address contains, and the code it gets; also `sandbox-slow` (2 s) and `sandbox-hang` (30 s, no answer)."""

_ACTIONS = "bellbuoy_actions"


class Smtp(Station):
    """The mail server.

    Args:
        surroundings: clock, chance, log.
        username, password: the one account, for clients that authenticate; mail is taken without, too.
        tls: offered with STARTTLS.
    """

    name: ClassVar[str] = "smtp"
    table: ClassVar[ErrorTable] = TABLE

    def __init__(self, surroundings: Surroundings, *, username: str, password: str, tls: ssl.SSLContext) -> None:
        super().__init__(surroundings)
        self._username = username.encode()
        self._password = password.encode()
        self._tls = tls

    def protocol(self, listener: Listener) -> asyncio.BaseProtocol:
        """A protocol for one connection."""
        return SmtpConnection(self, listener, self._tls)

    # -- decisions -------------------------------------------------------------------------------------------------

    def closed_for(self, kinds: tuple[str, ...], *, logged: bool = True) -> Refuse | None:
        """The refusal of a fault of one of `kinds` that hits the whole server; `logged` counts it."""
        fault = self.faults.current
        if fault is None or fault.kind not in kinds or "match" in fault.wish:
            return None
        action = self.faults.decide("")
        if not isinstance(action, Refuse):
            return None
        if logged:
            self._log_refusal("", action)
        return action

    def knows(self, username: bytes, password: bytes) -> bool:
        """Whether these are the account's name and password."""
        right_name = secrets.compare_digest(username, self._username)
        return right_name and secrets.compare_digest(password, self._password)

    def decide(self, address: str) -> Action | None:
        """What happens to mail for `address`; a refusal is logged here, anything else by `deliver`."""
        action = self.faults.decide(address)
        if action is None and "sandbox-" in address:
            action = _magic(address)
        if isinstance(action, Refuse):
            self._log_refusal(address, action)
        return action

    def _log_refusal(self, address: str, refuse: Refuse) -> None:
        item = Item(provider=self.name, at=0.0, endpoint=address, status=refuse.row.status, error=refuse.code)
        self.received.add(item)

    # -- the end of a message ----------------------------------------------------------------------------------------

    async def deliver(self, connection: SmtpConnection, envelope: Envelope) -> str:
        """Log the mail, suffer what was decided for its recipients, and return the reply."""
        actions: list[Action] = getattr(envelope, _ACTIONS, [])
        silent = [action for action in actions if isinstance(action, Hold | Reset)]
        message = _parsed(envelope)
        deliver = all(action.deliver for action in silent)
        items = [
            self.received.add(_item(address, message, answered=not silent, delivered=deliver))
            for address in envelope.rcpt_tos
        ]
        for action in silent:
            await self._be_silent(connection, action)
        await self._be_late(items, max((each.after_s for each in actions if isinstance(each, Delay)), default=0.0))
        if any(isinstance(action, Goaway) for action in actions):
            connection.goaway()
        return f"250 2.0.0 OK: queued as {secrets.token_hex(6)}"

    async def _be_late(self, items: list[Item], delay_s: float) -> None:
        if delay_s <= 0:
            return
        self._held += 1
        try:
            await self.clock.sleep(delay_s)
        except asyncio.CancelledError:
            # The client hung up: it does not know that its mail was taken.
            for item in items:
                self.received.take_back(item)
            raise
        finally:
            self._held -= 1

    async def _be_silent(self, connection: SmtpConnection, action: Hold | Reset) -> None:
        if isinstance(action, Reset) or self._held >= HELD_MAX:
            connection.reset()
        elif action.after_s is not None:
            await self._wait(self.clock.sleep(action.after_s))
            connection.close()
        else:
            released = asyncio.Event()
            forget = self.hold(released.set)
            try:
                await self._wait(released.wait())
            finally:
                forget()
            connection.reset()
        # The end of the connection cancels this conversation; nothing may be said in the meantime.
        await asyncio.get_running_loop().create_future()

    async def _wait(self, wait: Any) -> None:
        self._held += 1
        try:
            await wait
        finally:
            self._held -= 1


class SmtpConnection(SMTP, Connection):
    """One client's conversation, and the hooks aiosmtpd calls."""

    def __init__(self, station: Smtp, listener: Listener, tls: ssl.SSLContext) -> None:
        self._station = station
        self._listener = listener
        self._tcp: asyncio.Transport | None = None
        self._ending = False
        super().__init__(
            self,
            hostname="localhost",
            ident="Bellbuoy sandbox ESMTP",
            data_size_limit=SIZE_BYTES_MAX,
            enable_SMTPUTF8=True,
            tls_context=tls,
            authenticator=self._judge_login,
            loop=asyncio.get_running_loop(),
        )

    # -- the transport's side ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._tcp is None:
            self._tcp = cast(asyncio.Transport, transport)
            self._listener.connections.add(self)
            refuse = self._station.closed_for(("outage",))
            if refuse is not None:
                super().connection_made(transport)
                self._tcp.write(_reply(refuse).encode() + b"\r\n")
                self._tcp.close()
                return
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._listener.connections.discard(self)
        super().connection_lost(error)

    def close(self) -> None:
        if self._tcp is not None:
            self._tcp.close()

    def reset(self) -> None:
        if self._tcp is not None:
            reset_transport(self._tcp)

    def goaway(self, reason: str | None = None, *, refuse: Exchange | None = None) -> None:
        # The next command gets 421; a client that waits for nothing learns it when it speaks.
        self._ending = True

    # -- aiosmtpd's hooks ----------------------------------------------------------------------------------------------

    def _judge_login(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, auth_data: object
    ) -> AuthResult:
        refuse = self._station.closed_for(("bad_credentials",))
        good = (
            refuse is None
            and isinstance(auth_data, LoginPassword)
            and self._station.knows(auth_data.login, auth_data.password)
        )
        return AuthResult(success=good, handled=False)

    async def handle_NOOP(self, server: SMTP, session: Session, envelope: Envelope, arg: str) -> str:
        refuse = self._station.closed_for(("outage",), logged=False)
        if refuse is not None:
            return self._last(_reply(refuse))
        return self._last("421 4.3.2 Service not available, closing transmission channel") if self._ending else "250 OK"

    async def handle_MAIL(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self._ending:
            return self._last("421 4.3.2 Service not available, closing transmission channel")
        refuse = self._station.closed_for(("outage", "bad_credentials"))
        if refuse is not None:
            return self._last(_reply(refuse)) if refuse.row.status == 421 else _reply(refuse)
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 OK"

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        action = self._station.decide(address)
        if isinstance(action, Refuse):
            return self._last(_reply(action)) if action.row.status == 421 else _reply(action)
        if isinstance(action, Goaway) and not action.deliver:
            return self._last("421 4.3.2 Service not available, closing transmission channel")
        if action is not None:
            setattr(envelope, _ACTIONS, [*getattr(envelope, _ACTIONS, []), action])
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        return await self._station.deliver(self, envelope)

    async def handle_exception(self, error: Exception) -> str:
        return "451 4.3.0 Temporary failure, try again later"

    def _last(self, reply: str) -> str:
        """`reply`, and the end of the conversation after it has left."""
        # The reply is written after this hook returns; the turn after that is early enough to hang up.
        asyncio.get_running_loop().call_later(0.01, self.close)
        return reply


def _reply(refuse: Refuse) -> str:
    code = refuse.code if refuse.code in TABLE.rows else f"{refuse.row.status // 100}.0.0"
    return f"{refuse.row.status} {code} {refuse.row.message}"


def _magic(address: str) -> Action | None:
    for part, code in MAGIC_ADDRESSES.items():
        if part in address:
            return Refuse(code, TABLE.rows[code])
    if "sandbox-slow" in address:
        return Delay(2.0)
    return Hold(30.0, deliver=True) if "sandbox-hang" in address else None


def _parsed(envelope: Envelope) -> EmailMessage:
    content = envelope.original_content or b""
    return email.message_from_bytes(content, policy=email.policy.default)


def _item(address: str, message: EmailMessage, *, answered: bool, delivered: bool) -> Item:
    message_id = _header(message, "Message-ID")
    body = message.get_body(("plain", "html"))
    try:
        shown = None if body is None else str(body.get_content()).strip()
    except (LookupError, UnicodeError, KeyError):
        shown = None
    headers = {name: str(value) for name, value in message.items() if name.lower() in _SHOWN}
    return Item(
        provider="smtp",
        at=0.0,
        id=message_id or secrets.token_hex(8),
        endpoint=address,
        collapse_id=message_id,
        item_id=message_id,
        title=_header(message, "Subject"),
        body=shown,
        headers=headers or None,
        status=250,
        delivered=delivered,
        answered=answered,
    )


def _header(message: EmailMessage, name: str) -> str | None:
    value = message.get(name)
    return None if value is None else str(value).strip()


_SHOWN = frozenset(("from", "to", "date", "message-id", "list-unsubscribe", "x-bellbuoy-id", "content-type"))
