"""Every drill there is."""

from __future__ import annotations

from collections.abc import Mapping

from bellbuoy.continuity.drill import Drill, Limits

PROVIDERS = {"fcm": "FCM", "apns": "APNs", "smtp": "the mail server", "sms": "the SMS provider"}
STORES = {"mongodb": "MongoDB", "rabbitmq": "RabbitMQ", "redis": "Redis"}

PROVIDER_FAULTS: Mapping[str, str] = {
    "outage": "answers every request with an error of its own",
    "hang": "takes requests and answers none",
    "latency": "answers late",
    "error_rate": "fails every second request",
    "reset": "takes requests and resets the connections",
    "goaway": "ends connections, with requests on them that it never looked at",
    "bad_credentials": "rejects our credential",
}
STORE_FAULTS: Mapping[str, tuple[str, float]] = {
    "kill": ("is killed and started again", 3.0),
    "pause": ("is frozen, with its connections open", 8.0),
    "cut": ("is cut off: connections break and no new ones are made", 3.0),
    "latency": ("answers two seconds late", 4.0),
}
LATE_S = 2.0
"""By how many seconds a store answers late."""
PINNED_MODE = "aggressive_caching"
_DIES = Limits(error_share_max=1.0)
"""Of drills that kill what answers."""
_OTHER_TARGET = "The other target goes on, and the one that was in trouble gets all it missed: it is enough by itself."
_GONE_WITH_THE_DISK = frozenset({"nothing_lost", "nothing_unknown", "found_at_once"})
"""What came after the second that was reached is gone with the disk; how much that is, a drill checks itself."""
_LATE = Limits(p99_s_max=0.95 * LATE_S)
"""Of drills that hold back a store's answers: whoever waits for one is beyond it."""

_OWN: tuple[Drill, ...] = (
    Drill(
        name="worker_kill",
        stack="shared",
        hypothesis="What a dead worker had in hand comes back when its lease ends, and another worker takes over.",
        fault="One of two workers is killed with attempts under way and stays dead for a while.",
        seconds=4.0,
    ),
    Drill(
        name="worker_pause",
        stack="shared",
        hypothesis="A worker that wakes after its lease ended is refused, and what it held was taken over.",
        fault="One of two workers is frozen with attempts under way, past its lease, and woken again.",
    ),
    Drill(
        name="disk_full",
        stack="small_disk",
        hypothesis="Without room it refuses whole, with 503 and Retry-After, and goes on by itself when there is room.",
        fault="The file system of the data directory is filled to the last page.",
        limits=_DIES,
        allows=frozenset({"nothing_refused", "found_at_once"}),
    ),
    Drill(
        name="clock_jump",
        stack="shifted_clock",
        hypothesis="Durations go by a clock that does not jump: no timeout fires, no lease is lost, nothing expires.",
        fault="The wall clock of the service is set forward by half a lease, and back.",
    ),
    Drill(
        name="corruption",
        stack="alone",
        hypothesis="Damage in the journal is told from an entry and named; all that is sound, before and behind it, is "
        "delivered.",
        fault="While the ledger is held the journal takes it; the process is killed, a bit of two entries in its midst "
        "is flipped, and half an entry and noise are written behind the last one.",
        limits=_DIES,
        allows=frozenset({"found_at_once"}),
    ),
    Drill(
        name="poison_message",
        stack="alone",
        hypothesis="What can never be delivered fails by itself, and what cannot be read is set aside; neither holds "
        "up the rest.",
        fault="A provider always rejects some payloads, and a record in the ledger is damaged.",
        limits=_DIES,
        allows=frozenset({"found_at_once"}),
    ),
    Drill(
        name="duplicate_delivery",
        stack="shared",
        hypothesis="A request that comes to two nodes at once under one key is one notification.",
        fault="Every request is sent to two nodes at the same time, and a worker is killed in the middle of attempts.",
        seconds=2.0,
    ),
    Drill(
        name="complete_outage",
        stack="alone",
        hypothesis="Whatever was answered 202 before everything died is delivered when it is started again.",
        fault="Every process of the service is killed at once and started again.",
        limits=_DIES,
        allows=frozenset({"found_at_once"}),
    ),
    Drill(
        name="backup_restore",
        stack="backed_up",
        hypothesis="The ledger comes back as it was at a second just before, and nothing that was sent is sent again.",
        fault="Backed up under load, the process is killed, its data and one of its two backups are deleted, and the "
        "other is restored.",
        seconds=6.0,  # Longer than what may be missing.
        limits=_DIES,
        allows=_GONE_WITH_THE_DISK,
    ),
    Drill(
        name="backup_target_away",
        stack="backed_up",
        hypothesis=_OTHER_TARGET,
        fault="One of two targets of the backups cannot be used: in the place of its folder is a link to itself.",
        seconds=1.0,
    ),
    Drill(
        name="backup_target_full",
        stack="small_target",
        hypothesis=_OTHER_TARGET,
        fault="The file system of one of two targets of the backups is filled to the last page.",
        seconds=1.0,
    ),
    Drill(
        name="mongodb_restore",
        stack="backed_up_cluster",
        hypothesis="The ledger comes back in another database as it was at a second just before, and nothing that was "
        "sent is sent again.",
        fault="Backed up under load, MongoDB loses all that it has, every node is killed, and the backup is restored "
        "beside an empty broker and an empty Redis.",
        seconds=5.0,  # As long as what may be missing, and something more until what waited is sent.
        limits=_DIES,
        allows=_GONE_WITH_THE_DISK,
    ),
    Drill(
        name="region_loss",
        stack="shared",
        hypothesis="One set of nodes is enough: the other takes over what the lost one had in hand.",
        fault="One of two sets of nodes, accepting and delivering, is killed and does not come back.",
        seconds=4.0,
        limits=_DIES,
        allows=frozenset({"found_at_once"}),
    ),
)


