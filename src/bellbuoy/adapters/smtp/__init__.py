"""Mail over a submission server."""

from bellbuoy.adapters.smtp.provider import SmtpProvider

__all__ = ["SmtpProvider"]
