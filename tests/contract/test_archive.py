"""One suite for every target of backups: what `bellbuoy.ports.archive.ObjectStore` promises."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bellbuoy.adapters.objectstore import Objects
from bellbuoy.errors import ConfigurationError, NotFound, Unavailable
from bellbuoy.ports.archive import OBJECT_BYTES_MAX
from tests.support.azure import ACCOUNT, CONTAINER
from tests.support.s3 import Region


@pytest.fixture(params=["file", "memory", "s3", "gs", "az"])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
    if request.param == "file":
        (tmp_path / "a folder").mkdir()
        return Objects(f"file://{tmp_path}/a folder")
    if request.param == "memory":
        return Objects("memory:///")
    if request.param == "az":
        stand_in = request.getfixturevalue("azure")
        return Objects(f"az://{ACCOUNT}/{CONTAINER}/some/prefix", endpoint=stand_in.endpoint)
    first, _ = request.getfixturevalue("regions")
    # Google's interface for XML is that of S3, so the same server stands in; it wants a token in a form that it knows.
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "testing/20260101/us-east-1/s3/aws4_request")
    return Objects(f"{request.param}://backups/some/prefix", endpoint=first.endpoint)


async def test_what_is_put_is_there_until_it_is_deleted(target: Objects) -> None:
    await target.put("a/b/one", b"1")
    await target.put("a/b/one", b"11")
    await target.put("a/two", bytes(3_000_000))
    await target.put("b/three", b"")
    assert await target.get("a/b/one") == b"11"
    assert len(await target.get("a/two")) == 3_000_000
    assert await target.get("b/three") == b""
    assert [(one.name, one.size) for one in await target.list("")] == [
        ("a/b/one", 2),
        ("a/two", 3_000_000),
        ("b/three", 0),
    ]
    assert [one.name for one in await target.list("a/")] == ["a/b/one", "a/two"]
    assert await target.list("c/") == []
    assert await target.exists("a/two")
    await target.delete(["a/two", "a/two", "never/there"])
    assert not await target.exists("a/two")
    with pytest.raises(NotFound):
        await target.get("a/two")


async def test_more_names_than_a_page_are_all_listed(tmp_path: Path) -> None:
    target = Objects(f"file://{tmp_path}")
    for number in range(1_500):
        (tmp_path / f"{number:05}").touch()
    assert len(await target.list("")) == 1_500


async def test_what_somebody_put_into_a_folder_hides_nothing(tmp_path: Path) -> None:
    target = Objects(f"file://{tmp_path}")
    await target.put("log/a", b"1")
    for name in (b"log/\xff", b"log/#1", b"log/a b", "log/²".encode()):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    (tmp_path / "log" / "nowhere").symlink_to(tmp_path / "none")
    (tmp_path / "log" / "around").symlink_to(tmp_path)
    (tmp_path / "log" / "empty").mkdir()
    (tmp_path / "log" / "mine").touch()
    assert [one.name for one in await target.list("log/")] == ["log/a", "log/mine"]
    assert [one.name for one in await target.list("")] == ["log/a", "log/mine"]


async def test_a_folder_that_went_away_is_not_made_anew_nor_taken_for_an_empty_one(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    target = Objects(f"file://{folder}")
    await target.put("a", b"1")
    folder.rename(tmp_path / "elsewhere")
    for _ in range(2):
        for one in (target, Objects(f"file://{folder}")):
            for call in (one.put("b", b"2"), one.get("a"), one.list(""), one.exists("a"), one.delete(["a"])):
                with pytest.raises(Unavailable, match="is not there"):
                    await call
        assert not folder.is_dir()
        if not folder.is_symlink():
            folder.symlink_to(folder)  # The same of a link to itself.
    folder.unlink()
    (tmp_path / "elsewhere").rename(folder)
    assert await target.get("a") == b"1"


async def test_what_is_too_large_is_refused(target: Objects) -> None:
    with pytest.raises(ValueError, match="at most"):
        await target.put("large", bytes(OBJECT_BYTES_MAX + 1))
    assert await target.list("") == []


async def test_a_region_that_is_down_is_unavailable(regions: tuple[Region, Region]) -> None:
    first, _ = regions
    target = Objects("s3://backups", endpoint=first.endpoint)
    first.stop()
    for call in (target.put("a", b""), target.get("a"), target.list(""), target.exists("a"), target.delete(["a"])):
        with pytest.raises(Unavailable):
            await call


async def test_a_bucket_that_is_not_there_is_unavailable(regions: tuple[Region, Region]) -> None:
    target = Objects("s3://another", endpoint=regions[0].endpoint)
    with pytest.raises((Unavailable, NotFound)):
        await target.put("a", b"")


@pytest.mark.parametrize("url", ["", "backups", "file://relative", "ftp://host/x", "s3:/bucket", "az://account"])
def test_what_is_no_target_is_said_so(url: str) -> None:
    with pytest.raises(ConfigurationError):
        Objects(url)