def _provider_drills() -> list[Drill]:
    return [
        Drill(
            name=f"{provider}_{kind}",
            stack="alone",
            hypothesis=f"What is for {title} waits and is delivered afterwards; the other providers feel nothing.",
            fault=f"{title[0].upper()}{title[1:]} {says}.",
            # Longer than an attempt may last, and long enough to be felt by others if it could be.
            seconds=3.0 if kind in ("hang", "latency") else 2.0,
            named=True,
        )
        for provider, title in PROVIDERS.items()
        for kind, says in PROVIDER_FAULTS.items()
    ]


def _switch_drills() -> list[Drill]:
    isolated = [
        Drill(
            name=f"{provider}_isolated",
            stack="alone",
            hypothesis=f"What is for {title} waits until the breaker is closed again, and is delivered then.",
            fault=f"The breaker of {title} is opened by hand.",
            named=True,
        )
        for provider, title in PROVIDERS.items()
    ]
    pinned = Drill(
        name="mode_pinned",
        stack="alone",
        hypothesis="Senders notice nothing of a mode that an operator holds on.",
        fault=f"The mode {PINNED_MODE} is pinned on by hand.",
        named=True,
    )
    return [*isolated, pinned]


def _store_drills() -> list[Drill]:
    return [
        Drill(
            name=f"{store}_{kind}",
            stack="cluster",
            hypothesis="Nothing is refused, lost or sent twice in secret: the other home takes it, and heals it after.",
            fault=f"{title} {says}.",
            seconds=seconds,
            limits=_LATE if kind == "latency" else Limits(),
        )
        for store, title in STORES.items()
        for kind, (says, seconds) in STORE_FAULTS.items()
    ]


DRILLS: Mapping[str, Drill] = {
    drill.name: drill for drill in [*_provider_drills(), *_switch_drills(), *_OWN, *_store_drills()]
}
"""All of them by name, in the order in which they are shown."""

REHEARSALS: Mapping[str, Drill] = {
    "rebuild": Drill(
        name="rebuild",
        stack="people",
        hypothesis="From its archive, its secrets and its pages the whole environment is built anew in the time that "
        "is allowed, and nothing is missing.",
        fault="Nothing that there is may be used; see docs/runbooks/rebuild.md.",
    ),
}
"""What no program can run. People do, and write down what it came to with `bellbuoy drill record`."""

PLANNED: Mapping[str, Drill] = {**DRILLS, **REHEARSALS}
"""All that can be due."""
