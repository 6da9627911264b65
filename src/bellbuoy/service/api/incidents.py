"""Incidents: what fails, what is tried about it, and what an operator says of it."""

from __future__ import annotations

from bellbuoy.service.api import views
from bellbuoy.service.api.context import Context
from bellbuoy.service.api.exchange import Call, Reply
from bellbuoy.service.api.notifications import limit_of


async def listing(context: Context, call: Call) -> Reply:
    """`GET /v1/incidents`."""
    found = await context.mending.incidents.all(limit=limit_of(call.query("limit")))
    return Reply.json({"items": [views.incident(one) for one in found]})


async def acknowledge(context: Context, call: Call) -> Reply:
    """`POST /v1/incidents/{id}/acknowledge`."""
    call.query()
    one = await context.mending.incidents.acknowledge(call.path("id"), by=call.key.id)
    context.telemetry.event("incident_acknowledged", incident=one.id, key=call.key.id)
    if one.escalated:
        await context.mending.escalate(one, "acknowledge")
    return Reply.json(views.incident(one))


async def resolve(context: Context, call: Call) -> Reply:
    """`POST /v1/incidents/{id}/resolve`."""
    call.query()
    one = await context.mending.incidents.resolve(call.path("id"), by=call.key.id)
    context.telemetry.event("incident_resolved", incident=one.id, by=call.key.id)
    if one.escalated:
        await context.mending.escalate(one, "resolve")
    return Reply.json(views.incident(one))


async def retry(context: Context, call: Call) -> Reply:
    """`POST /v1/incidents/{id}/retry`."""
    call.query()
    one = await context.mending.incidents.retry(call.path("id"))
    context.telemetry.event("recovery_asked_for", incident=one.id, key=call.key.id)
    return Reply.json(views.incident(one))
