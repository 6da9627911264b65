"""What operators change while the service runs: flags, settings, and what became of each change."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from bellbuoy.errors import Invalid, NotFound
from bellbuoy.health.flags import KNOWN
from bellbuoy.model.change import NAME_PATTERN, Change, Valued
from bellbuoy.model.notification import BODY_BYTES_MAX
from bellbuoy.service.api.context import Context
from bellbuoy.service.api.exchange import Call, Reply
from bellbuoy.service.api.notifications import limit_of
from bellbuoy.service.api.operating import FlagPut, SettingPut
from bellbuoy.service.live import NAMES
from bellbuoy.service.times import stamp

_flag = msgspec.json.Decoder(FlagPut)
_setting = msgspec.json.Decoder(SettingPut)


async def flags(context: Context, call: Call) -> Reply:
    """`GET /v1/flags`: as this process goes by them, so it answers whatever is away."""
    call.query()
    return Reply.json({"items": [_flag_view(context, one) for one in context.steering.flags.listing()]})


async def flag(context: Context, call: Call) -> Reply:
    """`GET /v1/flags/{name}`."""
    call.query()
    name = call.path("name")
    found = next((one for one in context.steering.flags.listing() if one.name == name), None)
    if found is None:
        raise NotFound(f"nobody has set a flag {name[:64]}", hint="so it is off; GET /v1/flags lists them")
    return Reply.json({**_flag_view(context, found), "history": history(found)})


async def put_flag(context: Context, call: Call) -> Reply:
    """`PUT /v1/flags/{name}`."""
    name = name_of(call)
    enabled = (await call.document(_flag, BODY_BYTES_MAX)).enabled
    found = await context.steering.changes.put("flag", name, enabled, by=call.key.id)
    return Reply.json(_flag_view(context, found))


async def settings(context: Context, call: Call) -> Reply:
    """`GET /v1/settings`."""
    call.query()
    live = context.steering.live
    return Reply.json({"items": [_setting_view(context, live.find(name)) for name in NAMES]})


async def setting(context: Context, call: Call) -> Reply:
    """`GET /v1/settings/{name}`."""
    call.query()
    found = context.steering.live.find(call.path("name"))
    return Reply.json({**_setting_view(context, found), "history": history(found)})


async def put_setting(context: Context, call: Call) -> Reply:
    """`PUT /v1/settings/{name}`: every process goes by it within about a second."""
    name = call.path("name")
    value = context.steering.live.check(name, (await call.document(_setting, BODY_BYTES_MAX)).value)
    found = await context.steering.changes.put("setting", name, value, by=call.key.id)
    return Reply.json(_setting_view(context, found))


async def changes(context: Context, call: Call) -> Reply:
    """`GET /v1/changes`."""
    found = await context.steering.changes.all(limit=limit_of(call.query("limit")))
    return Reply.json({"items": [_change_view(one) for one in found]})


async def roll_back(context: Context, call: Call) -> Reply:
    """`POST /v1/changes/{id}/rollback`."""
    call.query()
    return Reply.json(_change_view(await context.steering.rollback.roll_back(call.path("id"), by=call.key.id)))


async def keep(context: Context, call: Call) -> Reply:
    """`POST /v1/changes/{id}/keep`."""
    call.query()
    return Reply.json(_change_view(await context.steering.rollback.keep(call.path("id"), by=call.key.id)))


def name_of(call: Call) -> str:
    """The name of a value in the path. Raises Invalid for what is none."""
    name = call.path("name")
    if not re.fullmatch(NAME_PATTERN, name):
        raise Invalid("the name is not valid", errors=[("name", f"Expected {NAME_PATTERN}")])
    return name


def made(valued: Valued) -> dict[str, Any]:
    """Which version holds, and who made it when."""
    current = valued.current
    return {
        "version": current.n if current else 0,
        "changed_at": stamp(current.at) if current else None,
        "changed_by": current.by if current else None,
        "status": current.status if current else None,
    }


def _flag_view(context: Context, valued: Valued) -> dict[str, Any]:
    flags = context.steering.flags
    return {
        "name": valued.name,
        "description": KNOWN.get(valued.name),
        "enabled": flags.is_set(valued.name),
        "effective": flags.is_on(valued.name),
        **made(valued),
    }


def _setting_view(context: Context, valued: Valued) -> dict[str, Any]:
    default = context.steering.live.default(valued.name)
    value = default if valued.value is None else valued.value
    return {"name": valued.name, "value": value, "default": default, **made(valued)}


def history(valued: Valued) -> list[dict[str, Any]]:
    """The versions, the newest first."""
    return [
        {
            "version": one.n,
            "value": one.value,
            "changed_at": stamp(one.at),
            "changed_by": one.by,
            "status": one.status,
            "why": one.why,
        }
        for one in reversed(valued.versions)
    ]


def _change_view(change: Change) -> dict[str, Any]:
    version = change.version
    return {
        "id": change.id,
        "kind": change.kind,
        "name": change.name,
        "version": version.n,
        "value_before": change.value_before,
        "value": version.value,
        "changed_at": stamp(version.at),
        "changed_by": version.by,
        "status": version.status,
        "why": version.why,
        "decided_at": stamp(version.decided_at),
        "decided_by": version.decided_by,
    }
