"""The number of connections that a gateway can have at once."""

from __future__ import annotations

import resource

MAX_CONNECTIONS = 2048
_OTHER_FILES = 512
"""Number of descriptors for anything but connections: Ray, files, pipes."""


def most_connections() -> int:
    """The limit of connections, after raising this process's limit of open files as far as it goes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, hard - _OTHER_FILES)
