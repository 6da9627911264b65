"""docs/sandbox.md names everything a user can ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from bellbuoy.sandbox import apns, fcm, sms, smtp
from bellbuoy.sandbox.faults import _FIELDS, KINDS

DOCS = (Path(__file__).parents[3] / "docs" / "sandbox.md").read_text()


@pytest.mark.parametrize(
    "word",
    [
        *KINDS,
        *_FIELDS,
        *fcm.MAGIC_TOKENS,
        *fcm.TABLE.rows,
        *apns.MAGIC_PREFIXES,
        *smtp.MAGIC_ADDRESSES,
        *sms.MAGIC_NUMBERS,
        *sms.MAGIC_SENDERS,
        *("control_port", "fcm_port", "apns_port", "smtp_port", "sms_port", "alerts_port", "data_dir"),
    ],
)
def test_it_is_documented(word: str) -> None:
    assert word in DOCS
