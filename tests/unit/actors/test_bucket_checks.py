"""`holdfast doctor` names lifecycle rules that would delete layers, and says if it cannot know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from actors.service.doctor import bucket_checks, rules_check
from storage.errors import AccessRefusedError, LifecycleUnsupportedError, StorageError, StoreUnavailableError

EXPIRE = {"ID": "theirs", "Status": "Enabled", "Expiration": {"Days": 7}, "Filter": {"Prefix": ""}}


class Ruled:
    """A bucket with these rules, or whose rules cannot be read."""

    bucket = "b"

    def __init__(self, *rules: Mapping[str, Any], error: type[StorageError] | None = None) -> None:
        self._rules, self._error = rules, error

    def lifecycle_rules(self) -> Sequence[Mapping[str, Any]]:
        if self._error is not None:
            raise self._error("lifecycle", bucket=self.bucket)
        return self._rules

    def replace_lifecycle_rules(self, rules: Sequence[Mapping[str, Any]]) -> None:
        raise AssertionError("doctor changes nothing")


@pytest.mark.parametrize(
    ("bucket", "ok", "words"),
    [
        (Ruled(), True, "none would delete"),
        (Ruled(EXPIRE), False, "theirs"),
        (Ruled({**EXPIRE, "Filter": {"Prefix": "logs/"}}), True, "none would delete"),
        (Ruled(error=LifecycleUnsupportedError), True, "has none"),
        (Ruled(error=AccessRefusedError), False, "may not read"),
        (Ruled(error=StoreUnavailableError), False, "could not be read"),
    ],
)
def test_rules_over_layers_are_found_or_unknown(bucket: Ruled, ok: bool, words: str) -> None:
    found = rules_check(bucket)
    assert (found.ok, found.required) == (ok, False)
    assert words in found.detail
    assert (found.fix is None) == ok


def test_without_a_bucket_there_is_nothing_to_check() -> None:
    assert bucket_checks(None) == []
