"""The names of actors in Ray, and of a sandbox's lanes."""

from __future__ import annotations

NAMESPACE = "holdfast"
SERVICE_NAME = "service"
SANDBOX_PREFIX = "sandbox:"
MAILBOX, EXEC, INPUT, FILES, READS = "mailbox", "exec", "input", "files", "reads"
"""The lanes of a sandbox in which calls may have to wait."""


def sandbox_actor_name(tenant: str, sandbox_id: str) -> str:
    """The name under which a sandbox's actor is registered in the namespace."""
    return f"{SANDBOX_PREFIX}{tenant}:{sandbox_id}"
