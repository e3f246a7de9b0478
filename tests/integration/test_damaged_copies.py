"""A node's copies of archives are verified: a copy that its disk has damaged is fetched again, or is an error."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.errors import BackupCreateError, BackupNotFoundError, MountLostError, SandboxUnavailableError
from actors.metrics import DOWNLOADED_BYTES
from actors.models import DirectoryBackup, ForgetOptions, RestoreMode
from actors.node import verified
from actors.node.verified import Verified
from actors.sandbox.facade import LocalSandbox
from storage import keys
from storage.s3 import S3ObjectStore
from tests.support.damage import DAMAGE, flip, flip_unseen
from tests.support.held_store import AwayStore, HeldStore
from tests.support.killing import act_at
from tests.support.mount_leaks import wait_until
from tests.support.s3 import FAST
from tests.support.sandboxes import Background, Node, backup, command, read, restore, run, sh

MODES = list(RestoreMode)
NOISE = "sha256sum noise"


class Counting:
    """A meter that adds up downloaded bytes."""

    def __init__(self) -> None:
        self.downloaded = 0.0

    def add(self, metric: object, *labels: str, amount: float = 1) -> None:
        self.downloaded += amount if metric is DOWNLOADED_BYTES else 0


@pytest.fixture
def meter() -> Counting:
    return Counting()


def cached(node: Node, handle: DirectoryBackup) -> Path:
    (path,) = node.layout.cache.glob(f"{handle.id}_*.sqsh")
    return path


def kept(node: Node, name: str = "box") -> list[Path]:
    return sorted((node.home(name) / "archives").glob("*.sqsh"))  # not the name under which another one is being made


def record(node: Node) -> Verified:
    return Verified(node.layout.verified)


def events(box: LocalSandbox, kind: str = "archive_damaged") -> list[tuple[str | None, str | None]]:
    state = box.ownership.last_known
    assert state is not None
    return [(event.dir, event.backup_id) for event in state.events if event.kind == kind]


def filled(node: Node, meter: Counting | None = None) -> tuple[LocalSandbox, DirectoryBackup, str]:
    """A sandbox, a backup of its directory, and the checksum of the random file in it."""
    box = node.sandbox(meter=meter) if meter is not None else node.sandbox()
    sh(box, "head -c 300000 /dev/urandom > noise; echo original > file; mkdir sub; echo deep > sub/deep")
    return box, backup(box), sh(box, NOISE)


def layered(node: Node, meter: Counting | None = None) -> tuple[LocalSandbox, DirectoryBackup, str]:
    """The sandbox of `filled` with its directory restored, and writes over it."""
    box, handle, noise = filled(node, meter)
    restore(box, handle)
    sh(box, "echo later > later; echo changed > file")
    return box, handle, noise


def assert_whole(box: LocalSandbox, noise: str) -> None:
    assert sh(box, NOISE) == noise
    assert sh(box, "cat file later sub/deep") == "changed\nlater\ndeep\n"


# --- the cache


def bytes_read() -> int:
    """The bytes that this process has read from files so far. Source: proc_pid_io(5), rchar."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


@pytest.mark.parametrize("incremental", [False, True])
def test_a_restore_over_the_same_backup_reads_no_archive(kernel_node: Node, incremental: bool) -> None:
    box = kernel_node.sandbox()
    sh(box, "head -c 30000000 /dev/urandom > noise")
    handle = backup(box)
    if incremental:
        restore(box, handle)
        sh(box, "head -c 30000000 /dev/urandom > more")
        handle = backup(box)
    restore(box, handle)
    before = bytes_read()
    restore(box, handle)
    assert bytes_read() - before < 10_000_000
    assert len(kept(kernel_node)) == 1 + incremental


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_entry_is_fetched_anew_and_the_restore_succeeds(
    kernel_node: Node, meter: Counting, damage: str, mode: RestoreMode
) -> None:
    box, handle, noise = filled(kernel_node, meter)
    entry = cached(kernel_node, handle)
    size = entry.stat().st_size
    DAMAGE[damage](entry)
    sh(box, "rm -rf noise file sub")
    restore(box, handle, mode=mode)
    assert sh(box, NOISE) == noise
    assert meter.downloaded == (0 if damage == "open to all" else size)
    assert entry.stat().st_mode & 0o7777 == 0o400

    fork = kernel_node.sandbox("fork", meter=meter)
    restore(fork, handle, mode=mode)
    assert sh(fork, NOISE) == noise
    assert meter.downloaded == (0 if damage == "open to all" else size)


