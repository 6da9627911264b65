"""Templates of content: written, filled in, taken back, and kept from running away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Server

pytestmark = pytest.mark.acceptance
SHIPPED = {
    "locales": {
        "default": {"title": "Order {{ order.id }} shipped", "body": "{% if name %}{{ name }}: {% endif %}on its way"},
        "de": {"title": "Bestellung {{ order.id }}", "body": "{% for one in items %}{{ one|upper }} {% endfor %}"},
    }
}


def put(server: Server, name: str, document: Any) -> int:
    return server.call("PUT", f"/v1/templates/{name}", document).status


def rendered(server: Server, name: str, **document: Any) -> Any:
    answer = server.call("POST", f"/v1/templates/{name}/render", document)
    return answer.json() if answer.status == 200 else answer.status


def of(body: str) -> dict[str, Any]:
    return {"locales": {"default": {"body": body}}}


def test_a_template_is_filled_in_by_locale(server: Server) -> None:
    assert put(server, "shipped", SHIPPED) == 200
    assert server.get("/v1/templates/shipped")["locales"] == SHIPPED["locales"]
    data = {"order": {"id": 17}, "name": "Ann & Ben", "items": ["a", "b"]}
    assert rendered(server, "shipped", data=data) == {
        "title": "Order 17 shipped",
        "body": "Ann & Ben: on its way",
        "locale": "default",
        "version": 1,
    }
    assert rendered(server, "shipped", data=data, locale="de-AT")["body"] == "A B "
    assert rendered(server, "shipped", data=data, locale="fr")["locale"] == "default"
    assert rendered(server, "nothing", data=data) == 404


def test_templates_are_listed_with_their_versions(server: Server) -> None:
    put(server, "listed", SHIPPED)
    put(server, "listed", of("second"))
    found = {one["name"]: one for one in server.get("/v1/templates")["items"]}["listed"]
    assert (found["locales"], found["version"]) == (["default"], 2)
    history = server.get("/v1/templates/listed")["history"]
    assert [(one["version"], sorted(one["value"])) for one in history] == [(2, ["default"]), (1, ["de", "default"])]


def test_templates_from_the_command_line(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "order.json"
    file.write_text(json.dumps(SHIPPED["locales"]))
    assert "order has version 1" in server.cli("templates", "set", "order", str(file))
    assert "order" in server.cli("templates")
    assert "Bestellung {{ order.id }}" in server.cli("templates", "show", "order")
    data = json.dumps({"order": {"id": 17}, "name": "", "items": ["[a]"]})
    shown = server.cli("templates", "render", "order", "--data", data, "--locale", "de-AT")
    assert shown.splitlines() == ["Bestellung 17", "[A] "]
    assert json.loads(server.cli("templates", "render", "order", "--data", data, "--json"))["locale"] == "default"
    file.write_text("[")
    for wrong in (str(file), str(tmp_path / "nothing.json")):
        server.cli("templates", "set", "order", wrong, status=2)


def test_what_the_data_does_not_have_is_an_error_and_not_a_gap(server: Server) -> None:
    put(server, "gap", of("{{ missing }}"))
    answer = server.call("POST", "/v1/templates/gap/render", {"data": {}})
    assert (answer.status, answer.json()["errors"][0]["path"]) == (422, "$.body")
    assert "missing" in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    "body",
    [
        "{{ unclosed",
        "{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ x.format() }}",
        "{% set a = 1 %}",
        "{% macro a() %}{{ a() }}{% endmacro %}",
        "{% include 'other' %}",
        "{{ x|center(1000000000) }}",
        "{{ range(10) }}",
        "{{ x|round(1000000000, 'ceil') }}",
        "{% if x %}{{ x|replace('a', 'b') }}{% endif %}",
        "{{ x ~ x }}",
        "{% for a in x %}{% endfor %}" * 4,
        "{% for a in x %}" + "{{ a|upper }}" * 20 + "{% endfor %}",
        "{{ '%999999999s' % x }}",
        "{% if x is divisibleby(2) %}{% endif %}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    ],
)
def test_what_could_run_away_is_refused(server: Server, body: str) -> None:
    assert put(server, "bad", of(body)) == 422


@pytest.mark.parametrize(
    ("body", "data"),
    [
        ("{{ x.__class__ }}", {"x": "a"}),
        ("{{ x['__class__'] }}", {"x": "a"}),
        ("{% for a in x %}{{ y }}{% endfor %}", {"x": list(range(1_000)), "y": "z" * 1_000}),
        ("{% for a in x %}{% endfor %}", {"x": 5}),
    ],
)
def test_what_does_not_fit_or_grows_too_long_is_refused_when_filled_in(
    server: Server, body: str, data: dict[str, Any]
) -> None:
    assert put(server, "odd", of(body)) == 200
    assert rendered(server, "odd", data=data) == 422


def test_a_change_of_a_template_is_taken_back(server: Server) -> None:
    put(server, "back", of("one"))
    put(server, "back", of("two"))
    assert rendered(server, "back")["body"] == "two"
    assert server.call("POST", "/v1/changes/template:back:2/rollback").json()["status"] == "reverted"
    assert rendered(server, "back")["body"] == "one"
    put(server, "fresh", of("one"))
    server.call("POST", "/v1/changes/template:fresh:1/rollback")
    assert rendered(server, "fresh") == 404, "as before its first version"
