from __future__ import annotations

import pytest

from actors.errors import BackupNotFoundError
from actors.sandbox.fetch import InBucket
from storage.errors import StoreUnavailableError
from tests.support.memory_store import MemoryObjectStore


class AbsentStore(MemoryObjectStore):
    """A store that does not answer."""

    def size_of(self, key: str) -> int:
        raise StoreUnavailableError("size_of", bucket=self.bucket, key=key)


@pytest.fixture
def store() -> MemoryObjectStore:
    store = MemoryObjectStore()
    for key in ("a", "b"):
        store.put(key, b"")
    return store


@pytest.mark.parametrize("archives", [[], ["a"], ["a", "b"]])
def test_archives_that_are_there_are_found(store: MemoryObjectStore, archives: list[str]) -> None:
    InBucket(store, "a-backup", archives).check()


@pytest.mark.parametrize("archives", [["none"], ["a", "none"], ["none", "b"]])
def test_one_missing_archive_of_several_makes_the_backup_missing(store: MemoryObjectStore, archives: list[str]) -> None:
    with pytest.raises(BackupNotFoundError):
        InBucket(store, "a-backup", archives).check()


def test_a_store_that_does_not_answer_is_an_error_of_the_store() -> None:
    with pytest.raises(StoreUnavailableError):
        InBucket(AbsentStore(), "a-backup", ["a"]).check()
