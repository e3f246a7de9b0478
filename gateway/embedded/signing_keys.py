"""The keys with which one machine's service signs and verifies: the operator's, or the machine's own.

A machine's own key is lost with its data folder. So a new folder, over a bucket with backups that no key of this
machine has signed, is taken for that of a rebuilt machine: the service does not start until the operator has said
which key to use.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from actors.bucket import signed_in
from actors.errors import InvalidRequestError
from actors.settings import Settings
from gateway.embedded.secrets import MachineSecrets


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The keys of a service. The first one signs; all of them verify."""

    signing: SecretStr
    old: tuple[SecretStr, ...]


def key_ring(settings: Settings, secrets: MachineSecrets) -> KeyRing:
    """The keys of a machine. Backups that its own key signed stay trusted after the operator has set another key."""
    old = settings.verifying_keys(reads_buckets_secret=secrets.reads_buckets_secret)
    if settings.signing_key is None:
        return KeyRing(secrets.signing_key, old)
    return KeyRing(settings.signing_key, (*old, secrets.signing_key))


def fit_for_the_bucket(secrets: MachineSecrets, settings: Settings, *, folder: Path) -> MachineSecrets:
    """Fits fresh secrets to the backups that an operator's bucket holds already, before they are kept in `folder`.

    Raises:
        InvalidRequestError: all signed backups there were signed with keys that this machine does not have.
        StorageUnavailableError: the bucket does not answer.
    """
    bucket = settings.bucket()
    if bucket is None:
        return secrets
    if signed_in(bucket, bucket.secret_access_key).known:
        return secrets.model_copy(update={"reads_buckets_secret": True})
    ring = key_ring(settings, secrets)
    found = signed_in(bucket, ring.signing, ring.old)
    if settings.signing_key is None and found.unknown and not found.known:
        raise InvalidRequestError(
            "The bucket holds backups that another key has signed, and this machine would make itself a new one.",
            hint="Set HOLDFAST_SIGNING_KEY to the key of the machine that made them (there it is in"
            f" {folder / 'signing_key'}); or to a new one, to go on without those backups.",
        )
    return secrets