@pytest.mark.parametrize("mode", MODES)
def test_a_flipped_bit_in_the_cache_reaches_no_sandbox_on_any_driver(node: Node, mode: RestoreMode) -> None:
    box, handle, noise = filled(node)
    flip(cached(node, handle))
    restore(box, handle, mode=mode)
    assert sh(box, NOISE) == noise
    second = backup(box)
    fork = node.sandbox("fork")
    restore(fork, second, mode=mode)
    assert sh(fork, NOISE) == noise


def test_an_entry_that_holds_another_backups_archive_is_not_used(kernel_node: Node) -> None:
    box, handle, noise = filled(kernel_node)
    sh(box, "echo other > noise")
    other = backup(box)
    entry = cached(kernel_node, handle)
    entry.unlink()
    found = cached(kernel_node, other)
    found.rename(entry.with_name(f"{handle.id}_{found.stem.partition('_')[2]}.sqsh"))
    restore(box, handle)
    assert sh(box, NOISE) == noise
    assert cached(kernel_node, handle) == entry


def test_an_archive_damaged_after_its_upload_fails_verification(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "head -c 300000 /dev/urandom > noise")
    noise = sh(box, NOISE)

    def damage() -> None:
        (path,) = (kernel_node.home("box") / "spool").glob("*/data.sqsh")
        flip(path)

    act_at("cache", "before", damage)
    handle = backup(box)
    restore(box, handle)
    assert sh(box, NOISE) == noise


def test_an_archive_is_read_only_once_though_its_links_change(node: Node) -> None:
    box, handle, _ = filled(node)
    entry, known = cached(node, handle), record(node)
    sha256 = entry.stem.partition("_")[2]
    assert known.holds(entry, sha256), "its digest was taken as it was uploaded"
    restore(box, handle)
    assert known.holds(entry, sha256)
    fork = node.sandbox("fork")
    restore(fork, handle)
    restore(fork, handle, mode="copy")
    assert known.holds(entry, sha256)
    fork.destroy()
    assert known.holds(entry, sha256)
    entry.unlink()  # deleted by hand, without an update of the record
    assert sh(box, "cat file") == "original\n"
    assert known.holds(kept(node)[0], sha256)


def test_an_archive_that_was_downloaded_is_not_read_again(kernel_node: Node) -> None:
    box, handle, _ = filled(kernel_node)
    cached(kernel_node, handle).unlink()
    restore(box, handle)
    entry = cached(kernel_node, handle)
    assert record(kernel_node).holds(entry, entry.stem.partition("_")[2])


@pytest.mark.parametrize("mode", MODES)
def test_after_a_reboot_an_archive_is_verified_before_its_first_use(
    kernel_node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: RestoreMode
) -> None:
    box, handle, noise = filled(kernel_node)
    entry = cached(kernel_node, handle)
    flip_unseen(entry, entry.stem.partition("_")[2], record(kernel_node))
    box.close()
    (tmp_path / "boot_id").write_text("another boot\n")
    monkeypatch.setattr(verified, "_BOOT_ID", tmp_path / "boot_id")
    rebooted = kernel_node.sandbox()
    sh(rebooted, "rm noise")
    restore(rebooted, handle, mode=mode)
    assert sh(rebooted, NOISE) == noise


# --- the archives under layers


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_sandbox_wakes_with_right_data_when_its_archive_was_damaged(node: Node, damage: str) -> None:
    box, handle, noise = layered(node)
    box.close()
    for archive in kept(node):
        DAMAGE[damage](archive)
    again = node.sandbox()
    assert_whole(again, noise)
    assert events(again) == ([] if damage == "open to all" else [("/workspace", handle.id)])
    again.close()
    assert_whole(node.sandbox(), noise)


