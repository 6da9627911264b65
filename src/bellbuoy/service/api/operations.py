"""What an operator looks at and turns: health, breakers, dead letters, tombstones, the books, keys."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from bellbuoy.errors import Conflict, Invalid, NotFound, StoreError
from bellbuoy.health.mode import MODES
from bellbuoy.model.notification import BODY_BYTES_MAX
from bellbuoy.service.api import views
from bellbuoy.service.api.context import Context
from bellbuoy.service.api.exchange import Call, HttpError, Reply, from_here
from bellbuoy.service.api.health import all_breakers, breaker_view, collect, health
from bellbuoy.service.api.notifications import limit_of
from bellbuoy.service.api.operating import BreakerPost, KeyPost, ModePut
from bellbuoy.service.api.schemas import DiscardFilter, DiscardPost, ReplayPost, RestorePost

_replay = msgspec.json.Decoder(ReplayPost)
_discard = msgspec.json.Decoder(DiscardPost)
_restore = msgspec.json.Decoder(RestorePost)
_breaker = msgspec.json.Decoder(BreakerPost)
_mode = msgspec.json.Decoder(ModePut)
_key = msgspec.json.Decoder(KeyPost)


async def live(context: Context, call: Call) -> Reply:
    """`GET /livez`: the process answers. It asks no dependency, or an outage would restart everything."""
    return Reply.json({"status": "ok"})


async def ready(context: Context, call: Call) -> Reply:
    """`GET /readyz`: notifications can be accepted. It needs no key, so it costs at most one probe a second."""
    try:
        await context.stores.watched.check()
    except StoreError:
        if context.stores.homes.kept.ready():
            return Reply.json({"status": "ok"})  # The journal takes what the ledger does not.
        return Reply.json({"status": "not ready"}, 503, {"Retry-After": "5"})
    return Reply.json({"status": "ok"})


async def metrics(context: Context, call: Call) -> Reply:
    """`GET /metrics`: Prometheus's text; without a key on loopback only."""
    if not from_here(call):
        key = context.authenticate(call)
        if "read" not in key.scopes:
            raise HttpError(403, "forbidden", "the key lacks the scope read")
    await collect(context)
    return Reply(200, context.telemetry.exposition(), b"text/plain; version=0.0.4; charset=utf-8")


async def get_health(context: Context, call: Call) -> Reply:
    """`GET /v1/health`."""
    call.query()
    return Reply.json(await health(context))


async def breakers(context: Context, call: Call) -> Reply:
    """`GET /v1/breakers`."""
    call.query()
    return Reply.json({"items": [breaker_view(one) for one in all_breakers(context).values()]})


async def change_breaker(context: Context, call: Call) -> Reply:
    """`POST /v1/breakers/{name}`."""
    name = call.path("name")
    breaker = all_breakers(context).get(name)
    if breaker is None:
        raise NotFound(f"there is no breaker {name[:64]}", hint="GET /v1/breakers lists them")
    action = (await call.document(_breaker, BODY_BYTES_MAX)).action
    getattr(breaker, action)()
    context.telemetry.event("breaker_changed_by_hand", breaker=name, action=action, key=call.key.id)
    return Reply.json(breaker_view(breaker))


async def modes(context: Context, call: Call) -> Reply:
    """`GET /v1/modes`."""
    call.query()
    items = [views.mode(one) for one in context.vitals.monitor.listing()]
    return Reply.json({"items": items, "workers": await context.vitals.workers()})


async def pin_mode(context: Context, call: Call) -> Reply:
    """`PUT /v1/modes/{name}`: an operator holds it on or off, for every process; others follow within a second."""
    name = call.path("name")
    if name not in MODES:
        raise NotFound(f"there is no mode {name[:64]}", hint=f"one of {', '.join(MODES)}")
    pinned = (await call.document(_mode, BODY_BYTES_MAX)).pinned
    await context.vitals.pins.set(name, pinned, by=call.key.id)
    return Reply.json(next(views.mode(one) for one in context.vitals.monitor.listing() if one.name == name))


async def dead_letters(context: Context, call: Call) -> Reply:
    """`GET /v1/dead-letters`."""
    query = call.query("provider", "error_code", "limit", "cursor")
    letters, cursor = await context.ledger.dead_letters(
        call.key.tenant,
        provider=query.get("provider"),
        error_code=query.get("error_code"),
        limit=limit_of(query),
        cursor=query.get("cursor"),
    )
    call.unnamed = len(letters)
    return Reply.json({"items": [views.dead_letter(one) for one in letters], "next_cursor": cursor})


