"""From what is wrong to how the service works because of it: one table, and nothing else decides.

Pure. The modes are a function of the set of issues, the flags and the operators' pins, so in whatever order issues come
and go the same set ends in the same modes.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

MODES_OF: Mapping[str, tuple[str, ...]] = {
    "database_down": ("read_only", "cache_only", "write_queue"),
    "database_slow": ("cache_only", "small_batches"),
    "message_queue_down": ("database_polling", "fast_polling", "dead_letter_events"),
    "cache_down": ("local_cache",),
    "fcm_down": ("fcm_fallback", "external_service_down"),
    "apns_down": ("hold_ios", "external_service_down"),
    "smtp_down": ("external_service_down",),
    "sms_down": ("external_service_down",),
    "high_latency": ("aggressive_caching", "small_batches", "more_workers", "tight_breakers", "analytics_off"),
    "high_error_rate": (),
    "memory_pressure": ("fewer_workers", "drop_caches", "push_back"),
    "queue_backlog": ("more_workers", "large_batches", "parallel_processing"),
    "disk_full": ("disk_full",),
}
"""Every issue that health can find, and the modes that it brings."""

FALLBACK_FLAGS = ("email_fallback", "sms_fallback")
"""Flags that are modes of their own while FCM is down and they are on."""

BY_HAND = ("sending_stopped", "accepting_stopped")
"""Modes that no issue brings: only an operator, by a pin."""

MODES: tuple[str, ...] = tuple(
    dict.fromkeys([*(mode for modes in MODES_OF.values() for mode in modes), *FALLBACK_FLAGS, *BY_HAND])
)


def modes_of(issues: Set[str], flags: Set[str], pins: Mapping[str, bool]) -> Mapping[str, tuple[str, ...]]:
    """The modes that are active, each with the issues that it is because of, or `pinned`.

    Args:
        issues: what is wrong; one that the table does not have brings no mode.
        flags: the flags that are on.
        pins: modes that an operator holds on or off, whatever the issues are.
    """
    found: dict[str, list[str]] = {}
    for issue in sorted(issues):
        for mode in MODES_OF.get(issue, ()):
            found.setdefault(mode, []).append(issue)
    if "fcm_fallback" in found or pins.get("fcm_fallback"):
        for flag in FALLBACK_FLAGS:
            if flag in flags:
                found.setdefault(flag, []).extend(["fcm_down", "flag"])
    for mode, held_on in pins.items():
        if held_on:
            found[mode] = ["pinned"]
        else:
            found.pop(mode, None)
    return {mode: tuple(found[mode]) for mode in MODES if mode in found}


@dataclass(frozen=True, slots=True)
class Tuning:
    """What the modes change in how much is done at a time, each as a factor of what is configured.

    Args:
        batch: notifications claimed at a time.
        poll: the longest wait between two looks for due work.
        concurrency: attempts under way at once with each provider.
        in_hand: notifications in memory at once, and being accepted at once.
        prefer_cache: recipients come from the cache where it has them, without asking the ledger.
        cache_s: for how many seconds what the cache has is not asked for again; 0 asks each time where others write.
        tight_breakers: breakers open at half as many failures.
    """

    batch: float = 1.0
    poll: float = 1.0
    concurrency: float = 1.0
    in_hand: float = 1.0
    prefer_cache: bool = False
    cache_s: float = 0.0
    tight_breakers: bool = False


AGGRESSIVE_CACHE_S = 60.0
"""How old a recipient may be that is served from the cache in the mode `aggressive_caching`."""


def tuning_of(modes: Set[str]) -> Tuning:
    """The numbers that a set of modes adds up to. Where two pull apart, the careful one wins: less beats more."""
    fewer = "fewer_workers" in modes
    return Tuning(
        batch=0.25 if "small_batches" in modes else 4.0 if "large_batches" in modes else 1.0,
        poll=0.2 if "fast_polling" in modes else 1.0,
        concurrency=0.5 if fewer else 2.0 if modes & {"more_workers", "parallel_processing"} else 1.0,
        in_hand=0.1 if "push_back" in modes else 1.0,
        prefer_cache="cache_only" in modes,
        cache_s=AGGRESSIVE_CACHE_S if "aggressive_caching" in modes else 0.0,
        tight_breakers="tight_breakers" in modes,
    )
