"""The pauses between the attempts of a request: random, and longer each time."""

from __future__ import annotations

import tenacity
from tenacity.wait import wait_base

from storage.config import TransferConfig


def pauses(transfer: TransferConfig) -> wait_base:
    """The strategy of pauses that the settings ask for, in seconds."""
    return tenacity.wait_random_exponential(multiplier=transfer.backoff_initial_s, max=transfer.backoff_max_s)
