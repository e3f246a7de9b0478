"""A model of what a sandbox has to hold, which knows nothing of the product: dictionaries of paths and bytes.

While the answer to a call is lost the model has several states, one for each outcome that is allowed; the next look
at the sandbox has to find one of them, and it alone stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

Files = Mapping[str, bytes]
Seen = Mapping[str, str]
"""The files that were found, by path below /workspace, and the SHA-256 of each."""
Change = Callable[[Files], Files]


class WrongTreeError(AssertionError):
    """A sandbox holds what no outcome of the calls so far explains: something is lost, or has come back."""


def put(path: str, data: bytes) -> Change:
    """The file is there, with this content."""
    return lambda files: {**files, path: data}


def append(path: str, data: bytes) -> Change:
    """The file ends with these bytes, and is made where it is missing."""
    return lambda files: {**files, path: files.get(path, b"") + data}


def remove(path: str) -> Change:
    """The file is not there."""
    return lambda files: {name: data for name, data in files.items() if name != path}


def rename(old: str, new: str) -> Change:
    """The file has the other name, and takes the place of what had it before."""
    return lambda files: {**remove(old)(files), new: files[old]} if old in files else files


def clear() -> Change:
    """Nothing is there."""
    return lambda files: {}


def restore(directory: str, backup: Files) -> Change:
    """Below the directory there is what the backup holds, and nothing else. The root is the empty string."""
    prefix = f"{directory}/" if directory else ""
    placed = {prefix + name: data for name, data in backup.items()}
    return lambda files: {**{name: data for name, data in files.items() if not name.startswith(prefix)}, **placed}


def below(files: Files, directory: str) -> Files:
    """The files of a directory, by their paths in it."""
    prefix = f"{directory}/" if directory else ""
    return {name.removeprefix(prefix): data for name, data in files.items() if name.startswith(prefix)}


class Model:
    """The states that a sandbox may be in."""

    def __init__(self) -> None:
        self._possible: list[Files] = [{}]

    @property
    def is_certain(self) -> bool:
        """Whether only one state is possible."""
        return len(self._possible) == 1

    @property
    def files(self) -> Files:
        """The one state that is possible."""
        (files,) = self._possible
        return files

    def happened(self, changes: Sequence[Change]) -> None:
        """All changes were made, one after the other."""
        self._possible = _distinct([_after(files, changes) for files in self._possible])

    def may_have_happened(self, changes: Sequence[Change]) -> None:
        """None of the changes was made, or only the first few, or all."""
        self._possible = _distinct(
            [_after(files, changes[:number]) for files in self._possible for number in range(len(changes) + 1)]
        )

    def saw(self, found: Seen) -> None:
        """The sandbox holds exactly this.

        Raises:
            WrongTreeError: it may not.
        """
        for files in self._possible:
            if digests(files) == found:
                self._possible = [files]
                return
        nearest = min((_difference(digests(files), found) for files in self._possible), key=len)
        raise WrongTreeError(f"of {len(self._possible)} states that are allowed the nearest differs in: {nearest}")


def digests(files: Files) -> Seen:
    """The SHA-256 of every file."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def _after(files: Files, changes: Sequence[Change]) -> Files:
    for change in changes:
        files = change(files)
    return files


def _distinct(states: Sequence[Files]) -> list[Files]:
    found: list[Files] = []
    for state in states:
        if state not in found:
            found.append(state)
    return found


def _difference(expected: Seen, found: Seen) -> list[str]:
    lines = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name} should not be there" for name in sorted(found.keys() - expected.keys())]
    return lines + [
        f"{name} has other content" for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]
    ]
