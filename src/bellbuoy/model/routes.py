"""Where a notification leads: the channels that the recipient has and allows, and the endpoints behind each.

Pure: the same request, recipient and circumstances always lead to the same places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from msgspec import Struct

from bellbuoy.model.delivery import ProviderName
from bellbuoy.model.notification import Request
from bellbuoy.model.recipient import CHANNELS, Channel, Device, Platform, User

FALLBACK_OF: Mapping[str, Channel] = {"email_fallback": "email", "sms_fallback": "sms"}
"""The channels that an operator may open to everybody while FCM is down, by the name of the mode."""


class Circumstances(Struct, frozen=True):
    """How the service works at the moment.

    Args:
        modes: the active ones.
        down: the providers that are down.
    """

    modes: tuple[str, ...] = ()
    down: Set[str] = frozenset()

    @property
    def diverting(self) -> bool:
        """Whether devices that APNs reaches as well get there what FCM would have brought."""
        return "fcm_fallback" in self.modes and "apns" not in self.down

    @property
    def paused(self) -> bool:
        """Whether an operator has stopped all sending."""
        return "sending_stopped" in self.modes

    @property
    def opened(self) -> Set[Channel]:
        """Channels that even a notification that is not urgent may pass on to when FCM holds it back."""
        return {channel for mode, channel in FALLBACK_OF.items() if mode in self.modes}


CALM = Circumstances()
"""Nothing is wrong."""

Address = tuple[ProviderName, str, Platform | None, str | None, float | None]
"""provider, endpoint, platform, device id, the epoch second the token was registered"""


def allowed(user: User) -> tuple[Channel, ...]:
    """The channels that a recipient allows, in order of preference."""
    return user.preferences.channels if user.preferences.channels is not None else CHANNELS


def chain_of(request: Request, user: User | None) -> tuple[tuple[Channel, ...], str | None]:
    """The channels that lead somewhere, in order, and what to tell the sender when there are none."""
    recipient = request.recipient
    if recipient.device:
        reachable: tuple[Channel, ...] = ("push",)
    elif recipient.email:
        reachable = ("email",)
    elif recipient.phone:
        reachable = ("sms",)
    elif user is None:
        return (), "the user is unknown"
    else:
        reachable = allowed(user)
    wanted = request.channels or reachable
    chain = tuple(c for c in wanted if c in reachable and any(endpoints(request, user, c)))
    if chain:
        return chain, None
    refused = [c for c in wanted if c not in reachable]
    if refused:
        return (), f"{', '.join(refused)} not among the channels the recipient allows or has"
    return (), f"no usable endpoint for {', '.join(wanted)}"


def endpoints(request: Request, user: User | None, channel: Channel, at: Circumstances = CALM) -> Iterator[Address]:
    """Where a channel leads for this recipient; nothing for email and sms when there is no text to send."""
    recipient = request.recipient
    if user and channel not in allowed(user):
        return
    if channel == "push":
        if recipient.device:
            device = recipient.device
            yield device.provider, device.token, device.platform, None, None
        elif user:
            for known in user.devices:
                if known.invalidated_at is None:
                    provider, token = _carrier(known.device, at)
                    yield provider, token, known.device.platform, known.device.device_id, known.registered_at
    elif request.content.title or request.content.body:
        if channel == "email":
            address = recipient.email or (user.email if user else None)
            if address:
                yield "smtp", address, None, None, None
        else:
            number = recipient.phone or (user.phone if user else None)
            if number:
                yield "sms", number, None, None, None


def _carrier(device: Device, at: Circumstances) -> tuple[ProviderName, str]:
    """Who carries to a device, and its token there: its alternate while FCM is down, where that is APNs."""
    other = device.alternate
    if other is not None and other.provider == "apns" and device.provider == "fcm" and at.diverting:
        return other.provider, other.token
    return device.provider, device.token


def every_address(request: Request, user: User | None, channel: Channel) -> list[Address]:
    """Where a channel may lead in any circumstances, the usual places first."""
    usual = list(endpoints(request, user, channel))
    return usual + [one for one in endpoints(request, user, channel, _DIVERTED) if one not in usual]


_DIVERTED = Circumstances(modes=("fcm_fallback",))


def is_held(request: Request, user: User | None, at: Circumstances) -> bool:
    """Whether a notification that is not urgent would wait for a provider that is down, rather than be sent now."""
    if request.priority == "high" or not at.down:
        return False
    chain, _ = chain_of(request, user)
    ways = chain if request.channels is not None else tuple(c for c in chain[1:] if c in at.opened)
    open_to_it = dict.fromkeys([*chain[:1], *ways])
    providers = [[address[0] for address in endpoints(request, user, channel, at)] for channel in open_to_it]
    return bool(providers) and all(name in at.down for names in providers for name in names)
