"""How a user's devices change: registered, called gone, taken back. Pure; None means that nothing changes."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from bellbuoy.errors import Conflict
from bellbuoy.model.operation import Tombstone
from bellbuoy.model.recipient import DEVICES_MAX, Device, RegisteredDevice, User


def rewritten(user: User, before: User | None, now: float, *, keep_devices: bool) -> User:
    """What is stored when `user` is put over `before`, None when there was none.

    Putting a token again counts as registering it anew, which ends its tombstone.
    """
    if keep_devices:
        return replace(user, devices=before.devices if before else ())
    fresh = (replace(d, registered_at=now, invalidated_at=None, invalid_because=None) for d in user.devices)
    return replace(user, devices=tuple(fresh))


def with_device(user: User, device: Device, now: float) -> User:
    """The user with this device, in place of the one of its id.

    Raises:
        Conflict: the user has as many devices as one may have.
    """
    others = tuple(d for d in user.devices if d.device.device_id != device.device_id)
    if len(others) >= DEVICES_MAX:
        raise Conflict(f"the user has {DEVICES_MAX} devices", hint="delete one that is no longer used")
    return replace(user, devices=(*others, RegisteredDevice(device, registered_at=now)))


def without_device(user: User, device_id: str) -> User | None:
    """The user without this device; None when it has no such device."""
    left = tuple(d for d in user.devices if d.device.device_id != device_id)
    return replace(user, devices=left) if len(left) < len(user.devices) else None


def invalidated(user: User, stone: Tombstone) -> User | None:
    """The user with this token called gone; None when it is already, or was put again since it was seen gone."""

    def bury(known: RegisteredDevice) -> RegisteredDevice | None:
        if known.invalidated_at is not None or known.registered_at > stone.seen_at:
            return None
        return replace(known, invalidated_at=stone.at, invalid_because=stone.because)

    return _changed(user, stone.device_id, bury)


def restored(user: User, device_id: str) -> User | None:
    """The user with an invalidated token taken back; None when there is none to take back."""

    def take_back(known: RegisteredDevice) -> RegisteredDevice | None:
        return replace(known, invalidated_at=None, invalid_because=None) if known.invalidated_at is not None else None

    return _changed(user, device_id, take_back)


def _changed(user: User, device_id: str, change: Callable[[RegisteredDevice], RegisteredDevice | None]) -> User | None:
    devices, changed = list(user.devices), False
    for index, known in enumerate(devices):
        new = change(known) if known.device.device_id == device_id else None
        if new is not None:
            devices[index], changed = new, True
    return replace(user, devices=tuple(devices)) if changed else None
