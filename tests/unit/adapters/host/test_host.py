"""Memory against the nearest limit, read from files laid out as Linux lays them out; and the machine that is here."""

from __future__ import annotations

from pathlib import Path

import pytest

from bellbuoy.adapters.host import PAGE_BYTES, LinuxHost

MIB = 1024 * 1024


def lay(root: Path, files: dict[str, str]) -> LinuxHost:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return LinuxHost(root, root=root)


MACHINE = {"proc/meminfo": "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 900 kB\n"}


def test_the_machines_memory_counts_without_any_other_limit(tmp_path: Path) -> None:
    assert lay(tmp_path, MACHINE).memory_ratio() == pytest.approx(0.1)


def test_the_nearest_limit_of_the_control_groups_around_counts(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/kube/pod"
    host = lay(
        tmp_path,
        {
            **MACHINE,
            "proc/self/cgroup": "0::/kube/pod/app\n",
            f"{group}/app/memory.current": "500",
            f"{group}/app/memory.max": "max",
            f"{group}/memory.current": "900",
            f"{group}/memory.max": "1000",
            f"{group}/memory.stat": "anon 700\ninactive_file 100\n",
        },
    )
    assert host.memory_ratio() == pytest.approx(0.8), "what the kernel can drop at once is not in use"


def test_a_container_sees_only_the_root_of_its_own_group(tmp_path: Path) -> None:
    host = lay(
        tmp_path,
        {
            **MACHINE,
            "proc/self/cgroup": "0::/../../pod\n",
            "sys/fs/cgroup/memory.current": "30",
            "sys/fs/cgroup/memory.max": "100",
        },
    )
    assert host.memory_ratio() == pytest.approx(0.3)


def test_version_1_of_control_groups_is_read_too(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/docker/abc"
    host = lay(
        tmp_path,
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:memory:/docker/abc\n",
            f"{group}/memory.usage_in_bytes": "950",
            f"{group}/memory.limit_in_bytes": "1000",
            f"{group}/memory.stat": "cache 10\ntotal_inactive_file 50\n",
        },
    )
    assert host.memory_ratio() == pytest.approx(0.9)


def test_an_operators_own_limit_counts_for_this_process(tmp_path: Path) -> None:
    lay(tmp_path, {**MACHINE, "proc/self/statm": "9999 512 1 1 0 1 0\n"})
    host = LinuxHost(tmp_path, memory_max_bytes=1024 * PAGE_BYTES, root=tmp_path)
    assert host.memory_ratio() == pytest.approx(0.5)


def test_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    host = LinuxHost(tmp_path / "nowhere", root=tmp_path / "nothing")
    assert (host.memory_ratio(), host.disk_free_bytes()) == (None, None)


def test_the_machine_that_is_here_can_be_read(tmp_path: Path) -> None:
    host = LinuxHost(tmp_path)
    ratio, free = host.memory_ratio(), host.disk_free_bytes()
    assert ratio is not None
    assert 0.0 < ratio < 1.5
    assert free is not None
    assert free > MIB
