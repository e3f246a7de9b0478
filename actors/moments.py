"""What asks the bucket on the way to something else, and must not hold it up when the bucket does not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable

MOMENTS_S = 3.0
"""Longer than any bucket takes that is well."""


def within_moments(act: Callable[[], None]) -> None:
    """Does it in a thread of its own, and waits for that a few moments; it then goes on in the background."""
    acting = threading.Thread(target=act, name="bucket", daemon=True)
    acting.start()
    acting.join(MOMENTS_S)
