"""Tickets in Jira Cloud over its REST API v3, as a `Pager`.

Source: Atlassian's "Jira Cloud platform REST API v3", groups Issues, Issue search and Issue comments, and its
"Atlassian Document Format".
"""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct

from bellbuoy.adapters.text import cut
from bellbuoy.adapters.transport import Headers, Response, Transport, checked_url, retry_after_s
from bellbuoy.clock import Clock
from bellbuoy.errors import (
    ConfigurationError,
    CredentialRejected,
    OutcomeUnknown,
    Permanent,
    ProviderError,
    Transient,
)
from bellbuoy.model.operation import Alert

SUMMARY_CHARS_MAX = 255
DESCRIPTION_CHARS_MAX = 16_384
"""The longest description; a field may have 32,767 characters, of which the document's form takes some."""

QUOTA_WAIT_S = 30.0
"""Seconds to wait after a 429 without Retry-After; Jira counts over minutes and hours."""

_API = "/rest/api/3"
_DONE_NAMES = frozenset({"done", "resolved", "closed"})
_encode = msgspec.json.Encoder().encode


class _Category(Struct, frozen=True):
    key: str = ""


class _Status(Struct, frozen=True, rename="camel"):
    name: str = ""
    status_category: _Category = _Category()

    @property
    def done(self) -> bool:
        """Whether it ends a ticket: by its category, by its name where it has none."""
        return self.status_category.key == "done" or (not self.status_category.key and self.name.lower() in _DONE_NAMES)


class _Fields(Struct, frozen=True):
    status: _Status = _Status()


class _Ticket(Struct, frozen=True):
    key: str
    fields: _Fields = _Fields()


class _Found(Struct, frozen=True):
    issues: list[_Ticket] = []


class _Transition(Struct, frozen=True):
    id: str
    to: _Status = _Status()


class _Transitions(Struct, frozen=True):
    transitions: list[_Transition] = []


class _Problem(Struct, frozen=True):
    errors: dict[str, Any] = {}


def classify(http: int, body: bytes, retry_after: str | None, now: float) -> ProviderError:
    """Return what an answer other than 2xx means for the ticket.

    A 503 was not worked on; after any other 5xx the ticket may have been made before something failed.

    Args:
        http: the HTTP status.
        body: the answer's body; of a 400 the names of the fields that were refused are told, never their contents.
        retry_after: the Retry-After header, None when there was none.
        now: epoch seconds, for a Retry-After that is a date.
    """
    wait_s = retry_after_s(retry_after, now)
    if http == 429:
        return Transient(
            "Jira asks for less",
            throttled=True,
            provider_status=http,
            retry_after_s=QUOTA_WAIT_S if wait_s is None else wait_s,
        )
    if http in (408, 503):
        return Transient(f"Jira failed with HTTP {http}", provider_status=http, retry_after_s=wait_s)
    if http >= 500:
        return OutcomeUnknown(f"Jira failed with HTTP {http}", provider_status=http, retry_after_s=wait_s)
    if http in (401, 403, 404, 405, 410) or http < 400:
        return CredentialRejected(
            f"Jira refused our account, project or address with HTTP {http}",
            provider_status=http,
            hint="check alerts.jira.base_url, email, api_token and project, and that the account may create there",
        )
    fields = ", ".join(sorted(_refused(body)))
    return Permanent(
        f"Jira refused the ticket as it stands with HTTP {http}" + (f": {fields}" if fields else ""),
        provider_status=http,
        hint="check alerts.jira.project and issue_type, and which fields the project wants" if fields else None,
    )


def _refused(body: bytes) -> list[str]:
    try:
        names = msgspec.json.decode(body, type=_Problem).errors
    except msgspec.MsgspecError:
        return []
    return [name for name in names if re.fullmatch(r"[A-Za-z0-9_]{1,40}", name)]


