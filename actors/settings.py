"""The service's settings: read once, from the environment in which it starts, into the models of `actors.config`.

Names without a prefix are those of the Cloudflare Sandbox SDK, so that one set of settings serves both.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from actors.config import (
    DEFAULT_UID,
    GIB,
    MIB,
    BackupLimits,
    DriverChoice,
    ExecLimits,
    NodeConfig,
    OnSleep,
    SandboxConfig,
    Uid,
)
from actors.models import DEFAULT_TENANT, SandboxId, invalid
from storage.config import BucketConfig, TransferConfig, bare_endpoint

BUCKET_SETTINGS = ("BACKUP_BUCKET_NAME", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY")
SECRET_SETTINGS = (
    "R2_ACCESS_KEY_ID",
    "R2_SECRET_ACCESS_KEY",
    "SANDBOX_API_KEY",
    "HOLDFAST_API_KEYS",
    "HOLDFAST_SIGNING_KEY",
    "HOLDFAST_OLD_SIGNING_KEYS",
)


_SETTING_OF = {
    "bucket": "BACKUP_BUCKET_NAME",
    "access_key_id": "R2_ACCESS_KEY_ID",
    "secret_access_key": "R2_SECRET_ACCESS_KEY",
    "region": "HOLDFAST_REGION",
    "part_bytes": "HOLDFAST_PART_BYTES",
    "concurrency": "HOLDFAST_TRANSFER_CONCURRENCY",
    "cache_max_bytes": "HOLDFAST_CACHE_MAX_BYTES",
    "timeout_s": "HOLDFAST_EXEC_TIMEOUT_S",
    "output_bytes": "HOLDFAST_EXEC_OUTPUT_BYTES",
    "memory_bytes": "HOLDFAST_EXEC_MEMORY_BYTES",
    "processes": "HOLDFAST_EXEC_PROCESSES",
    "pause_s": "HOLDFAST_BACKUP_PAUSE_S",
    "inodes": "HOLDFAST_BACKUP_MAX_INODES",
    "source_bytes": "HOLDFAST_BACKUP_MAX_BYTES",
}
"""The setting that fills each field of the groups. An error in any other field is about the bucket's endpoint."""


