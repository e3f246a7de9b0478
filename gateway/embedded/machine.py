"""Starts the parts of the service on this machine in order, and stops them in reverse order."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fasteners import InterProcessLock
from pydantic import SecretStr

from actors.config import NodeConfig
from actors.errors import InvalidRequestError
from actors.logs import configure_logging, log
from actors.models import DEFAULT_TENANT
from actors.rpc.cluster_health import is_gone
from actors.settings import Settings, take_secrets_out_of_the_environment
from gateway.client_env import CLIENT_ENV
from gateway.embedded import ray_head, start_failures
from gateway.embedded.reserve import Reserve
from gateway.embedded.secrets import MachineSecrets, load_or_make, unreadable, write_private
from gateway.embedded.signing_keys import fit_for_the_bucket, key_ring
from gateway.embedded.stop import Stop
from gateway.embedded.store_access import STORE_ENV, StoreAccess, store_access_file
from gateway.shared_service import shared_service, start_service

if TYPE_CHECKING:
    from storage.embedded import EmbeddedS3

_NODE_S, _LEFTOVERS_S, _RAY_S = 8.0, 2.0, 5.0
"""Seconds that a stop reserves for its last steps: the store and the mounts; Ray's leftovers; Ray itself. Each takes a
second if nothing hangs. A store that hangs is killed after 3 s."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The running service, except its gateway."""

    keys_by_tenant: dict[str, SecretStr]
    api_key_file: Path | None
    """File of the API key that was made for this machine; None if the operator gave one."""
    store: str
    missing_settings: tuple[str, ...]
    ray: ray_head.RayHead
    token_file: Path | None
    signing_key_file: Path | None = None
    """File of the key that was made to sign backups in the operator's bucket; None if there was no need to make one."""
    store_access: StoreAccess | None = None
    """The embedded store's access for S3 clients; None if there is no such store."""
    warnings: tuple[str, ...] = ()
    """Sentences on what works worse here than it could, each with what to change."""


@contextmanager
def running(settings: Settings) -> Iterator[Machine]:
    """Runs Ray, the store and the service within the block; leaves no process and no mount behind.

    Raises:
        InvalidRequestError: this machine lacks something, or another service uses the data folder.
        HoldfastError: a part did not start.
    """
    configure_logging()
    with ExitStack() as stack:
        with start_failures.named(settings.data_dir.absolute()):
            machine = stack.enter_context(_running(settings))
        yield machine


@contextmanager
def _running(settings: Settings) -> Iterator[Machine]:
    if settings.ray_address is not None:
        with _joined(settings, settings.ray_address) as machine:
            yield machine
        return
    data_dir = settings.data_dir.absolute()
    with ExitStack() as stack:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        stack.enter_context(_alone(data_dir))
        reserve = Reserve(data_dir / "reserve")
        stack.callback(reserve.keep, as_before=True)  # last, when Ray has freed the room it took
        _end_earlier_commands(settings.node_config())  # they would use up the room
        with reserve.given_back():
            machine = _started(settings, data_dir, stack)
        stack.enter_context(reserve.kept())
        yield machine


