"""Users and their devices."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from bellbuoy.errors import BellbuoyError, Invalid, NotFound
from bellbuoy.intake.validate import parse
from bellbuoy.model.notification import BODY_BYTES_MAX
from bellbuoy.model.recipient import Device, RegisteredDevice, User, token_problem
from bellbuoy.service.api import views
from bellbuoy.service.api.context import Context
from bellbuoy.service.api.exchange import NDJSON_TYPES, Call, Reply
from bellbuoy.service.api.notifications import BATCH_BYTES_MAX
from bellbuoy.service.api.problems import document, problem
from bellbuoy.service.api.schemas import BATCH_MAX, DevicePut, UserPut

_user_put = msgspec.json.Decoder(UserPut)
_device_put = msgspec.json.Decoder(DevicePut)


async def put_user(context: Context, call: Call) -> Reply:
    """`PUT /v1/users/{user_id}`."""
    put = await call.document(_user_put, BODY_BYTES_MAX)
    user_id = call.path("user_id")
    user = _user(put, user_id, context.clock.time())
    await _write(context, call, [user], [put.devices is None])
    return Reply.json(views.user(await _known(context, call.key.tenant, user_id)))


async def put_users(context: Context, call: Call) -> Reply:
    """`POST /v1/users/batch`: up to 1,000 lines, each a user with its `user_id`."""
    body = await call.body(BATCH_BYTES_MAX, NDJSON_TYPES)
    lines = [line for line in body.splitlines() if line.strip()]
    if not 1 <= len(lines) <= BATCH_MAX:
        raise Invalid("the batch is not valid", errors=[("$", f"Expected 1 to {BATCH_MAX} lines, got {len(lines)}")])
    now = context.clock.time()
    users: list[User] = []
    keep: list[bool] = []
    results: list[dict[str, Any]] = []
    for line in lines:
        try:
            put = parse(line, _user_put)
            if put.user_id is None:
                raise Invalid(
                    "the user is not valid", errors=[("$.user_id", "Object missing required field `user_id`")]
                )
            users.append(_user(put, put.user_id, now))
            keep.append(put.devices is None)
            results.append({"user_id": put.user_id})
        except BellbuoyError as error:
            results.append({"error": document(error, problem(error).status)})
    call.users = [user.user_id for user in users]
    if users:
        await _write(context, call, users, keep)
    return Reply.json({"accepted": len(users), "rejected": len(lines) - len(users), "results": results})


async def get_user(context: Context, call: Call) -> Reply:
    """`GET /v1/users/{user_id}`."""
    call.query()
    return Reply.json(views.user(await _known(context, call.key.tenant, call.path("user_id"))))


async def delete_user(context: Context, call: Call) -> Reply:
    """`DELETE /v1/users/{user_id}`."""
    call.query()
    await context.ledger.delete_user(call.key.tenant, call.path("user_id"))
    return Reply(204, b"")


async def get_devices(context: Context, call: Call) -> Reply:
    """`GET /v1/users/{user_id}/devices`."""
    call.query()
    user = await _known(context, call.key.tenant, call.path("user_id"))
    return Reply.json({"items": [views.device(d) for d in user.devices]})


async def get_device(context: Context, call: Call) -> Reply:
    """`GET /v1/users/{user_id}/devices/{device_id}`."""
    call.query()
    user = await _known(context, call.key.tenant, call.path("user_id"))
    return Reply.json(views.device(_device(user, call.path("device_id"))))


async def put_device(context: Context, call: Call) -> Reply:
    """`PUT /v1/users/{user_id}/devices/{device_id}`; a user that is not known yet begins with it."""
    put = await call.document(_device_put, BODY_BYTES_MAX)
    device_id = call.path("device_id")
    if put.device_id is not None and put.device_id != device_id:
        raise Invalid("the device is not valid", errors=[("$.device_id", "Expected the device_id of the path")])
    device = Device(device_id, put.platform, put.provider, put.token, put.alternate)
    errors = _device_errors("$", device)
    if errors:
        raise Invalid("the device is not valid", errors=errors)

    user = await context.ledger.put_device(call.key.tenant, _user_id(call), device, now=context.clock.time())
    return Reply.json(views.device(_device(user, device_id)))


async def delete_device(context: Context, call: Call) -> Reply:
    """`DELETE /v1/users/{user_id}/devices/{device_id}`."""
    call.query()
    await context.ledger.delete_device(call.key.tenant, call.path("user_id"), call.path("device_id"))
    return Reply(204, b"")


async def _write(context: Context, call: Call, users: list[User], keep: list[bool]) -> None:
    await context.ledger.put_users(call.key.tenant, users, now=context.clock.time(), keep_devices=keep)


async def _known(context: Context, tenant: str, user_id: str) -> User:
    user = await context.ledger.user(tenant, user_id)
    if user is None:
        raise NotFound(f"there is no user {user_id}")
    return user


def _device(user: User, device_id: str) -> RegisteredDevice:
    found = next((d for d in user.devices if d.device.device_id == device_id), None)
    if found is None:
        raise NotFound(f"there is no device {device_id}")
    return found


def _user(put: UserPut, user_id: str, now: float) -> User:
    """The user that a document means; raises Invalid."""
    errors: list[tuple[str, str]] = []
    if put.user_id is not None and put.user_id != user_id:
        errors.append(("$.user_id", "Expected the user_id of the path"))
    errors += _identifier_errors("user_id", user_id)
    try:
        ZoneInfo(put.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        errors.append(("$.timezone", "Expected a time zone of the IANA database, for example Europe/Berlin"))
    channels = put.preferences.channels or ()
    if len(set(channels)) != len(channels):
        errors.append(("$.preferences.channels", "Expected each channel once"))
    devices = put.devices or []
    if len({d.device_id for d in devices}) != len(devices):
        errors.append(("$.devices", "Expected each device_id once"))
    for index, device in enumerate(devices):
        errors += _device_errors(f"$.devices[{index}]", device)
    if errors:
        raise Invalid("the user is not valid", errors=errors)
    return User(
        user_id=user_id,
        email=put.email,
        phone=put.phone,
        locale=put.locale,
        timezone=put.timezone,
        preferences=put.preferences,
        devices=tuple(RegisteredDevice(d, registered_at=now) for d in devices),
    )


def _user_id(call: Call) -> str:
    """The user's and the device's names in the path, checked, since this may be the first time they are heard."""
    errors = _identifier_errors("user_id", call.path("user_id")) + _identifier_errors(
        "device_id", call.path("device_id")
    )
    if errors:
        raise Invalid("the path is not valid", errors=errors)
    return call.path("user_id")


def _identifier_errors(name: str, value: str) -> list[tuple[str, str]]:
    if 1 <= len(value) <= 255 and not any(c < " " or c == "\x7f" for c in value):
        return []
    return [(name, "Expected 1 to 255 characters without control characters")]


def _device_errors(path: str, device: Device) -> list[tuple[str, str]]:
    errors = []
    wrong = token_problem(device.platform, device.provider, device.token)
    if wrong:
        errors.append((f"{path}.token", wrong))
    if device.alternate is not None:
        wrong = token_problem(device.platform, device.alternate.provider, device.alternate.token)
        if wrong:
            errors.append((f"{path}.alternate.token", wrong))
    return errors
