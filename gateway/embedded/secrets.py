"""The secrets that a machine's service makes for itself, once, and keeps beside its data."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError, field_serializer

from actors.errors import InvalidRequestError

_FILE = "secrets.json"


class MachineSecrets(BaseModel):
    """The secrets of one data folder. Backups that were signed with `signing_key` are trusted as long as it lives.

    `reads_buckets_secret` says whether the bucket's secret key has signed backups that are to be read still: folders
    that are older than this field say nothing of it, and then it has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    api_key: SecretStr
    signing_key: SecretStr
    s3_access_key: SecretStr
    s3_secret_key: SecretStr
    ray_token: SecretStr
    reads_buckets_secret: bool = True

    @field_serializer("api_key", "signing_key", "s3_access_key", "s3_secret_key", "ray_token")
    def _plain(self, value: SecretStr) -> str:
        return value.get_secret_value()

    @classmethod
    def make(cls) -> MachineSecrets:
        """Fresh ones, of 160 to 256 bits each."""
        return cls(
            api_key=SecretStr(f"hf_{secrets.token_urlsafe(32)}"),
            signing_key=SecretStr(secrets.token_hex(32)),
            s3_access_key=SecretStr(secrets.token_hex(10)),
            s3_secret_key=SecretStr(secrets.token_hex(20)),
            ray_token=SecretStr(secrets.token_hex(32)),
            reads_buckets_secret=False,
        )


def load_or_make(
    folder: Path, *, fit: Callable[[MachineSecrets], MachineSecrets] = lambda fresh: fresh
) -> MachineSecrets:
    """The secrets kept in `folder`, which only root can enter; made on the first call.

    `fit` has the last word on fresh ones, before they are kept.

    Raises:
        InvalidRequestError: they are there, and damaged. New ones are never made over them.
        Exception: what `fit` raises.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / _FILE
    with contextlib.suppress(FileNotFoundError):
        try:
            return MachineSecrets.model_validate_json(file.read_bytes())
        except ValidationError:
            raise unreadable(folder) from None
    made = fit(MachineSecrets.make())
    write_private(file, made.model_dump_json())
    return made


def unreadable(folder: Path) -> InvalidRequestError:
    """The error for secrets that are not those which a service once wrote."""
    return InvalidRequestError(
        f"The service's own secrets are damaged: {folder / _FILE}.",
        hint="Put a copy of the file back. Without one, move it away: the service makes new keys, its clients need the "
        "new API key, and it did not sign the backups that are there.",
    )


def write_private(file: Path, text: str) -> None:
    """Writes a file that only its owner can read, whole or not at all.

    One that says the same already stays: where nothing has changed the service starts though its disk is full.
    """
    if _says(file, text):
        return
    temporary = file.with_name(f".{file.name}.new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def _says(file: Path, text: str) -> bool:
    """Whether a file holds just this text, and nobody but its owner can read it."""
    try:
        status = file.lstat()
        return stat.S_ISREG(status.st_mode) and not status.st_mode & 0o077 and file.read_text() == text
    except (OSError, UnicodeDecodeError):
        return False
