"""Sealing: what opens, what does not, and keys that change."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellbuoy.adapters.cipher import KeyRing, ask_keys, new_key, read_keys
from bellbuoy.errors import ConfigurationError, Damaged

OLD, NEW = {"old": b"o" * 32}, {"new": b"n" * 32}


@pytest.mark.parametrize("ring", [KeyRing(NEW), KeyRing({})], ids=["encrypted", "framed"])
@given(data=st.binary(max_size=300), name=st.text("abc/-.", min_size=1), at=st.integers(0), bit=st.integers(0, 7))
def test_what_was_sealed_opens_and_one_bit_more_or_less_does_not(
    ring: KeyRing, data: bytes, name: str, at: int, bit: int
) -> None:
    sealed = ring.seal(name, data)
    assert ring.open(name, sealed) == data
    changed = bytearray(sealed)
    changed[at % len(sealed)] ^= 1 << bit
    for wrong, under in ((bytes(changed), name), (sealed[:-1], name), (sealed, name + "x"), (b"", name)):
        with pytest.raises((Damaged, ConfigurationError)):
            ring.open(under, wrong)


def test_the_same_is_never_sealed_the_same() -> None:
    ring = KeyRing(NEW)
    assert ring.seal("n", b"data") != ring.seal("n", b"data")
    assert b"data" not in ring.seal("n", b"data")


def test_the_newest_key_seals_and_the_old_ones_open() -> None:
    sealed = KeyRing(OLD).seal("n", b"data")
    both = KeyRing(OLD | NEW)
    assert both.open("n", sealed) == b"data"
    assert KeyRing(NEW).open("n", both.seal("n", b"data")) == b"data"
    with pytest.raises(ConfigurationError, match="the key old"):
        KeyRing(NEW).open("n", sealed)


def test_what_needs_no_key_is_refused_where_there_are_keys() -> None:
    with pytest.raises(Damaged, match="not encrypted"):
        KeyRing(NEW).open("n", KeyRing({}).seal("n", b"forged"))


def test_a_key_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{new_key('k1')}\n\n{new_key('k2')}  # since May\n")
    path.chmod(0o600)
    assert b"k2" in read_keys(path).seal("n", b"data")[:8]


@pytest.mark.parametrize("text", ["", "k1", "k1 abc", "k1 " + "0" * 63, "a b c", f"k {'0' * 64}\nk {'1' * 64}"])
def test_a_key_file_that_is_none_is_said_so_without_its_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError) as raised:
        read_keys(path)
    assert "000" not in str(raised.value)


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(new_key("k1"))
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="others may read"):
        read_keys(path)


def test_keys_come_from_a_command_as_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(new_key("k1") + "\n" + new_key("k2") + "\n")
    path.chmod(0o600)
    sealed = ask_keys(["cat", str(path)]).seal("a", b"data")
    assert read_keys(path).open("a", sealed) == b"data"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["no-such-program"], "No such file"),
        (["false"], "status 1"),
        (["echo", "k1 secret-that-is-no-key"], "line 1 of what echo printed"),
        (["true"], "holds no key"),
        (["printf", "\\377"], "no key"),
    ],
)
def test_a_command_that_gives_no_keys_is_said_so_and_nothing_of_them(command: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as raised:
        ask_keys(command)
    assert "secret" not in f"{raised.value} {raised.value.hint}"


def test_a_command_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bellbuoy.adapters.cipher.COMMAND_S_MAX", 0.1)
    with pytest.raises(ConfigurationError, match="longer than"):
        ask_keys(["sleep", "30"])
