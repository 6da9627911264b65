"""One message as a mail.

Source: RFC 5322 (the mail), RFC 3834 (Auto-Submitted).
"""

from __future__ import annotations

import re
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP as MAIL_POLICY
from email.utils import format_datetime, parseaddr

from bellbuoy.model.delivery import Message

SUBJECT_CHARS_MAX = 200
"""Characters of a subject made from the body of a message without a title."""

ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


def compose(message: Message, sender: str, date: datetime) -> bytes:
    """Write the mail. The Message-ID is the delivery's, so a mailbox that gets a retry twice can see it is the same.

    Nothing that a client wrote can end a header: control characters in the subject become spaces, the address has none,
    and the text is only in the body.
    """
    content = message.content
    mail = EmailMessage(policy=MAIL_POLICY)
    first_line = content.body.strip().partition("\n")[0]
    subject = CONTROL.sub(" ", content.title or first_line[:SUBJECT_CHARS_MAX]).strip()
    # The library decodes encoded words (RFC 2047) in what it is given, and one of them can hold a line's end that it
    # then writes as it is. A title has no business with them, so none is left whole.
    mail["Subject"] = subject.replace("=?", "= ?")
    mail["From"] = sender
    mail["To"] = message.endpoint
    mail["Date"] = format_datetime(date)
    mail["Message-ID"] = f"<{message.delivery_id}@{parseaddr(sender)[1].rpartition('@')[2]}>"
    # RFC 3834: keeps holiday notices from answering.
    mail["Auto-Submitted"] = "auto-generated"
    if message.priority != "normal":
        mail["Importance"] = message.priority
    text = (content.body or content.title).encode("utf-8", "replace").decode()
    mail.set_content(text, cte="quoted-printable")
    return mail.as_bytes()


def queue_name(words: str) -> str | None:
    """The server's name for the mail, which most put last in `2.0.0 Ok: queued as 4XyZ`; None without one."""
    match = re.search(r"(?:queued as|id=)\s*<?([A-Za-z0-9._-]{1,64})", words)
    return match[1] if match else None