def _started(settings: Settings, data_dir: Path, stack: ExitStack) -> Machine:
    """Starts the parts of the service; `stack` stops them."""
    folder = data_dir / "secrets"
    secrets = load_or_make(folder, fit=lambda fresh: fit_for_the_bucket(fresh, settings, folder=folder))
    ring, signing_key_file = key_ring(settings, secrets), None
    if settings.signing_key is None and settings.names_a_bucket:
        signing_key_file = folder / "signing_key"
        write_private(signing_key_file, ring.signing.get_secret_value())
    token_file = folder / "ray_token"
    write_private(token_file, secrets.ray_token.get_secret_value())
    take_secrets_out_of_the_environment()
    warnings = _check_node(settings.node_config())
    clock = Stop()
    stack.callback(_clean_stopped_node, settings.node_config(), clock)
    _clean_node(settings.node_config())
    bucket, store, store_access = settings.bucket(), f"the bucket {settings.backup_bucket_name}", None
    if not settings.names_a_bucket:
        server = stack.enter_context(_embedded_s3(data_dir, secrets, port=settings.store_port))
        bucket, store = server.config, f"{data_dir / 's3'} (embedded store)"
        store_access = stack.enter_context(store_access_file(folder / STORE_ENV, bucket))
    ray_folder = _ray_folder(settings.node_config())
    stack.callback(_end_ray, ray_folder.parent, clock)
    head = ray_head.start(ray_folder, token_file, slots=settings.slots)
    config = settings.sandbox_config(bucket=bucket, signing_key=ring.signing, old_signing_keys=ring.old)
    start_service(config)
    stack.callback(_stop_service, clock)
    write_private(
        data_dir / CLIENT_ENV,
        "".join(f"{name}={os.environ[name]}\n" for name in ray_head.SHARED) + f"RAY_ADDRESS={head.address}\n",
    )
    stack.callback((data_dir / CLIENT_ENV).unlink, missing_ok=True)
    keys, key_file = settings.keys_by_tenant(), None
    if not keys:
        keys, key_file = {DEFAULT_TENANT: secrets.api_key}, folder / "api_key"
        write_private(key_file, secrets.api_key.get_secret_value())
    return Machine(
        keys,
        key_file,
        store,
        config.missing_settings,
        head,
        token_file,
        signing_key_file,
        store_access=store_access,
        warnings=warnings,
    )


@contextmanager
def _joined(settings: Settings, address: str) -> Iterator[Machine]:
    """Joins a cluster that runs already, to run a gateway to it."""
    service = shared_service(settings)
    take_secrets_out_of_the_environment()
    head = ray_head.join(address)
    try:
        start_service(service.config)
        yield Machine(service.keys_by_tenant, None, f"the bucket {service.bucket}", (), head, None)
    finally:
        Stop().step("ray", ray_head.stop, keep_s=0.0)


@contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    lock = InterProcessLock(data_dir / "lock")
    if not lock.acquire(blocking=False):
        raise InvalidRequestError(
            "Another `holdfast serve` uses this data folder.", hint="Stop it, or choose another with --data-dir."
        )
    try:
        yield
    finally:
        lock.release()


def _check_node(node: NodeConfig) -> tuple[str, ...]:
    """Checks this machine; returns `Machine.warnings`. Raises InvalidRequestError if it cannot run sandboxes."""
    from actors.service.doctor import RESTORES, checks

    found = checks(node.data_dir, uid=node.sandbox_uid, network=node.network, driver=node.driver, thorough=False)
    failed = [check for check in found if check.required and not check.ok]
    if failed:
        by_fix = {check.fix: check for check in reversed(failed)}
        fixes = [f"{check.detail}: {check.fix}" if check.fix else check.detail for check in reversed(by_fix.values())]
        raise InvalidRequestError(
            f"This machine cannot run sandboxes: {', '.join(dict.fromkeys(check.name for check in failed))}.",
            hint="; ".join(fixes),
        )
    return tuple(f"{c.name} {c.detail}; to change that, {c.fix}" for c in found if c.name == RESTORES and not c.ok)


def _end_earlier_commands(node: NodeConfig) -> None:
    """Ends commands left by an earlier service that was killed. Ignores errors: this machine is not yet checked."""
    from actors.node.cgroup import Cgroup
    from actors.node.errors import NodeError
    from actors.node_layout import NodeLayout

    layout = NodeLayout(node)
    if layout.root.exists():
        with suppress(NodeError, OSError):
            Cgroup.remove_tree(layout.cgroup)


