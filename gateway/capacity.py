"""How many connections a gateway can have at once."""

from __future__ import annotations

import resource

MAX_CONNECTIONS = 2048
_OTHER_FILES = 512
"""Descriptors that are not connections: of Ray, of files, of pipes."""


def most_connections() -> int:
    """As many as the files that this process may have open allow, once it has asked for all of them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, hard - _OTHER_FILES)
