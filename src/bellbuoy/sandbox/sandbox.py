"""The sandbox as a whole: every stand-in on its port, one folder of credentials, and the settings that point there."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from bellbuoy.clock import Clock, SystemClock
from bellbuoy.sandbox.alerts import PagerDuty, Slack
from bellbuoy.sandbox.apns import Apns
from bellbuoy.sandbox.certificates import Credentials
from bellbuoy.sandbox.control import control_app
from bellbuoy.sandbox.fcm import Fcm
from bellbuoy.sandbox.http import Exchange, Handler
from bellbuoy.sandbox.http1 import Http1Connection, asgi_handler
from bellbuoy.sandbox.http2 import Http2Connection, Http2Settings
from bellbuoy.sandbox.jira import Jira
from bellbuoy.sandbox.listener import Listener
from bellbuoy.sandbox.received import ITEMS_MAX, Journal
from bellbuoy.sandbox.sms import Sms
from bellbuoy.sandbox.smtp import Smtp
from bellbuoy.sandbox.station import Background, Station, Surroundings

PROJECT_ID = "bellbuoy-sandbox"
APNS_TOPIC = "com.example.bellbuoy"
SMTP_FROM = "bellbuoy@example.com"
SMS_FROM = "+15005550006"
JIRA_PROJECT = "OPS"
_CLIENT_EMAIL = f"sender@{PROJECT_ID}.iam.gserviceaccount.com"


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSettings:
    """Where the sandbox listens and keeps its files.

    Attributes:
        host: the address every listener binds.
        control_port, fcm_port, apns_port, smtp_port, sms_port, alerts_port: 0 takes a free one.
        data_dir: credentials and the log of what arrived are kept in its folder `sandbox`; None keeps both in a
            temporary folder for the life of the process.
        fcm_streams_max: concurrent HTTP/2 streams an FCM connection may have; more end it, as Google's do.
        apns_streams_max: the same for APNs after the first good push; more are refused.
        fcm_idle_s: seconds after which a silent FCM connection is closed; None never.
        items_max: messages whose summary is kept for each provider.
    """

    host: str = "127.0.0.1"
    control_port: int = 0
    fcm_port: int = 0
    apns_port: int = 0
    smtp_port: int = 0
    sms_port: int = 0
    alerts_port: int = 0
    data_dir: Path | None = None
    fcm_streams_max: int = 100
    apns_streams_max: int = 1_000
    fcm_idle_s: float | None = 180.0
    items_max: int = ITEMS_MAX


class Sandbox:
    """Every stand-in, started and stopped together.

    Args:
        settings: ports and folders.
        clock: for token ages, faults' times and the log; share it with the service under test.
        rng: for rates, shares and jitter.
    """

    def __init__(
        self, settings: SandboxSettings, *, clock: Clock | None = None, rng: random.Random | None = None
    ) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()
        self._background = Background()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._credentials: Credentials | None = None
        self._journal = Journal(None)
        self._listeners: dict[str, Listener] = {}
        self._stations: dict[str, Station] = {}
        self.control_app: Starlette = control_app(self._stations, lambda: self.urls)

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read or make the credentials, take in the log of before, bind every port. Once.

        Raises:
            ConfigurationError: a port cannot be bound.
            OSError: the folder cannot be written.
        """
        if self._credentials is not None:
            return
        try:
            folder = self._folder()
            self._credentials = await asyncio.to_thread(Credentials, folder, self._settings.host)
            self._journal = Journal(None if self._settings.data_dir is None else folder / "received.ndjson")
            self._make_stations(self._credentials)
            await asyncio.to_thread(self._reload)
            await self._listen(self._credentials)
        except BaseException:
            await self.aclose()
            raise

    async def run(self) -> None:
        """Serve until cancelled; starts first when `start` was not called. Everything is closed on the way out."""
        try:
            await self.start()
            await asyncio.Event().wait()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Stop listening, end every connection and wait, flush the log. Safe to call twice."""
        await asyncio.gather(*(listener.aclose() for listener in self._listeners.values()))
        await self._background.aclose()
        self._journal.close()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    # -- what a client needs ---------------------------------------------------------------------------------------

    @property
    def urls(self) -> dict[str, str]:
        """Each listener's address by name, `control` among them."""
        return {name: f"{_SCHEMES[name]}://{self._address(name)}" for name in self._listeners}

    @property
    def stations(self) -> dict[str, Station]:
        """The stand-ins by provider: for tests in the same process, which need no HTTP to set a fault."""
        return dict(self._stations)

    def wiring(self) -> dict[str, dict[str, Any]]:
        """The settings that point a service at this sandbox; call it after `start`."""
        credentials = self._started()
        keys = credentials.secrets
        urls = self.urls
        return {
            "tls": {"ca_file": str(credentials.ca_file)},
            "providers": {
                "fcm": {
                    "base_url": urls["fcm"],
                    "project_id": PROJECT_ID,
                    "credentials_file": str(credentials.service_account_file),
                },
                "apns": {
                    "base_url": urls["apns"],
                    "team_id": keys.apns_team_id,
                    "key_id": keys.apns_key_id,
                    "key_file": str(credentials.apns_key_file),
                    "topic": APNS_TOPIC,
                    # Unlike Apple it minds no probes.
                    "probe_interval_s": 0.5,
                },
                "smtp": {"url": urls["smtp"], "from": SMTP_FROM},
                "sms": {
                    "base_url": urls["sms"],
                    "account_sid": keys.sms_account_sid,
                    "auth_token": keys.sms_auth_token,
                    "from": SMS_FROM,
                },
            },
            "alerts": {
                "pagerduty": {"base_url": urls["alerts"], "routing_key": keys.pagerduty_routing_key},
                "slack": {"webhook_url": urls["alerts"] + keys.slack_path},
                "jira": {
                    "base_url": urls["alerts"],
                    "email": keys.jira_email,
                    "api_token": keys.jira_api_token,
                    "project": JIRA_PROJECT,
                },
            },
        }

    # -- assembly --------------------------------------------------------------------------------------------------

    def _folder(self) -> Path:
        if self._settings.data_dir is not None:
            return self._settings.data_dir / "sandbox"
        self._temporary = tempfile.TemporaryDirectory(prefix="bellbuoy-sandbox-")
        return Path(self._temporary.name)

    def _make_stations(self, credentials: Credentials) -> None:
        surroundings = Surroundings(self._clock, self._rng, self._journal, self._background, self._settings.items_max)
        keys = credentials.secrets
        self._fcm = Fcm(
            surroundings,
            project_id=PROJECT_ID,
            client_email=_CLIENT_EMAIL,
            public_key=credentials.fcm_public_key,
        )
        self._apns = Apns(
            surroundings,
            team_id=keys.apns_team_id,
            key_id=keys.apns_key_id,
            public_key=credentials.apns_public_key,
            topic=APNS_TOPIC,
        )
        self._smtp = Smtp(
            surroundings,
            username=keys.smtp_username,
            password=keys.smtp_password,
            tls=credentials.server_context(alpn=None),
        )
        self._sms = Sms(surroundings, account_sid=keys.sms_account_sid, auth_token=keys.sms_auth_token)
        self._pagerduty = PagerDuty(surroundings, routing_key=keys.pagerduty_routing_key)
        self._slack = Slack(surroundings, path=keys.slack_path)
        self._jira = Jira(surroundings, email=keys.jira_email, api_token=keys.jira_api_token, project=JIRA_PROJECT)
        alerts = (self._pagerduty, self._slack, self._jira)
        for station in alerts:
            station.neighbours = alerts
        for each in (self._fcm, self._apns, self._smtp, self._sms, *alerts):
            self._stations[each.name] = each

    def _reload(self) -> None:
        for record in self._journal.load():
            station = self._stations.get(record.provider)
            if station is not None:
                station.received.replay(record)

    async def _listen(self, credentials: Credentials) -> None:
        settings = self._settings
        flush = self._journal.flush
        tls = credentials.server_context(alpn="h2")
        fcm = Http2Settings(
            streams_max=settings.fcm_streams_max, excess="goaway", idle_s=settings.fcm_idle_s, answered=flush
        )
        apns = Http2Settings(streams_max=settings.apns_streams_max, streams_at_first=1, answered=flush)
        self._listeners = {
            "fcm": self._listener(settings.fcm_port, _http2(self._fcm.handle, fcm), tls),
            "apns": self._listener(settings.apns_port, _http2(self._apns.handle, apns), tls),
            "smtp": self._listener(settings.smtp_port, self._smtp.protocol),
            "sms": self._listener(settings.sms_port, _http1(self._sms.handle, flush)),
            "alerts": self._listener(settings.alerts_port, _http1(self._alert, flush)),
            "control": self._listener(settings.control_port, _http1(asgi_handler(self.control_app, self._background))),
        }
        for name, station in self._stations.items():
            station.listener = self._listeners.get(name, self._listeners["alerts"])
        for listener in self._listeners.values():
            await listener.start()
        token_uri = f"{self.urls['fcm']}/token"
        self._fcm.token_uris = (token_uri,)
        credentials.write_service_account(project_id=PROJECT_ID, client_email=_CLIENT_EMAIL, token_uri=token_uri)

    def _alert(self, exchange: Exchange) -> None:
        """The three alert systems share a port; their paths tell them apart."""
        path = exchange.request.path
        if path.startswith("/services/"):
            self._slack.handle(exchange)
        elif path.startswith("/rest/"):
            self._jira.handle(exchange)
        else:
            self._pagerduty.handle(exchange)

    def _listener(self, port: int, factory: Callable[[Listener], asyncio.BaseProtocol], tls: Any = None) -> Listener:
        return Listener(self._settings.host, port, factory, tls=tls)

    def _address(self, name: str) -> str:
        host = self._settings.host
        # A client cannot connect to "any address", but loopback is one of them.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
        return f"[{host}]:{self._listeners[name].port}" if ":" in host else f"{host}:{self._listeners[name].port}"

    def _started(self) -> Credentials:
        if self._credentials is None or not self._listeners:
            raise RuntimeError("the sandbox has not been started")
        return self._credentials


_SCHEMES = {
    "fcm": "https",
    "apns": "https",
    "smtp": "smtp",
    "sms": "http",
    "alerts": "http",
    "control": "http",
}


def _http2(handler: Handler, settings: Http2Settings) -> Callable[[Listener], asyncio.BaseProtocol]:
    return lambda listener: Http2Connection(listener, handler, settings)


def _http1(handler: Handler, flush: Callable[[], None] | None = None) -> Callable[[Listener], asyncio.BaseProtocol]:
    return lambda listener: Http1Connection(listener, handler, flush)
