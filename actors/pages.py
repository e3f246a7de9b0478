"""All pages of a list, one after the other. Runs in the process of the caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar


class Page(Protocol):
    """A page of a list. Its cursor begins the next page, and is None on the last one."""

    @property
    def cursor(self) -> str | None:
        """See above."""


P = TypeVar("P", bound=Page)


def pages(read: Callable[[str | None], P]) -> Iterator[P]:
    """Yields the pages that `read` returns: the first for None, each later one for the cursor of the page before."""
    cursor: str | None = None
    while True:
        page = read(cursor)
        yield page
        cursor = page.cursor
        if cursor is None:
            return
