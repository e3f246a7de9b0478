"""The secrets that the service of one machine makes for itself, once, and keeps beside its data."""

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
    """The secrets of one data folder. Backups signed with `signing_key` are trusted as long as that key is kept.

    `reads_buckets_secret` is true if the bucket's secret key has signed backups that must stay readable. Folders that
    are older than this field lack it, and there it is true.
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
        """Makes fresh secrets, of 160 to 256 bits each; the access key's id has 80."""
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

    `fit` can change fresh secrets, before they are kept.

    Raises:
        InvalidRequestError: the secrets are damaged. They are never replaced by new ones.
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
    """The error for damaged secrets."""
    return InvalidRequestError(
        f"The service's own secrets are damaged: {folder / _FILE}.",
        hint="Put a copy of the file back. Without one, move it away: the service makes new keys, its clients need the "
        "new API key, and it did not sign the backups that are there.",
    )


def write_private(file: Path, text: str) -> None:
    """Writes a file that only its owner can read, atomically.

    A file that says the same already is not touched, so that the service can start unchanged on a full disk.
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
    """Tells whether a file holds exactly this text, and only its owner can read it."""
    try:
        status = file.lstat()
        return stat.S_ISREG(status.st_mode) and not status.st_mode & 0o077 and file.read_text() == text
    except (OSError, UnicodeDecodeError):
        return False