async def replay_one(context: Context, call: Call) -> Reply:
    """`POST /v1/dead-letters/{id}/replay`."""
    call.query()
    letter_id = call.path("id")
    result = await _do_replay(context, call, ReplayPost(limit=1), [letter_id])
    if not result.matched:
        raise NotFound(f"there is no dead letter {letter_id[:64]}")
    if not result.replayed:
        raise Conflict(f"it was not replayed: {result.skipped[0].why}")
    return Reply.json(result)


async def discard(context: Context, call: Call) -> Reply:
    """`DELETE /v1/dead-letters/{id}`."""
    call.query()
    await context.ledger.discard(call.key.tenant, call.path("id"))
    context.telemetry.event("dead_letter_discarded", id=call.path("id"), key=call.key.id)
    return Reply(204, b"")


async def discard_many(context: Context, call: Call) -> Reply:
    """`POST /v1/dead-letters/discard`."""
    post = await call.document(_discard, BODY_BYTES_MAX * 16)
    if post.filter == DiscardFilter() and not post.dry_run:
        raise Invalid(
            "this would discard every dead letter",
            errors=[("$.filter", "Expected at least one of ids, provider, error_code, expired")],
        )
    done = await context.ledger.discard_many(
        call.key.tenant,
        ids=post.filter.ids,
        provider=post.filter.provider,
        error_code=post.filter.error_code,
        expired=post.filter.expired,
        now=context.clock.time(),
        dry_run=post.dry_run,
        limit=post.limit,
    )
    if done.discarded and not post.dry_run:
        context.telemetry.event("dead_letters_discarded", count=done.discarded, key=call.key.id)
    return Reply.json(done)


async def replay_many(context: Context, call: Call) -> Reply:
    """`POST /v1/dead-letters/replay`."""
    post = await call.document(_replay, BODY_BYTES_MAX * 16)
    return Reply.json(await _do_replay(context, call, post, post.filter.ids))


async def _do_replay(context: Context, call: Call, post: ReplayPost, ids: list[str] | None) -> Any:
    result = await context.ledger.replay(
        call.key.tenant,
        ids=ids,
        provider=post.filter.provider,
        error_code=post.filter.error_code,
        now=context.clock.time(),
        rate_per_s=post.rate_per_s,
        dry_run=post.dry_run,
        limit=post.limit,
    )
    if result.replayed and not post.dry_run:
        context.telemetry.event("dead_letters_replayed", count=result.replayed, key=call.key.id)
        context.nudge()
    return result


async def tombstones(context: Context, call: Call) -> Reply:
    """`GET /v1/tombstones`: tokens that their provider called gone."""
    query = call.query("limit")
    found = await context.ledger.tombstones(call.key.tenant, limit=limit_of(query))
    call.users = [one.user_id for one in found]
    return Reply.json({"items": [views.tombstone(one) for one in found]})


async def restore(context: Context, call: Call) -> Reply:
    """`POST /v1/tombstones/restore`: take tokens back."""
    post = await call.document(_restore, BODY_BYTES_MAX)
    try:
        since = datetime.fromisoformat(post.since).timestamp() if post.since else 0.0
    except (ValueError, OverflowError):
        raise Invalid("the request is not valid", errors=[("$.since", "Expected an RFC 3339 time")]) from None
    count = await context.ledger.restore(
        call.key.tenant, user_id=post.user_id, provider=post.provider, since=since, now=context.clock.time()
    )
    call.users = (post.user_id,) if post.user_id is not None else ()
    context.telemetry.event("tombstones_restored", count=count, key=call.key.id)
    return Reply.json({"restored": count})


async def audit(context: Context, call: Call) -> Reply:
    """`GET /v1/audit`: the books."""
    call.query()
    return Reply.json(views.books(await context.ledger.books(call.key.tenant)))


async def keys(context: Context, call: Call) -> Reply:
    """`GET /v1/keys`."""
    call.query()
    return Reply.json({"items": [views.api_key(one) for one in await context.keys.all()]})


async def create_key(context: Context, call: Call) -> Reply:
    """`POST /v1/keys`: the only answer that ever holds the key."""
    post = await call.document(_key, BODY_BYTES_MAX)
    scopes = tuple(dict.fromkeys(post.scopes))
    key, secret = await context.keys.create(post.name, scopes, tenant=call.key.tenant, by=call.key.id)
    call.target = key.id
    context.telemetry.event("key_created", key=key.id, by=call.key.id)
    return Reply.json({**views.api_key(key), "key": secret}, 201)


async def revoke_key(context: Context, call: Call) -> Reply:
    """`DELETE /v1/keys/{id}`: refused from now on."""
    call.query()
    key = await context.keys.revoke(call.path("id"))
    context.telemetry.event("key_revoked", key=key.id, by=call.key.id)
    return Reply.json(views.api_key(key))