class Jira:
    """Keeps one ticket for an incident, which its label finds again.

    Creating is not idempotent, so the label is searched for first. The search lags behind by some seconds, so after an
    attempt of unknown outcome the next one waits for `repeat_after_s`.

    Args:
        base_url: `https://SITE.atlassian.net`.
        email, api_token: the account.
        project: its key.
        issue_type: the name of a type of issue that the project has.
        transport: closed with it.
        clock: its wall time reads a Retry-After that is a date.

    Raises:
        ConfigurationError: an argument is missing or not usable.
    """

    name: ClassVar[str] = "jira"
    repeat_after_s: ClassVar[float] = 60.0
    repeats_max: ClassVar[int | None] = None

    def __init__(
        self,
        *,
        base_url: str,
        email: str,
        api_token: str,
        project: str,
        issue_type: str = "Task",
        transport: Transport,
        clock: Clock,
    ) -> None:
        for setting, value in (("email", email), ("api_token", api_token), ("issue_type", issue_type)):
            if not value:
                raise ConfigurationError(f"alerts.jira.{setting} is missing", hint=f"set alerts.jira.{setting}")
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", project):
            raise ConfigurationError(
                "alerts.jira.project is not a project's key", hint="set alerts.jira.project to a key such as OPS"
            )
        self._base = checked_url(base_url, "alerts.jira.base_url") + _API
        self._project = project
        self._issue_type = issue_type
        basic = base64.b64encode(f"{email}:{api_token}".encode()).decode()
        self._headers: Headers = (
            ("authorization", f"Basic {basic}"),
            ("accept", "application/json"),
            ("content-type", "application/json"),
        )
        self._transport = transport
        self._clock = clock

    async def send(self, alert: Alert) -> str | None:
        """See `Pager.send`; returns the ticket's key, None where nothing is known of the incident that ended."""
        ticket = await self._read(alert.reference) if alert.reference else None
        ticket = ticket or await self._find(alert.incident)
        if alert.action == "trigger":
            return ticket.key if ticket else await self._create(alert)
        if ticket is None:
            return None
        if not ticket.fields.status.done:
            await self._comment(ticket.key, alert)
            if alert.action == "resolve":
                await self._end(ticket.key)
        return ticket.key

    async def probe(self) -> None:
        """Look at the project: it shows that Jira answers and that our account may see it."""
        await self._get(f"/project/{self._project}", dict[str, Any])

    async def aclose(self) -> None:
        """See `Pager.aclose`."""
        await self._transport.aclose()

    async def _find(self, incident: str) -> _Ticket | None:
        jql = f'project = "{self._project}" AND labels = "{_label(incident)}" ORDER BY created ASC'
        question = {"jql": jql, "maxResults": 1, "fields": ["status"]}
        try:
            answer = await self._post("/search/jql", question)
        except OutcomeUnknown as error:
            raise _only_asked(error) from None
        found = _decoded(answer, _Found).issues
        return found[0] if found else None

    async def _read(self, key: str) -> _Ticket | None:
        """The ticket itself, which is there before the search finds it; None when somebody has deleted it."""
        try:
            return await self._get(f"/issue/{quote(key, safe='')}?fields=status", _Ticket)
        except CredentialRejected as error:
            if error.provider_status != 404:
                raise
            return None

    async def _create(self, alert: Alert) -> str | None:
        when = datetime.fromtimestamp(alert.at, UTC).isoformat()
        fields = {
            "project": {"key": self._project},
            "issuetype": {"name": self._issue_type},
            "summary": _line(alert.title, SUMMARY_CHARS_MAX),
            "labels": ["bellbuoy", _label(alert.incident)],
            "description": _document(
                _paragraph(_text(alert.description[:DESCRIPTION_CHARS_MAX])),
                _paragraph(_text(f"Severity {alert.severity}, component {alert.component}, since {when}.")),
                _paragraph(_text("Runbook: "), _link(alert.runbook)),
            ),
        }
        answer = await self._post("/issue", {"fields": fields})
        try:
            return _decoded(answer, _Ticket).key
        except Transient:
            # The ticket is there, whatever was said of it.
            return None

    async def _comment(self, key: str, alert: Alert) -> None:
        said = _document(_paragraph(_text(alert.title)), _paragraph(_text(alert.description[:DESCRIPTION_CHARS_MAX])))
        await self._post(f"/issue/{quote(key, safe='')}/comment", {"body": said})

    async def _end(self, key: str) -> None:
        """Move the ticket to where it is done, if its workflow has a way there; the comment has told all the same."""
        path = f"/issue/{quote(key, safe='')}/transitions"
        ways = (await self._get(path, _Transitions)).transitions
        way = next((one for one in ways if one.to.done), None)
        if way is not None:
            await self._post(path, {"transition": {"id": way.id}})

    async def _get(self, path: str, kind: type[Kind]) -> Kind:
        try:
            answer = await self._transport.get(self._base + path, self._headers)
            if answer.status != 200:
                raise self._failure(answer)
        except OutcomeUnknown as error:
            raise _only_asked(error) from None
        return _decoded(answer, kind)

    async def _post(self, path: str, document: dict[str, Any]) -> Response:
        answer = await self._transport.post(self._base + path, self._headers, _encode(document))
        if not 200 <= answer.status < 300:
            raise self._failure(answer)
        return answer

    def _failure(self, answer: Response) -> ProviderError:
        return classify(answer.status, answer.body, answer.headers.get("retry-after"), self._clock.time())


Kind = TypeVar("Kind")


def _decoded(answer: Response, kind: type[Kind]) -> Kind:
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except msgspec.MsgspecError:
        raise Transient("Jira's answer cannot be read", provider_status=answer.status) from None


def _only_asked(error: OutcomeUnknown) -> Transient:
    """A question that was not answered has changed nothing."""
    return Transient(
        str(error),
        provider_status=error.provider_status,
        error_code=error.error_code,
        retry_after_s=error.retry_after_s,
    )


def _label(incident: str) -> str:
    """A label may have no spaces, and must not end the text of a query."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", incident)[:255]


def _line(text: str, chars_max: int) -> str:
    return cut(" ".join(text.split()), chars_max)


def _text(text: str) -> dict[str, Any]:
    # A text node must not be empty.
    return {"type": "text", "text": text or "-"}


def _link(url: str) -> dict[str, Any]:
    return {**_text(url), "marks": [{"type": "link", "attrs": {"href": url}}]}


def _paragraph(*nodes: dict[str, Any]) -> dict[str, Any]:
    return {"type": "paragraph", "content": list(nodes)}


def _document(*paragraphs: dict[str, Any]) -> dict[str, Any]:
    return {"type": "doc", "version": 1, "content": list(paragraphs)}
