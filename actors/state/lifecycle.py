"""The life of a sandbox in its actor: the one state that it is in, and the moves from each state to others.

    UNKNOWN ──▶ WAKING ──▶ AWAKE ──▶ ASLEEP_HERE           its files here
       │          ▲▼         ▲ └───▶ LEAVING ──▶ ASLEEP_IN_BUCKET, or ASLEEP_HERE if that fails
       └──▶ RECOVERING ──────┘

A failed attempt to wake ends in UNKNOWN. A sandbox that is asleep or destroyed wakes, or recovers, with its next call.
Any sandbox can be destroyed, except while it leaves, and any can be superseded.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from enum import Enum, auto
from types import MappingProxyType

from actors.errors import SupersededError


class Life(Enum):
    """The states of a sandbox, as its actor knows it."""

    UNKNOWN = auto()
    """This actor has not woken it yet, and does not know where its files are."""
    WAKING = auto()
    """Its files are here, and are being mounted. It stays so while a restored directory cannot be mounted."""
    RECOVERING = auto()
    """Its directories are being recovered from their checkpoints. It stays so while one is missing."""
    AWAKE = auto()
    """Everything was mounted, and calls are served."""
    LEAVING = auto()
    """Its sleep in the bucket is being written; until that has ended, nothing else may be written."""
    ASLEEP_HERE = auto()
    """It was put to sleep, or closed, with its files on this node."""
    ASLEEP_IN_BUCKET = auto()
    """It was put to sleep, and its files are in checkpoints only."""
    DESTROYED = auto()
    """It was destroyed, and not used since."""
    SUPERSEDED = auto()
    """Another actor has it. This one may not write anything any more."""


_ASLEEP_TO = frozenset({Life.WAKING, Life.RECOVERING, Life.DESTROYED})
_MOVES: Mapping[Life, frozenset[Life]] = MappingProxyType(
    {
        Life.UNKNOWN: _ASLEEP_TO | {Life.ASLEEP_HERE},
        Life.WAKING: frozenset({Life.UNKNOWN, Life.RECOVERING, Life.AWAKE, Life.DESTROYED}),
        Life.RECOVERING: frozenset({Life.UNKNOWN, Life.WAKING, Life.AWAKE, Life.DESTROYED}),
        Life.AWAKE: frozenset({Life.WAKING, Life.RECOVERING, Life.LEAVING, Life.ASLEEP_HERE, Life.DESTROYED}),
        Life.LEAVING: frozenset({Life.ASLEEP_HERE, Life.ASLEEP_IN_BUCKET}),
        Life.ASLEEP_HERE: _ASLEEP_TO,
        Life.ASLEEP_IN_BUCKET: _ASLEEP_TO,
        Life.DESTROYED: frozenset({Life.WAKING, Life.RECOVERING}),
        Life.SUPERSEDED: frozenset(),
    }
)
"""The moves that are allowed. Any state may also become SUPERSEDED, and may stay as it is."""
_UNWOKEN = frozenset({Life.UNKNOWN, Life.WAKING, Life.RECOVERING})
_MAY_WRITE = frozenset({Life.WAKING, Life.RECOVERING, Life.AWAKE})


class ForbiddenMoveError(Exception):
    """A sandbox was to move to a state that does not follow from its own: a defect."""


class LifeCycle:
    """The life of one sandbox in one actor. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state = Life.UNKNOWN

    @property
    def state(self) -> Life:
        """The state that the sandbox is in."""
        return self._state

    @property
    def is_unwoken(self) -> bool:
        """True until the sandbox is awake, closed or destroyed, even if an attempt to wake it has failed."""
        return self._state in _UNWOKEN

    @property
    def may_write(self) -> bool:
        """True if the actor may claim the epoch, and write the state document."""
        return self._state in _MAY_WRITE

    def move(self, to: Life) -> None:
        """Moves to this state.

        Raises:
            SupersededError: another actor has the sandbox; it stays so.
            ForbiddenMoveError: the move is not allowed.
        """
        with self._lock:
            if to not in {*_MOVES[self._state], self._state, Life.SUPERSEDED}:
                if self._state is Life.SUPERSEDED:
                    raise SupersededError
                raise ForbiddenMoveError(f"{self._state.name} -> {to.name}")
            self._state = to

    def end(self) -> None:
        """Ends the sandbox's time awake, if it is awake: it is asleep here. If it was to wake, that has failed."""
        with self._lock:
            if self._state in (Life.AWAKE, Life.LEAVING):
                self._state = Life.ASLEEP_HERE
            elif self._state in (Life.WAKING, Life.RECOVERING):
                self._state = Life.UNKNOWN

    def close(self) -> None:
        """Ends the sandbox's time awake like `end`, and has it asleep here even if it was not woken yet."""
        self.end()
        with self._lock:
            if self._state is Life.UNKNOWN:
                self._state = Life.ASLEEP_HERE
