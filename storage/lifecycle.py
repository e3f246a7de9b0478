"""The bucket's own lifecycle rules: the safety net under the collector.

A rule knows ages only, not the ttl of a single backup. So the operator chooses an upper bound after which the store may
delete anything under `backups/`, and the collector deletes each backup at its own ttl. Rules that are not ours are left
as they are. One that would delete the layers of incremental backups, whose age says nothing, is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from storage.errors import StorageError
from storage.keys import BACKUPS_PREFIX, LAYERS_ROOT

EXPIRE_RULE = "holdfast-expire-backups"
ABORT_RULE = "holdfast-abort-uploads"
_OURS = (EXPIRE_RULE, ABORT_RULE)
_ABORT_AFTER_DAYS = 1

Rule = Mapping[str, Any]


class LifecycleStore(Protocol):
    """A bucket with lifecycle rules. It passes the rules through as the store has them, and does not interpret them."""

    @property
    def bucket(self) -> str:
        """The bucket's name."""

    def lifecycle_rules(self) -> Sequence[Rule]:
        """All rules. Raises LifecycleUnsupportedError."""

    def replace_lifecycle_rules(self, rules: Sequence[Rule]) -> None:
        """Makes these all the rules, atomically. Raises LifecycleUnsupportedError."""


@dataclass(frozen=True, slots=True)
class LifecycleStatus:
    """Our rules in the bucket. `foreign_rules` counts the others; `over_layers` are those that would delete layers."""

    expire_after_days: int | None
    abort_uploads_after_days: int | None
    foreign_rules: int
    over_layers: tuple[str, ...] = ()

    @property
    def is_installed(self) -> bool:
        """True if both rules are there and enabled."""
        return self.expire_after_days is not None and self.abort_uploads_after_days is not None


def inspect(store: LifecycleStore) -> LifecycleStatus:
    """Reads which of our rules are installed.

    Raises:
        LifecycleUnsupportedError: permanent; the hint names what to do instead.
    """
    rules = store.lifecycle_rules()
    enabled = {rule.get("ID"): rule for rule in rules if rule.get("Status") == "Enabled"}
    expire = enabled.get(EXPIRE_RULE, {}).get("Expiration", {}).get("Days")
    abort = enabled.get(ABORT_RULE, {}).get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation")
    return LifecycleStatus(expire, abort, sum(rule.get("ID") not in _OURS for rule in rules), over_layers(rules))


def over_layers(rules: Sequence[Rule]) -> tuple[str, ...]:
    """The names of the enabled rules that would delete layers of incremental backups (`keys.layer`) by their age."""
    return tuple(
        str(rule.get("ID") or "(without a name)")
        for rule in rules
        if rule.get("Status") == "Enabled" and _deletes(rule) and _covers_layers(rule)
    )


def _deletes(rule: Rule) -> bool:
    expiration = rule.get("Expiration", {})
    return "Days" in expiration or "Date" in expiration


def _covers_layers(rule: Rule) -> bool:
    """True if the rule's prefix and that of some tenant's layers begin alike. No object of ours has a tag."""
    chosen = rule.get("Filter", {})
    both = chosen.get("And", {})
    if "Tag" in chosen or both.get("Tags"):
        return False
    prefix = str(rule.get("Prefix") or chosen.get("Prefix") or both.get("Prefix") or "")
    if not prefix.startswith(LAYERS_ROOT):
        return LAYERS_ROOT.startswith(prefix)
    _, names_tenant, rest = prefix.removeprefix(LAYERS_ROOT).partition("/")
    return not names_tenant or rest.startswith("layers/") or "layers/".startswith(rest)


def install(store: LifecycleStore, *, expire_after_days: int) -> LifecycleStatus:
    """Installs or replaces our rules and reads them back. Idempotent; not atomic against another writer of rules.

    Args:
        expire_after_days: at least the longest ttl in use, or backups go before they expire.

    Raises:
        LifecycleUnsupportedError: permanent; nothing was changed.
        StorageError: the store accepted the rules but does not have them.
    """
    if expire_after_days < 1:
        raise ValueError("expire_after_days must be at least 1")
    foreign = [rule for rule in store.lifecycle_rules() if rule.get("ID") not in _OURS]
    store.replace_lifecycle_rules([*foreign, *_rules(expire_after_days)])
    status = inspect(store)
    if status != LifecycleStatus(expire_after_days, _ABORT_AFTER_DAYS, len(foreign), over_layers(foreign)):
        raise StorageError("lifecycle", bucket=store.bucket, detail="the rules read back are not those written")
    return status


def remove(store: LifecycleStore) -> LifecycleStatus:
    """Removes our rules and leaves the others. Idempotent."""
    rules = store.lifecycle_rules()
    foreign = [rule for rule in rules if rule.get("ID") not in _OURS]
    if len(foreign) != len(rules):
        store.replace_lifecycle_rules(foreign)
    return inspect(store)


def _rules(expire_after_days: int) -> list[Rule]:
    expire = {"Expiration": {"Days": expire_after_days}}
    abort = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": _ABORT_AFTER_DAYS}}
    return [
        {"ID": name, "Status": "Enabled", "Filter": {"Prefix": BACKUPS_PREFIX}, **action}
        for name, action in ((EXPIRE_RULE, expire), (ABORT_RULE, abort))
    ]
