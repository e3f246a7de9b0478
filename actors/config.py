"""The configuration of the actors: frozen groups of settings, passed by value. `actors.settings` fills them."""

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
"""Place of a sleeping sandbox's files: kept on their node, or backed up to the bucket so that any node can wake it."""
NODE_DATA_DIR = "HOLDFAST_NODE_DATA_DIR"
"""Environment variable of one node's `ray start`: names that node's data folder, if `holdfast serve` has another."""
DEFAULT_UID = 61_184
Uid = Annotated[int, Field(ge=1, lt=2**31)]


class Frozen(BaseModel):
    """A group of settings, passed by value."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ExecLimits(Frozen):
    """The limits of one command. Memory and processes are limited only if the node has those cgroup controllers."""

    timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    output_bytes: Annotated[int, Field(gt=0)] = 256 * MIB
    memory_bytes: Annotated[int, Field(gt=0)] = 4 * GIB
    processes: Annotated[int, Field(gt=0)] = 1024
    file_bytes: Annotated[int, Field(gt=0)] = 64 * GIB
    open_files: Annotated[int, Field(gt=0)] = 65_536
    input_pause_s: Annotated[float, Field(gt=0)] = 120.0
    """Longest time without a sign of the writer of a command's input. Then it counts as lost: the input is cut off."""


class BackupLimits(Frozen):
    """The limits of the tree that a backup archives, and of the time for which it pauses commands."""

    pause_s: Annotated[float, Field(gt=0)] = 600.0
    inodes: Annotated[int, Field(gt=0)] = 5_000_000
    source_bytes: Annotated[int, Field(gt=0)] = 256 * GIB
    hole_bytes: Annotated[int, Field(gt=0)] = 64 * GIB
    depth: Annotated[int, Field(gt=0, le=768)] = 512
    memory_bytes: Annotated[int, Field(ge=64 * MIB)] = 256 * MIB
    incremental: bool = True
    incremental_min_bytes: Annotated[int, Field(ge=0)] = MIB
    """The smallest full archive that incremental backups are laid on. A smaller one is made anew about as fast."""


class NodeConfig(Frozen):
    """The settings of one node: its data folder, mount driver, sandbox uid, network and cache size."""

    data_dir: Path
    driver: DriverChoice = "auto"
    sandbox_uid: Uid = DEFAULT_UID
    network: bool = False
    cache_max_bytes: Annotated[int, Field(ge=0)] = 20 * GIB


class SandboxConfig(Frozen):
    """All settings of an actor. Ray pickles them into its creation. They hold the keys: never log them."""

    node: NodeConfig
    sleep_after_s: Annotated[float, Field(ge=0)] = 900.0
    on_sleep: OnSleep = "keep"
    warm_workers: Annotated[int, Field(ge=0)] = 4
    gc_every_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 86_400.0
    exec: ExecLimits = ExecLimits()
    backup: BackupLimits = BackupLimits()
    transfer: TransferConfig = TransferConfig()
    bucket: BucketConfig | None = None
    conditional_writes: bool | None = None
    """True if the bucket supports conditional writes. None until the service has found out."""
    missing_settings: tuple[str, ...] = ()
    signing_key: SecretStr
    old_signing_keys: tuple[SecretStr, ...] = ()
    """Keys that only verify: backups that they signed are still trusted."""
    restore_unsigned: bool = False
    """True if unsigned backups, such as those of Cloudflare's SDK, may be restored as they are."""


def on_this_node(config: SandboxConfig) -> SandboxConfig:
    """The configuration with the data folder from this node's own environment, if that names one."""
    folder = os.environ.get(NODE_DATA_DIR)
    if not folder:
        return config
    return config.model_copy(update={"node": config.node.model_copy(update={"data_dir": Path(folder).absolute()})})
