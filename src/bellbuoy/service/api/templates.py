"""Templates of content: written by version, read, and filled in. Nothing is sent by them."""

from __future__ import annotations

from typing import Any

import msgspec

from bellbuoy.errors import NotFound
from bellbuoy.model.change import Valued
from bellbuoy.service.api.context import Context
from bellbuoy.service.api.exchange import Call, Reply
from bellbuoy.service.api.operating import RenderPost, TemplatePut
from bellbuoy.service.api.steering import history, made, name_of
from bellbuoy.service.templates import check, choose
from bellbuoy.service.templates import render as fill_in

_put = msgspec.json.Decoder(TemplatePut)
_render = msgspec.json.Decoder(RenderPost)
TEMPLATE_BYTES_MAX = 48 * 1024
"""Of all locales together, so that a version and the one before it fit into a document."""

DATA_BYTES_MAX = 8 * 1024


async def listing(context: Context, call: Call) -> Reply:
    """`GET /v1/templates`."""
    call.query()
    found = [one for one in await context.steering.values.all("template") if one.value is not None]
    return Reply.json({"items": [{"name": one.name, "locales": sorted(one.value), **made(one)} for one in found]})


async def get(context: Context, call: Call) -> Reply:
    """`GET /v1/templates/{name}`."""
    call.query()
    found = await _find(context, name_of(call))
    return Reply.json({**_view(found), "history": history(found)})


async def put(context: Context, call: Call) -> Reply:
    """`PUT /v1/templates/{name}`."""
    name, post = name_of(call), await call.document(_put, TEMPLATE_BYTES_MAX)
    for locale, text in post.locales.items():
        check(text.title, f"$.locales.{locale}.title")
        check(text.body, f"$.locales.{locale}.body")
    value = msgspec.to_builtins(post.locales)
    return Reply.json(_view(await context.steering.changes.put("template", name, value, by=call.key.id)))


async def render(context: Context, call: Call) -> Reply:
    """`POST /v1/templates/{name}/render`."""
    name, post = name_of(call), await call.document(_render, DATA_BYTES_MAX)
    valued = await _find(context, name)
    locale = choose(valued.value, post.locale)
    if locale is None:
        raise NotFound(f"the template {name} has neither this locale nor a default", hint="give one that it has")
    text = valued.value[locale]
    return Reply.json(
        {
            "title": fill_in(text["title"], post.data, "$.title"),
            "body": fill_in(text["body"], post.data, "$.body"),
            "locale": locale,
            "version": made(valued)["version"],
        }
    )


async def _find(context: Context, name: str) -> Valued:
    valued = await context.steering.values.find("template", name)
    if valued.value is None:
        raise NotFound(f"there is no template {name}")
    return valued


def _view(valued: Valued) -> dict[str, Any]:
    return {"name": valued.name, "locales": valued.value, **made(valued)}