def _clean_node(node: NodeConfig) -> None:
    """Cleans up after an earlier service that was killed: unmounts, ends its commands, and empties the trash.

    Unmounts only below the folders in which the service mounts: any other mount in the data folder is the operator's.
    A `holdfast doctor` that tries mount drivers meanwhile keeps its mounts.
    """
    from actors.node import driver_choice, former_groups
    from actors.node.cgroup import Cgroup
    from actors.node.errors import NodeError
    from actors.node.mounting import sweep
    from actors.node.removal import remove_tree
    from actors.node_layout import NodeLayout

    layout = NodeLayout(node)
    Cgroup.remove_tree(layout.cgroup)
    former_groups.remove(layout.data_dir)
    stuck = driver_choice.remove_leftovers(layout.driver)
    for folder in layout.mounting:
        if folder != layout.driver:
            stuck += sweep(folder, and_itself=False)
    for mount in stuck:
        log.error("mount_left_behind", mount=mount.name)
    try:
        remove_tree(layout.trash)
        layout.prepare()
    except (NodeError, OSError) as e:
        log.error("trash_left_behind", error=type(e).__name__)


@contextmanager
def _embedded_s3(data_dir: Path, secrets: MachineSecrets, *, port: int) -> Iterator[EmbeddedS3]:
    from storage.embedded import EmbeddedS3

    access_key, secret_key = secrets.s3_access_key, secrets.s3_secret_key
    try:
        server = EmbeddedS3(data_dir / "s3", access_key=access_key, secret_key=secret_key, port=port, log=log)
    except ValueError:
        raise unreadable(data_dir / "secrets") from None
    with server:
        yield server


def _ray_folder(node: NodeConfig) -> Path:
    """Returns the folder for Ray's files, emptied of earlier sessions. Short, since paths of sockets are bounded.

    Named by the node's identity: another service may have the same data path in a mount namespace of its own, and share
    the folder for temporary files with this one. Ray opens its own folder to everybody, so that folder lies in one that
    only we can enter.
    """
    from actors.node_layout import NodeLayout

    folder = _temporary_folder() / f"holdfast-{hashlib.sha256(NodeLayout(node).name.encode()).hexdigest()[:12]}"
    start_failures.check_socket_paths(folder / "ray")
    ray_head.end_leftovers(folder)
    shutil.rmtree(folder, ignore_errors=True)
    start_failures.check_room(folder.parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise InvalidRequestError(
            f"{folder} is somebody else's, or cannot be removed.", hint="Remove it, or set TMPDIR to another folder."
        ) from None
    return folder / "ray"


def _temporary_folder() -> Path:
    """Python's folder for temporary files: the first of TMPDIR, /tmp and some others that can be written to."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise InvalidRequestError(
            "Ray keeps its files in the folder for temporary files, and no such folder can be written to: "
            "the disk of TMPDIR, or of /tmp, is full or read-only.",
            hint="Make room on that disk, or set TMPDIR to a folder on another one.",
        ) from None


def _stop_service(clock: Stop) -> None:
    from actors.service.host import stop_service

    def close_sandboxes() -> None:
        if left := stop_service():
            log.error("sandboxes_not_closed", count=left)

    clock.step("service", close_sandboxes, keep_s=_RAY_S + _LEFTOVERS_S + _NODE_S, is_in_vain=is_gone)


def _end_ray(folder: Path, clock: Stop) -> None:
    """Stops Ray, kills the processes that it leaves, and removes its files, which lie in `folder`."""
    clock.step("ray", ray_head.stop, keep_s=_LEFTOVERS_S + _NODE_S, is_in_vain=is_gone)
    clock.step("leftovers", lambda: ray_head.end_leftovers(folder), keep_s=_NODE_S)
    clock.step("files", lambda: shutil.rmtree(folder, ignore_errors=True), keep_s=_NODE_S)


def _clean_stopped_node(node: NodeConfig, clock: Stop) -> None:
    """Runs `_clean_node` in the time that is left. The next start does the rest."""
    clock.step("node", lambda: _clean_node(node), keep_s=0.0)
