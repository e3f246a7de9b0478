"""The findings of `holdfast doctor` on a node, as models that travel between processes."""

from __future__ import annotations

from pathlib import Path

from actors.config import DEFAULT_UID, DriverChoice
from actors.models import Check
from actors.node.doctor import RESTORES, examine
from actors.node.drivers import setting_of
from storage.config import BucketConfig
from storage.errors import AccessRefusedError, LifecycleUnsupportedError, StorageError
from storage.lifecycle import LifecycleStore, over_layers
from storage.s3 import S3ObjectStore

__all__ = ["RESTORES", "bucket_checks", "checks"]


def checks(
    data_dir: Path,
    *,
    uid: int = DEFAULT_UID,
    network: bool = False,
    driver: DriverChoice = "auto",
    thorough: bool = True,
) -> list[Check]:
    """Tries everything that sandboxes on this machine need; see `actors.node.doctor.examine`."""
    setting = setting_of(driver)
    return [
        Check(name=found.name, ok=found.ok, required=found.required, detail=found.detail, fix=found.fix)
        for found in examine(data_dir, uid, network=network, driver=setting, thorough=thorough)
    ]


def bucket_checks(bucket: BucketConfig | None) -> list[Check]:
    """Asks the bucket, if there is one of the operator's own, for what would harm backups in it."""
    return [] if bucket is None else [rules_check(S3ObjectStore(bucket))]


def rules_check(store: LifecycleStore) -> Check:
    """Tells whether lifecycle rules of others would delete the layers of incremental backups."""

    def check(detail: str, fix: str | None = None) -> Check:
        return Check(name="lifecycle rules", ok=fix is None, required=False, detail=detail, fix=fix)

    try:
        found = over_layers(store.lifecycle_rules())
    except LifecycleUnsupportedError:
        return check("the store has none")
    except AccessRefusedError:
        return check(
            "the keys may not read the bucket's rules",
            "see to it that no rule deletes objects under tenants/, or let the keys read the rules",
        )
    except StorageError as e:
        return check(f"they could not be read: {e}", "make the bucket answer")
    if found:
        return check(
            f"they would delete layers of incremental backups, so all backups are full: {', '.join(found)}",
            "limit these rules to a prefix other than tenants/",
        )
    return check("none would delete layers of incremental backups")