class Settings(BaseSettings):
    """The environment, validated. The reference of the settings is made of these fields and their docstrings."""

    model_config = SettingsConfigDict(env_prefix="HOLDFAST_", extra="ignore", env_ignore_empty=True)

    backup_bucket_name: str | None = Field(None, validation_alias="BACKUP_BUCKET_NAME")
    """The bucket. While no setting of a bucket is made, the embedded store is used."""
    backup_bucket_endpoint: Annotated[str, AfterValidator(bare_endpoint)] | None = Field(
        None, validation_alias="BACKUP_BUCKET_ENDPOINT"
    )
    """The origin of any other S3 than R2, like `https://s3.example.com`."""
    cloudflare_account_id: str | None = Field(None, validation_alias="CLOUDFLARE_ACCOUNT_ID")
    """The account at R2, from which the endpoint is made."""
    r2_access_key_id: SecretStr | None = Field(None, validation_alias="R2_ACCESS_KEY_ID")
    """The bucket's access key."""
    r2_secret_access_key: SecretStr | None = Field(None, validation_alias="R2_SECRET_ACCESS_KEY")
    """The bucket's secret key."""
    sandbox_api_key: SecretStr | None = Field(None, validation_alias="SANDBOX_API_KEY")
    """The default tenant's API key. By default one is made, and kept in `<data dir>/secrets/api_key`."""
    api_keys: dict[SandboxId, SecretStr] = {}
    """The API keys of further tenants: `{"team-b": "key"}`. Tenants share nothing."""
    signing_key: SecretStr | None = None
    """Signs the backups' metadata. Keep a copy: a backup whose signature cannot be verified is not restored.

    By default one is made, and kept in `<data dir>/secrets/signing_key`; a cluster has to set it.
    """
    old_signing_keys: tuple[SecretStr, ...] | None = None
    """Keys that only verify, as JSON: `["an earlier key"]`; `[]` for none.

    By default the bucket's secret key, where that has signed backups before.
    """
    restore_unsigned: bool = False
    """Restores backups that nobody has signed (Cloudflare's own) without `holdfast adopt`."""

    data_dir: Path = Path("/var/lib/holdfast")
    """Everything of this node (`--data-dir`)."""
    host: str = "127.0.0.1"
    """The address on which the gateway listens (`--host`)."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8484
    """The port on which the gateway listens (`--port`)."""
    store_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """The port on which the embedded store listens, on loopback; `0`: a free one at each start."""
    ray_address: str | None = None
    """Joins this Ray cluster instead of starting one (`--address`)."""
    slots: Annotated[int, Field(gt=0)] = 150
    """Sandboxes awake at once on this node."""
    region: str = "auto"
    """The bucket's region."""
    allow_http: bool = False
    """Lets archives travel to another host without TLS."""
    driver: DriverChoice = "auto"
    """How restores are mounted: `kernel`, `mixed`, `rootless` or `fuse`, refused unless it proves itself right.

    `auto`: the best driver that does, and copies where none does. `none`: copies.
    """
    sandbox_uid: Uid = DEFAULT_UID
    """The user on the node that owns the sandboxes' files; the same on all nodes."""
    network: bool = False
    """Whether commands have the node's network: all of it, loopback and the cloud's metadata address included."""
    sleep_after_s: Annotated[float, Field(ge=0)] = 900.0
    """A sandbox without calls for so many seconds gives its process back; the next call wakes it. `0`: never."""
    on_sleep: OnSleep = "keep"
    """`backup`: as a sandbox falls asleep, its files go into the bucket and leave their node's disk.

    So it can wake on any node. `keep`: they stay on the node's disk.
    """
    warm_workers: Annotated[int, Field(ge=0, le=64)] = 4
    """Processes that wait on each node to become a sandbox; 50 MB each."""
    gc_every_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 86_400.0
    """The service runs `gc` by itself, so many seconds after the last one. `0`: never."""
    cache_max_bytes: int = 20 * GIB
    """Bytes of archives kept on the node."""
    max_body_bytes: Annotated[int, Field(gt=0)] = 1 * MIB
    """The largest JSON body of a request."""
    max_upload_bytes: Annotated[int, Field(gt=0)] = 16 * GIB
    """The largest file or tar archive of a request."""
    exec_timeout_s: float = 3600.0
    """Time limit of a command."""
    exec_output_bytes: int = 256 * MIB
    """Limit of a command's output."""
    exec_memory_bytes: int = 4 * GIB
    """Limit of the memory of all commands of a sandbox together."""
    exec_processes: int = 1024
    """Limit of the processes of all commands of a sandbox together."""
    backup_pause_s: float = 600.0
    """Time limit for the pause of a sandbox's commands during a backup."""
    backup_max_inodes: int = 5_000_000
    """Limit of the files and directories in a backup."""
    backup_max_bytes: int = 256 * GIB
    """Limit of the bytes in a backup, before compression."""
    incremental: bool = True
    """Whether a backup may hold only what was changed since an earlier one."""
    part_bytes: int = 16 * MIB
    """Size of the parts of a transfer."""
    transfer_concurrency: int = 4
    """Parts of a transfer that are on their way at once."""

    @model_validator(mode="after")
    def _one_key_per_tenant(self) -> Self:
        keys = [key.get_secret_value() for key in self.keys_by_tenant().values()]
        if len(set(keys)) != len(keys):
            raise ValueError("two tenants must not share one API key")
        if any(len(key) < 8 for key in keys):
            raise ValueError("an API key must have at least 8 characters")
        return self

    @model_validator(mode="after")
    def _fit_for_the_groups(self) -> Self:
        """Refuses values that a group of settings would refuse, by the name under which they were set."""
        try:
            self.sandbox_config(bucket=self.bucket(), signing_key=SecretStr("none"))
        except ValidationError as e:
            wrong = {
                _SETTING_OF.get(str(line["loc"][-1]) if line["loc"] else "", "BACKUP_BUCKET_ENDPOINT"): line["msg"]
                for line in e.errors()
            }
            raise ValueError("; ".join(f"{name}: {said}" for name, said in wrong.items())) from None
        return self

    def keys_by_tenant(self) -> dict[str, SecretStr]:
        """The API key of each tenant; `SANDBOX_API_KEY` is the default tenant's."""
        keys = dict(self.api_keys)
        if self.sandbox_api_key is not None:
            keys[DEFAULT_TENANT] = self.sandbox_api_key
        return keys

    def verifying_keys(self, *, reads_buckets_secret: bool) -> tuple[SecretStr, ...]:
        """The keys that only verify: those that were set; else the bucket's secret, if it was once the default."""
        if self.old_signing_keys is not None:
            return self.old_signing_keys
        return (self.r2_secret_access_key,) if self.r2_secret_access_key and reads_buckets_secret else ()

    @property
    def names_a_bucket(self) -> bool:
        """True if any setting names a bucket of the operator's own; otherwise the embedded store is used."""
        return any((self.backup_bucket_name, self.backup_bucket_endpoint, self.cloudflare_account_id)) or any(
            (self.r2_access_key_id, self.r2_secret_access_key)
        )

    def missing_bucket_settings(self) -> tuple[str, ...]:
        """The names of the settings that are missing to reach the operator's bucket."""
        given = (self.backup_bucket_name, self.r2_access_key_id, self.r2_secret_access_key)
        missing = [name for name, value in zip(BUCKET_SETTINGS, given, strict=True) if not value]
        if not (self.cloudflare_account_id or self.backup_bucket_endpoint):
            missing.append("CLOUDFLARE_ACCOUNT_ID (or BACKUP_BUCKET_ENDPOINT)")
        return tuple(missing)

    def bucket(self) -> BucketConfig | None:
        """The operator's bucket, or None while a setting is missing."""
        if self.missing_bucket_settings():
            return None
        assert self.backup_bucket_name and self.r2_access_key_id and self.r2_secret_access_key
        return BucketConfig(
            bucket=self.backup_bucket_name,
            endpoint_url=self.backup_bucket_endpoint
            or f"https://{self.cloudflare_account_id}.r2.cloudflarestorage.com",
            region=self.region,
            access_key_id=self.r2_access_key_id,
            secret_access_key=self.r2_secret_access_key,
            allow_http=self.allow_http,
        )

    def transfer(self) -> TransferConfig:
        """The settings for the transfer of archives."""
        return TransferConfig(part_bytes=self.part_bytes, concurrency=self.transfer_concurrency)

    def node_config(self) -> NodeConfig:
        """The settings of the node alone."""
        return NodeConfig(
            data_dir=self.data_dir.absolute(),
            driver=self.driver,
            sandbox_uid=self.sandbox_uid,
            network=self.network,
            cache_max_bytes=self.cache_max_bytes,
        )

    def sandbox_config(
        self, *, bucket: BucketConfig | None, signing_key: SecretStr, old_signing_keys: tuple[SecretStr, ...] = ()
    ) -> SandboxConfig:
        """The configuration of the actors. `bucket` is the operator's or the embedded one."""
        return SandboxConfig(
            node=self.node_config(),
            sleep_after_s=self.sleep_after_s,
            on_sleep=self.on_sleep,
            warm_workers=self.warm_workers,
            gc_every_s=self.gc_every_s,
            exec=ExecLimits(
                timeout_s=self.exec_timeout_s,
                output_bytes=self.exec_output_bytes,
                memory_bytes=self.exec_memory_bytes,
                processes=self.exec_processes,
            ),
            backup=BackupLimits(
                pause_s=self.backup_pause_s,
                inodes=self.backup_max_inodes,
                source_bytes=self.backup_max_bytes,
                incremental=self.incremental,
            ),
            transfer=self.transfer(),
            bucket=bucket,
            missing_settings=() if bucket else self.missing_bucket_settings(),
            signing_key=signing_key,
            old_signing_keys=old_signing_keys,
            restore_unsigned=self.restore_unsigned,
        )


def read_settings() -> Settings:
    """Reads the settings from the environment. Raises InvalidRequestError, naming what is wrong with them."""
    try:
        return Settings()
    except ValidationError as e:
        raise invalid(e) from None


def take_secrets_out_of_the_environment() -> None:
    """Removes the secrets that `Settings` has read, so that no process started later inherits them."""
    for name in SECRET_SETTINGS:
        os.environ.pop(name, None)