def test_after_a_reboot_a_layers_archive_is_verified_before_it_is_mounted(
    node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    box, handle, noise = layered(node)
    box.close()
    (archive,) = kept(node)
    flip_unseen(archive, archive.stem, record(node))
    (tmp_path / "boot_id").write_text("another boot\n")
    monkeypatch.setattr(verified, "_BOOT_ID", tmp_path / "boot_id")
    again = node.sandbox()
    assert_whole(again, noise)
    assert events(again) == [("/workspace", handle.id)]


@pytest.mark.parametrize("damage", ["one flipped bit", "a flipped bit, old times", "truncated", "replaced", "missing"])
def test_an_awake_sandbox_over_a_damaged_archive_shows_right_data_at_its_next_call(node: Node, damage: str) -> None:
    box, handle, noise = layered(node)
    with command(box, "echo ready; exec sleep 60") as running:
        (archive,) = kept(node)
        DAMAGE[damage](archive)
        assert_whole(box, noise)
        assert isinstance(running.error(), MountLostError)
    assert events(box) == [("/workspace", handle.id)]
    assert read(box, "/workspace/sub/deep") == b"deep\n"


def test_a_sandbox_with_a_damaged_archive_is_repaired_without_a_call(node: Node) -> None:
    box, handle, noise = layered(node)
    with command(box, "echo ready; exec sleep 60") as running:
        (archive,) = kept(node)
        flip(archive)
        assert wait_until(lambda: running.ended, timeout_s=30)
        assert isinstance(running.error(), MountLostError)
    assert wait_until(lambda: events(box) == [("/workspace", handle.id)], timeout_s=30)
    assert_whole(box, noise)


def test_a_command_that_ends_after_damage_to_its_archive_gets_an_error(node: Node) -> None:
    box, _, noise = layered(node)
    with command(box, "echo ready; while [ ! -e /tmp/go ]; do sleep 0.05; done") as running:
        (archive,) = kept(node)
        flip(archive)
        (node.tree(box) / "tmp" / "go").touch()
        assert isinstance(running.error(), MountLostError)
    assert_whole(box, noise)


def test_every_sandbox_that_shares_a_damaged_archive_gets_right_data(node: Node) -> None:
    box, handle, noise = layered(node)
    fork = node.sandbox("fork")
    restore(fork, handle)
    asleep = node.sandbox("asleep")
    restore(asleep, handle)
    asleep.close()
    flip(kept(node)[0])
    new = node.sandbox("new")
    restore(new, handle)
    for each in (new, fork, box, node.sandbox("asleep")):
        assert sh(each, NOISE) == noise
        assert sh(each, "cat sub/deep") == "deep\n"
    assert_whole(box, noise)
    assert len({kept(node, name)[0].stat().st_ino for name in ("box", "fork", "asleep", "new")}) == 1


def test_a_fresh_restore_does_not_adopt_the_mount_of_a_damaged_archive(node: Node) -> None:
    box, handle, noise = layered(node)
    for archive in (*kept(node), cached(node, handle)):
        flip(archive) if archive != cached(node, handle) else None
    with command(box, "echo ready; exec sleep 60"):
        fork = node.sandbox("fork")
        restore(fork, handle)
        assert sh(fork, NOISE) == noise


@pytest.mark.parametrize("moment", ["before", "during"])
def test_a_backup_over_a_damaged_archive_holds_right_data_or_fails(node: Node, moment: str) -> None:
    box, _, noise = layered(node)
    (archive,) = kept(node)
    if moment == "before":
        flip(archive)
    else:
        act_at("archive", "before", lambda: flip(archive))
        with pytest.raises(BackupCreateError) as raised:
            backup(box)
        assert raised.value.context == {"reason": "DAMAGED_COPY"}
    handle = backup(box)
    fork = node.sandbox("fork")
    restore(fork, handle)
    assert_whole(fork, noise)


def test_a_sandbox_over_a_damaged_archive_is_repaired_before_it_is_handed_over(node: Node) -> None:
    box, _, noise = layered(node)
    (archive,) = kept(node)
    act_at("archive", "before", lambda: flip(archive))
    with pytest.raises(BackupCreateError) as raised:
        box.hand_over()
    assert raised.value.context == {"reason": "DAMAGED_COPY"}
    run(box, "true")
    box.hand_over()
    assert_whole(node.sandbox(), noise)


# --- no way to fetch the archive


def test_a_damaged_archive_is_never_shown_while_the_bucket_is_away(node: Node) -> None:
    box, _, noise = layered(node)
    box.close()
    flip(kept(node)[0])
    store = AwayStore(node.catalog().store)
    store.is_away = True
    again = node.sandbox(awake=False, catalog=node.catalog(store))
    for _ in range(2):
        with pytest.raises(SandboxUnavailableError) as raised:
            run(again, "cat", "noise")
        assert raised.value.context == {"outcome": "not_executed", "reason": "STORAGE_UNAVAILABLE"}
    store.is_away = False
    assert_whole(again, noise)


def test_a_good_copy_in_the_cache_heals_a_sandbox_without_the_bucket(kernel_node: Node) -> None:
    box, handle, noise = layered(kernel_node)
    box.close()
    (archive,) = kept(kernel_node)
    archive.unlink()
    store = AwayStore(kernel_node.catalog().store)
    store.is_away = True
    again = kernel_node.sandbox(catalog=kernel_node.catalog(store))
    assert_whole(again, noise)
    assert archive.samefile(cached(kernel_node, handle))


@pytest.mark.parametrize("lost", ["no archive", "no metadata", "a damaged archive"])
def test_a_damaged_archive_whose_backup_is_gone_is_an_error_with_a_hint(kernel_node: Node, lost: str) -> None:
    box, handle, _ = layered(kernel_node)
    box.close()
    store = kernel_node.catalog().store
    if lost == "a damaged archive":
        cached(kernel_node, handle).unlink()
        store.put(keys.archive(handle.id), bytes(kept(kernel_node)[0].stat().st_size))
    else:
        store.delete((keys.archive if lost == "no archive" else keys.metadata)(handle.id))
    flip(kept(kernel_node)[0])
    again = kernel_node.sandbox(awake=False)
    for _ in range(2):
        with pytest.raises(SandboxUnavailableError) as raised:
            run(again, "true")
        told = raised.value.context
        assert (told["reason"], told["dir"], told["cause"]) == ("DIRECTORY_MISSING", "/workspace", "DAMAGED_COPY")
        assert "holdfast forget" in (raised.value.hint or "")
    (upper,) = (kernel_node.home("box") / "layers").glob("*/upper")
    assert (upper / "later").read_text() == "later\n"
    again.destroy()
    assert sh(again, "ls") == ""


METADATA: dict[str, Callable[[bytes], bytes] | None] = {
    "gone": None,
    "half": lambda data: data[:40],
    "tampered with": lambda data: data.replace(b'"ttl":', b'"ttl":1'),
    "of a later release": lambda data: data.replace(b'"version":1', b'"version":99'),
    "another backup's": lambda data: data.replace(b'"id":"', b'"id":"00000000-0000-4000-8000-000000000000","was":"'),
}


def lose(node: Node, handle: DirectoryBackup, change: Callable[[bytes], bytes] | None) -> None:
    """Damages the node's copies of a backup's archive, and its metadata, so that the archive cannot be fetched."""
    store, key = node.catalog().store, keys.metadata(handle.id)
    if change is None:
        store.delete(key)
    else:
        before = store.get(key).data
        store.put(key, change(before))
        assert store.get(key).data != before
    flip(cached(node, handle))


@pytest.mark.parametrize("metadata", METADATA)
def test_a_damaged_archive_with_untrusted_metadata_can_be_forgotten(kernel_node: Node, metadata: str) -> None:
    box, handle, _ = layered(kernel_node)
    sh(box, "echo other > /tmp/other")
    lose(kernel_node, handle, METADATA[metadata])
    with pytest.raises(SandboxUnavailableError) as raised:
        run(box, "true")
    told = raised.value
    assert (told.context["reason"], told.context["dir"]) == ("DIRECTORY_MISSING", "/workspace")
    assert not told.may_be_retried
    assert "metadata" in told.message or "bucket" in told.message
    assert [row.dir for row in box.forget(ForgetOptions(dir="/workspace")).forgotten] == ["/workspace"]
    assert sh(box, "cat /tmp/other") == "other\n"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("place", ["/workspace/in", "/workspace"])
def test_another_backup_is_restored_over_a_directory_that_cannot_be_mounted(
    kernel_node: Node, place: str, mode: RestoreMode
) -> None:
    box, handle, _ = layered(kernel_node)
    sh(box, "mkdir /tmp/kept; echo kept > /tmp/kept/file")
    other = backup(box, "/tmp/kept")
    restore(box, other)
    sh(box, "echo written > /tmp/kept/later")
    restore(box, handle, place)
    sh(box, "echo upper > upper", cwd=place)
    lose(kernel_node, handle, None)
    with pytest.raises(SandboxUnavailableError):
        run(box, "true")
    absent = DirectoryBackup(id=str(uuid.uuid4()), dir="/workspace")
    with pytest.raises(BackupNotFoundError):
        restore(box, absent)
    with pytest.raises(SandboxUnavailableError) as raised:
        run(box, "true")
    assert raised.value.context["reason"] == "DIRECTORY_MISSING"
    assert "upper\n" in [file.read_text() for file in (kernel_node.home("box") / "layers").glob("*/upper/upper")]

    restore(box, other, "/workspace", mode)
    assert sh(box, "ls; cat file; ls /tmp/kept; cat /tmp/kept/later") == "file\nkept\nfile\nlater\nwritten\n"
    assert len(list((kernel_node.home("box") / "layers").iterdir())) == (2 if mode is RestoreMode.OVERLAY else 1)
    state = box.ownership.last_known
    assert state is not None and (state.recovery is None or not state.recovery.directories)
    box.close()
    assert sh(kernel_node.sandbox(), "cat file /tmp/kept/later") == "kept\nwritten\n"


def test_an_expired_backup_still_heals_what_was_restored_from_it(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "head -c 300000 /dev/urandom > noise")
    noise = sh(box, NOISE)
    restore(box, backup(box, ttl=61))
    box.close()
    flip(kept(kernel_node)[0])
    catalog = kernel_node.catalog()
    assert sh(kernel_node.sandbox(catalog=catalog), NOISE) == noise


def test_an_archive_lies_where_no_sandbox_can_reach_it(node: Node) -> None:
    box, handle, _ = layered(node)
    entry, (archive,) = cached(node, handle), kept(node)
    for path in (entry, archive):
        status = path.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, 0, 0o400)
    for folder in (archive.parent, node.home("box"), node.layout.verified):
        status = folder.stat()
        assert (status.st_uid, status.st_mode & 0o077) == (0, 0), folder
    with contextlib.suppress(FileNotFoundError):
        assert run(box, "ls", str(entry)).exit_code != 0


def test_a_sandbox_that_is_taken_up_anew_after_damage_goes_on_with_its_restore(kernel_node: Node) -> None:
    box, _, noise = layered(kernel_node)
    sh(box, "mkdir ~/data; echo saved > ~/data/file")
    handle = backup(box, "/home/sandbox/data")
    sh(box, "rm ~/data/file")
    cached(kernel_node, handle).unlink()
    box.close()
    held = HeldStore(S3ObjectStore(kernel_node.bucket, transfer=FAST), "presign_get", "data.sqsh")
    box = kernel_node.sandbox(catalog=kernel_node.catalog(held))
    restoring = Background(lambda: restore(box, handle, "/home/sandbox/data"))
    held.wait()
    flip(kept(kernel_node)[0])
    assert_whole(box, noise)
    held.released.set()
    restoring.result()
    assert sh(box, "cat ~/data/file") == "saved\n"
    assert_whole(box, noise)
