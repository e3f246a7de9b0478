"""A model of a sandbox's expected files, independent of the product: dictionaries of paths and bytes.

While the outcome of a call is unknown, the model has several states, one for each allowed outcome. The next look at
the sandbox must match one of them, and only that one stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

Files = Mapping[str, bytes]
Seen = Mapping[str, str]
"""The files found in a sandbox: SHA-256 by path below /workspace."""
Change = Callable[[Files], Files]


class WrongTreeError(AssertionError):
    """A sandbox has content that no outcome of the calls explains: something was lost, or has come back."""


def put(path: str, data: bytes) -> Change:
    """Writes a file with this content."""
    return lambda files: {**files, path: data}


def append(path: str, data: bytes) -> Change:
    """Appends these bytes to a file, and creates it if it is missing."""
    return lambda files: {**files, path: files.get(path, b"") + data}


def remove(path: str) -> Change:
    """Deletes a file."""
    return lambda files: {name: data for name, data in files.items() if name != path}


def rename(old: str, new: str) -> Change:
    """Renames a file, and replaces a file with the new name."""
    return lambda files: {**remove(old)(files), new: files[old]} if old in files else files


def clear() -> Change:
    """Deletes everything."""
    return lambda files: {}


def restore(directory: str, backup: Files) -> Change:
    """Replaces everything below the directory with the backup's files. The root is the empty string."""
    prefix = f"{directory}/" if directory else ""
    placed = {prefix + name: data for name, data in backup.items()}
    return lambda files: {**{name: data for name, data in files.items() if not name.startswith(prefix)}, **placed}


def below(files: Files, directory: str) -> Files:
    """The files of a directory, by their paths in it."""
    prefix = f"{directory}/" if directory else ""
    return {name.removeprefix(prefix): data for name, data in files.items() if name.startswith(prefix)}


class Model:
    """The possible states of a sandbox."""

    def __init__(self) -> None:
        self._possible: list[Files] = [{}]

    @property
    def is_certain(self) -> bool:
        """True if only one state is possible."""
        return len(self._possible) == 1

    @property
    def files(self) -> Files:
        """The only possible state."""
        (files,) = self._possible
        return files

    def happened(self, changes: Sequence[Change]) -> None:
        """Records that all changes were made, in order."""
        self._possible = _distinct([_after(files, changes) for files in self._possible])

    def may_have_happened(self, changes: Sequence[Change]) -> None:
        """Records that none of the changes was made, or the first few, or all."""
        self._possible = _distinct(
            [_after(files, changes[:number]) for files in self._possible for number in range(len(changes) + 1)]
        )

    def saw(self, found: Seen) -> None:
        """Compares what was found with the possible states, and keeps the one that matches.

        Raises:
            WrongTreeError: none matches.
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
