"""Firebase Cloud Messaging, HTTP v1."""

from bellbuoy.adapters.fcm.provider import FcmProvider

__all__ = ["FcmProvider"]
