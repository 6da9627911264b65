"""Isolating the service after a breach, and what has to be known of it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec

from bellbuoy.errors import Invalid, StoreError
from bellbuoy.model.notification import BODY_BYTES_MAX
from bellbuoy.service.api.context import Context
from bellbuoy.service.api.exchange import Call, Reply
from bellbuoy.service.api.operating import IsolatePost
from bellbuoy.service.isolation import TELL_S_MAX
from bellbuoy.service.times import stamp

_isolate = msgspec.json.Decoder(IsolatePost)


async def get(context: Context, call: Call) -> Reply:
    """`GET /v1/breach`."""
    call.query()
    return Reply.json(await _state(context))


async def isolate(context: Context, call: Call) -> Reply:
    """`POST /v1/breach/isolate`: in this process at once, in the others within a second."""
    post = await call.document(_isolate, BODY_BYTES_MAX * 16)
    if post.all_keys and post.keys:
        raise Invalid("the request is not valid", errors=[("$.keys", "Expected none together with all_keys")])
    if not (post.all_keys or post.keys or post.stop_sending or post.stop_accepting):
        raise Invalid("the request is not valid", errors=[("$", "Expected keys to end, or something to stop")])
    ended = await context.isolation.isolate(
        None if post.all_keys else post.keys,
        stop_sending=post.stop_sending,
        stop_accepting=post.stop_accepting,
        by=call.key.id,
    )
    stops = [name for name in ("stop_sending", "stop_accepting") if getattr(post, name)]
    call.target = ", ".join([*stops, *(["all keys"] if post.all_keys else (f"key {one}" for one in ended))])
    return Reply.json({**await _state(context), "ended": ended})


async def lift(context: Context, call: Call) -> Reply:
    """`POST /v1/breach/lift`: send and accept again; keys stay ended."""
    call.query()
    await context.isolation.lift(by=call.key.id)
    return Reply.json(await _state(context))


async def _state(context: Context) -> dict[str, Any]:
    modes = {one.name: one for one in context.vitals.monitor.listing()}
    revoked: list[dict[str, Any]] = []
    heads: list[dict[str, Any]] = []
    # Whoever isolates while the ledger is away must not wait for it.
    with contextlib.suppress(StoreError, TimeoutError):
        async with asyncio.timeout(TELL_S_MAX):
            revoked = [
                {"id": key.id, "name": key.name, "revoked_at": stamp(key.revoked_at)}
                for key in await context.keys.all()
                if key.has_ended
            ]
            heads = [{**msgspec.to_builtins(one), "at": stamp(one.at)} for one in await context.audit.heads()]
    return {
        "sending_stopped": modes["sending_stopped"].active,
        "accepting_stopped": modes["accepting_stopped"].active,
        "everywhere": context.isolation.everywhere,
        "revoked": revoked,
        "heads": heads,
    }
