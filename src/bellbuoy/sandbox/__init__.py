"""Faithful stand-ins for every outside system, with faults on demand; a product of its own, apart from the service."""

from bellbuoy.sandbox.sandbox import Sandbox, SandboxSettings

__all__ = ["Sandbox", "SandboxSettings"]
