"""A mail server's address, and one session with it.

Source: RFC 5321 (SMTP), 3207 (STARTTLS), 4954 (AUTH).
"""

from __future__ import annotations

import contextlib
import re
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit

from aiosmtplib import SMTP, SMTPException, SMTPResponseException, SMTPServerDisconnected
from msgspec import Struct

from bellbuoy.adapters.smtp.answers import Stage
from bellbuoy.adapters.transport import is_loopback
from bellbuoy.errors import ConfigurationError, CredentialRejected

_URL_HINT = "set providers.smtp.url to smtp://[USER:PASSWORD@]HOST[:PORT] or smtps://..."


class Server(Struct, frozen=True):
    """Where mail goes: what `providers.smtp.url` says. `password` None: no login."""

    host: str
    port: int
    tls: bool
    starttls: Literal["required", "optional"]
    user: str = ""
    password: str | None = None

    @property
    def local(self) -> bool:
        return is_loopback(self.host)


def read_url(url: str) -> Server:
    """Read `smtp://` (port 587, STARTTLS) or `smtps://` (port 465, TLS from the first byte).

    STARTTLS is used where it is offered. A server that does not offer it is refused, unless it is this machine or the
    URL ends in `?starttls=optional`; a login is never sent to another machine without TLS.

    Raises:
        ConfigurationError: it is no such URL; the message never repeats it, since it may hold a password.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigurationError("providers.smtp.url cannot be read", hint=_URL_HINT) from None
    options = parse_qs(parts.query, keep_blank_values=True)
    starttls = options.pop("starttls", [""])
    if parts.scheme not in ("smtp", "smtps") or not host or parts.path.strip("/") or options or parts.fragment:
        raise ConfigurationError("providers.smtp.url is not an smtp or smtps URL", hint=_URL_HINT)
    if starttls not in ([""], ["required"], ["optional"]) or (parts.username is None) != (parts.password is None):
        raise ConfigurationError(
            "providers.smtp.url has a login without its other half, or an unknown starttls", hint=_URL_HINT
        )
    optional = starttls == ["optional"] or (starttls == [""] and is_loopback(host))
    return Server(
        host=host,
        port=port or (465 if parts.scheme == "smtps" else 587),
        tls=parts.scheme == "smtps",
        starttls="optional" if optional else "required",
        user=unquote(parts.username or ""),
        password=None if parts.password is None else unquote(parts.password),
    )


class Session:
    """One session with the server; used by one mail at a time."""

    def __init__(self, client: SMTP) -> None:
        self.client = client
        self.stage: Stage = "connect"
        self.idle_since = 0.0
        self.used = False

    async def open(self, server: Server, *, connect_timeout_s: float) -> None:
        """Connect, secure the line, log in.

        Raises:
            CredentialRejected: the line would not be secure, or the server offers no login.
        """
        await self.client.connect(timeout=connect_timeout_s)
        await self.client.ehlo()
        if not server.tls:
            if self.client.supports_extension("starttls"):
                await self.client.starttls()
                await self.client.ehlo()
            elif server.starttls == "required" or (server.password is not None and not server.local):
                raise CredentialRejected(
                    "the mail server offers no STARTTLS",
                    error_code="starttls_missing",
                    hint="use smtps://, or add ?starttls=optional to providers.smtp.url for mail without a login",
                )
        self.stage = "auth"
        if server.password is not None:
            if not self.client.supported_auth_methods:
                raise CredentialRejected(
                    "the mail server offers no login we know",
                    error_code="auth_missing",
                    hint="take the login out of providers.smtp.url, or use the server's submission port",
                )
            await self.client.login(server.user, server.password)

    async def transfer(self, sender: str, recipient: str, mail: bytes) -> str:
        """Hand one mail over; return the server's last words."""
        self.stage = "mail"
        await self.client.mail(sender)
        self.used = True
        self.stage = "rcpt"
        await self.client.rcpt(recipient)
        self.stage = "data"
        go_ahead = await self.client.execute_command(b"DATA")
        if go_ahead.code != 354:
            raise SMTPResponseException(go_ahead.code, go_ahead.message)
        protocol = self.client.protocol
        if protocol is None:
            raise SMTPServerDisconnected("lost")
        # The driver's own `data` does not tell a connection lost before the mail from one lost after it.
        protocol.write(re.sub(rb"(?m)^\.", b"..", mail) + b".\r\n")
        self.stage = "written"
        taken = await protocol.read_response(timeout=self.client.timeout)
        if taken.code != 250:
            raise SMTPResponseException(taken.code, taken.message)
        return taken.message

    def hang_up(self) -> None:
        """Say goodbye without waiting for the answer, and close."""
        with contextlib.suppress(SMTPException, OSError, RuntimeError):
            if self.client.is_connected and self.client.protocol is not None:
                self.client.protocol.write(b"QUIT\r\n")
        self.client.close()
