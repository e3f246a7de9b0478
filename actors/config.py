"""The groups of settings that actors are given, frozen, and passed by value. `actors.settings` fills them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from storage.config import BucketConfig, TransferConfig

GIB = 1024**3
MIB = 1024**2

DriverChoice = Literal["auto", "kernel", "mixed", "rootless", "fuse", "none"]
OnSleep = Literal["keep", "backup"]
"""Whether a sandbox's files stay on their node while it sleeps, or go into the bucket so that it can wake anywhere."""
NODE_DATA_DIR = "HOLDFAST_NODE_DATA_DIR"
DEFAULT_UID = 61_184
Uid = Annotated[int, Field(ge=1, lt=2**31)]


class Frozen(BaseModel):
    """A group of settings, passed by value."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ExecLimits(Frozen):
    """What one command may use. Memory and processes are limited where the node has those cgroup controllers."""

    timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    output_bytes: Annotated[int, Field(gt=0)] = 256 * MIB
    memory_bytes: Annotated[int, Field(gt=0)] = 4 * GIB
    processes: Annotated[int, Field(gt=0)] = 1024
    file_bytes: Annotated[int, Field(gt=0)] = 64 * GIB
    open_files: Annotated[int, Field(gt=0)] = 65_536


class BackupLimits(Frozen):
    """What a tree may hold to be archived, and how long commands may be paused for it."""

    pause_s: Annotated[float, Field(gt=0)] = 600.0
    inodes: Annotated[int, Field(gt=0)] = 5_000_000
    source_bytes: Annotated[int, Field(gt=0)] = 256 * GIB
    hole_bytes: Annotated[int, Field(gt=0)] = 64 * GIB
    depth: Annotated[int, Field(gt=0, le=768)] = 512
    memory_bytes: Annotated[int, Field(ge=64 * MIB)] = 256 * MIB


class NodeConfig(Frozen):
    """One node's part: where its files lie and how it mounts."""

    data_dir: Path
    driver: DriverChoice = "auto"
    sandbox_uid: Uid = DEFAULT_UID
    network: bool = False
    cache_max_bytes: Annotated[int, Field(ge=0)] = 20 * GIB


class SandboxConfig(Frozen):
    """Everything an actor is given. Pickled into its creation; holds the keys, so never log it."""

    node: NodeConfig
    sleep_after_s: Annotated[float, Field(ge=0)] = 900.0
    on_sleep: OnSleep = "keep"
    warm_workers: Annotated[int, Field(ge=0)] = 4
    exec: ExecLimits = ExecLimits()
    backup: BackupLimits = BackupLimits()
    transfer: TransferConfig = TransferConfig()
    bucket: BucketConfig | None = None
    conditional_writes: bool | None = None
    """Whether the bucket has them; found out once, by the service. None: not known yet."""
    missing_settings: tuple[str, ...] = ()
    signing_key: SecretStr
    old_signing_keys: tuple[SecretStr, ...] = ()
    """Keys that sign nothing any more; what they have signed is still believed."""
    restore_unsigned: bool = False
    """Whether backups that nobody has signed, such as those of Cloudflare's SDK, may be restored as they are."""


def on_this_node(config: SandboxConfig) -> SandboxConfig:
    """The configuration, with the data folder that this node's own environment names, where it does."""
    folder = os.environ.get(NODE_DATA_DIR)
    if not folder:
        return config
    return config.model_copy(update={"node": config.node.model_copy(update={"data_dir": Path(folder).absolute()})})
