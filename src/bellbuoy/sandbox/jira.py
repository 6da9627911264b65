"""The stand-in for Jira Cloud's REST API v3: issues, search by label, comments and transitions of one project.

Facts: https://developer.atlassian.com/cloud/jira/platform/rest/v3/, groups "Issues" and "Issue search". Creating is not
idempotent there, so it is not here.
"""

from __future__ import annotations

import base64
import re
import secrets
from typing import Any, ClassVar
from urllib.parse import parse_qs

import msgspec

from bellbuoy.sandbox.alerts import decoded, retry_after
from bellbuoy.sandbox.faults import ErrorTable, Refuse, Row
from bellbuoy.sandbox.http import Exchange, HttpAnswer, HttpRequest
from bellbuoy.sandbox.received import Item
from bellbuoy.sandbox.station import HttpStation, Surroundings, Verdict, text

SUMMARY_CHARS_MAX = 255
ISSUES_MAX = 10_000

_API = "/rest/api/3"
_JSON = (("content-type", "application/json;charset=UTF-8"),)
_LABELS = re.compile(
    r"""labels?\s*(?:=|in)\s*\(?\s*((?:"[^"]*"|'[^']*'|[\w.:\-]+)(?:\s*,\s*(?:"[^"]*"|'[^']*'|[\w.:\-]+))*)"""
)
_PROJECT = re.compile(r"""project\s*=\s*["']?([A-Za-z0-9_]+)""")
_OPEN_ONLY = re.compile(
    r"""statusCategory\s*!=\s*["']?Done|resolution\s*(?:=\s*Unresolved|is\s+EMPTY)""", re.IGNORECASE
)
_ISSUE = re.compile(rf"^{_API}/issue/([A-Z0-9_]+-\d+)(?:/(comment|transitions))?$")
_TRANSITIONS = {"11": "To Do", "21": "In Progress", "31": "Done"}
_encode = msgspec.json.Encoder().encode


