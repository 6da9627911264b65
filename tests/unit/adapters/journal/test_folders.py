"""Which folder is whose, when several processes start and end."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bellbuoy.adapters.journal import claim_folder

COUNT = 8


def test_those_who_start_at_once_get_the_first_folders_each_its_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(COUNT) as threads:
        for n in range(5):
            root = tmp_path / str(n)
            found = list(threads.map(lambda _, root=root: claim_folder(root), range(COUNT)))
            assert sorted(own.name for own, _, _ in found) == [str(number) for number in range(COUNT)]
            for _, lock, left in found:
                assert left == []
                lock.close()


def test_what_one_that_ended_left_is_found_by_the_next(tmp_path: Path) -> None:
    first, first_lock, _ = claim_folder(tmp_path)
    second, second_lock, _ = claim_folder(tmp_path)
    first.mkdir()
    second.mkdir()
    second_lock.close()
    first_lock.close()
    own, lock, left = claim_folder(tmp_path)
    assert (own, [folder for folder, _ in left]) == (first, [second])
    for other in (lock, *(one for _, one in left)):
        other.close()