class Jira(HttpStation):
    """Atlassian's side.

    Args:
        surroundings: clock, chance, log.
        email, api_token: the one user.
        project: the one project's key.
    """

    name: ClassVar[str] = "jira"
    table: ClassVar[ErrorTable] = ErrorTable(
        rows={
            "invalid": Row(400, "Field values are not valid."),
            "unauthorized": Row(401, "Client must be authenticated to access this resource."),
            "forbidden": Row(403, "You do not have permission to create issues in this project."),
            "not_found": Row(404, "Issue does not exist or you do not have permission to see it."),
            "too_large": Row(413, "Request entity too large."),
            "rate_limited": Row(429, "Rate limit exceeded."),
            "internal": Row(500, "Internal server error"),
            "unavailable": Row(503, "Service Unavailable"),
        },
        outage="unavailable",
        error_rate="internal",
        quota="rate_limited",
        bad_credentials="unauthorized",
        unregistered="not_found",
    )

    def __init__(self, surroundings: Surroundings, *, email: str, api_token: str, project: str) -> None:
        super().__init__(surroundings)
        self._basic = base64.b64encode(f"{email}:{api_token}".encode()).decode()
        self._email = email
        self._project = project
        self._made = 0
        self.issues: dict[str, dict[str, Any]] = {}
        """Issues by key, the eldest first."""

    def judge(self, exchange: Exchange) -> Verdict:
        request = exchange.request
        scheme, _, basic = request.headers.get("authorization", "").partition(" ")
        known = scheme.lower() == "basic" and secrets.compare_digest(basic.strip().encode(), self._basic.encode())
        creates = request.method == "POST" and request.path == f"{_API}/issue"
        if creates:
            return self._create(request, known)
        answer = self._other(request) if known else self._refuse_with("unauthorized", request)
        return Verdict(answer, Item(provider=self.name, at=0.0), counts=False)

    def refusal(self, refuse: Refuse, request: HttpRequest) -> HttpAnswer:
        body = {"errorMessages": [refuse.row.message or refuse.code], "errors": {}}
        return HttpAnswer(refuse.row.status, _encode(body), _JSON + retry_after(refuse))

    def _refuse_with(self, code: str, request: HttpRequest) -> HttpAnswer:
        return self.refusal(Refuse(code, self.table.rows[code]), request)

    # -- creating --------------------------------------------------------------------------------------------------

    def _create(self, request: HttpRequest, known: bool) -> Verdict:
        fields = decoded(request.body).get("fields")
        fields = fields if isinstance(fields, dict) else {}
        labels = fields.get("labels")
        names = sorted(label for label in labels if isinstance(label, str)) if isinstance(labels, list) else []
        item = Item(
            provider=self.name,
            at=0.0,
            endpoint=self._project,
            collapse_id=",".join(names) or None,
            item_id=",".join(names) or None,
            title=text(fields.get("summary")),
            data=fields or None,
            status=201,
        )
        problems = self._problems(fields, labels)
        if not known or problems:
            code = "invalid" if known else "unauthorized"
            row = self.table.rows[code]
            item.status, item.error = row.status, code
            answer = self._refuse_with(code, request)
            if known:
                answer = HttpAnswer(400, _encode({"errorMessages": [], "errors": problems}), _JSON)
            return Verdict(answer, item)
        issue = self._store(fields, names)
        item.delivered, item.id = True, issue["key"]
        made = {name: issue[name] for name in ("id", "key", "self")}
        return Verdict(HttpAnswer(201, _encode(made), _JSON), item)

    def _problems(self, fields: dict[str, Any], labels: object) -> dict[str, str]:
        project, kind, summary = fields.get("project"), fields.get("issuetype"), fields.get("summary")
        problems: dict[str, str] = {}
        if not isinstance(project, dict) or project.get("key") != self._project:
            problems["project"] = "Specify a valid project ID or key"
        if not isinstance(kind, dict) or not (kind.get("name") or kind.get("id")):
            problems["issuetype"] = "Specify an issue type"
        if not isinstance(summary, str) or not summary.strip():
            problems["summary"] = "You must specify a summary of the issue."
        elif len(summary) > SUMMARY_CHARS_MAX or "\n" in summary:
            problems["summary"] = "Summary must be one line of at most 255 characters."
        if isinstance(labels, list) and any(not isinstance(label, str) or " " in label for label in labels):
            problems["labels"] = "The label contains spaces which is invalid."
        description = fields.get("description")
        if description is not None and not (isinstance(description, dict) and description.get("type") == "doc"):
            problems["description"] = "Operation value must be an Atlassian Document"
        return problems

    def _store(self, fields: dict[str, Any], labels: list[str]) -> dict[str, Any]:
        self._made += 1
        issue_id = str(10_000 + self._made)
        key = f"{self._project}-{self._made}"
        shown = {"summary": fields["summary"], "labels": labels, "status": {"name": "To Do"}}
        issue = {"id": issue_id, "key": key, "self": f"{_API}/issue/{issue_id}", "fields": shown}
        self.issues[key] = issue
        while len(self.issues) > ISSUES_MAX:
            del self.issues[next(iter(self.issues))]
        return issue

    # -- reading and moving ------------------------------------------------------------------------------------------

    def _other(self, request: HttpRequest) -> HttpAnswer:
        if request.path in (f"{_API}/search/jql", f"{_API}/search") and request.method in ("GET", "POST"):
            jql = decoded(request.body).get("jql") if request.method == "POST" else None
            jql = jql or parse_qs(request.query).get("jql", [""])[0]
            return HttpAnswer(200, _encode({"issues": self._search(str(jql)), "isLast": True}), _JSON)
        if request.path == f"{_API}/myself":
            return HttpAnswer(200, _encode({"emailAddress": self._email, "active": True}), _JSON)
        if request.path == f"{_API}/project/{self._project}":
            return HttpAnswer(200, _encode({"key": self._project, "id": "10000"}), _JSON)
        found = _ISSUE.match(request.path)
        issue = self.issues.get(found.group(1)) if found else None
        if found is None or issue is None:
            return self._refuse_with("not_found", request)
        return self._of_issue(request, issue, found.group(2))

    def _of_issue(self, request: HttpRequest, issue: dict[str, Any], part: str | None) -> HttpAnswer:
        if part == "comment" and request.method == "POST":
            return HttpAnswer(201, _encode({"id": secrets.token_hex(4)}), _JSON)
        if part == "transitions" and request.method == "POST":
            wanted = decoded(request.body).get("transition")
            name = _TRANSITIONS.get(str(wanted.get("id"))) if isinstance(wanted, dict) else None
            if name is None:
                return self._refuse_with("invalid", request)
            issue["fields"]["status"] = {"name": name}
            return HttpAnswer(204)
        if part == "transitions":
            steps = [{"id": number, "name": name, "to": {"name": name}} for number, name in _TRANSITIONS.items()]
            return HttpAnswer(200, _encode({"transitions": steps}), _JSON)
        return HttpAnswer(200, _encode(issue), _JSON)

    def _search(self, jql: str) -> list[dict[str, Any]]:
        """Issues that fit the parts of `jql` understood here: project, labels and whether still open; newest first."""
        project = _PROJECT.search(jql)
        if project is not None and project.group(1).upper() != self._project.upper():
            return []
        wanted = [{part.strip().strip("\"'") for part in found.split(",")} for found in _LABELS.findall(jql)]
        open_only = _OPEN_ONLY.search(jql) is not None
        return [
            issue
            for issue in reversed(self.issues.values())
            if all(names & set(issue["fields"]["labels"]) for names in wanted)
            and not (open_only and issue["fields"]["status"]["name"] == "Done")
        ][:100]
