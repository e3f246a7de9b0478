"""The meaning of the API, row by row: addressing, directories, options, overlays, commands, expiry, atomicity."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from actors.node import mountinfo
from storage import keys
from storage.errors import ObjectMissingError
from storage.store import list_all
from tests.acceptance.conftest import OTHER_TENANT
from tests.acceptance.http_box import HttpBox, refusal
from tests.support.service import Service, eventually
from tests.support.trees import Entry, fingerprint

PROGRAMS = Path(__file__).parents[1] / "support" / "programs"
COUNTER = (PROGRAMS / "counting.py").read_text()


def tree_of(service: Service, box: HttpBox, path: str = "/workspace") -> dict[bytes, Entry]:
    """Returns the content of the directory as the node sees it."""
    return fingerprint(service.node_path(box.id, path))


def wait_for_note(service: Service, box: HttpBox, *roots: str, tenant: str = "default") -> None:
    """Waits until the state in the bucket names exactly these roots as unsaved.

    The actor writes the state shortly after the first call, and this note shortly after each call that may have changed
    files. Once it says what is true since the last one, no write is on its way.
    """

    def has_come() -> bool:
        try:
            state = json.loads(service.store().get(keys.state(tenant, box.id)).data)
        except ObjectMissingError:
            return False
        return bool(state.get("unsaved") == list(roots))

    eventually(has_come)


def bucket(service: Service) -> dict[str, int]:
    """Returns each object of the bucket with its size."""
    return {found.key: found.size_bytes for found in list_all(service.store(), "")}


# --- addressing


def test_reading_an_unknown_sandbox_neither_wakes_nor_creates_it(service: Service, client: httpx.Client) -> None:
    unknown = HttpBox(client, "never-used")

    assert refusal(client.get(unknown.url)) == (404, "SANDBOX_NOT_FOUND")
    assert client.get(f"{unknown.url}/running").json() == {"running": False}
    assert client.get(f"{unknown.url}/operation").json() is None
    assert client.get(f"{unknown.url}/backups").json() == {"backups": []}
    assert client.post(f"{unknown.url}/cancel").json() == {"cancelled": False}

    assert refusal(client.get(unknown.url)) == (404, "SANDBOX_NOT_FOUND")
    assert client.get(f"{unknown.url}/running").json() == {"running": False}
    assert not service.node_path("never-used", "/").exists()
    assert "never-used" not in client.get("/v1/sandbox", params={"limit": 1000}).text


@pytest.mark.parametrize("name", ["a", "7", "a-b", "x" * 128])
def test_any_valid_name_is_a_sandbox_on_its_first_use(client: httpx.Client, name: str) -> None:
    with HttpBox(client, name).destroyed_at_the_end() as box:
        assert box.sh("echo hello") == "hello\n"
        assert box.info()["running"] is True
        assert client.get(f"{box.url}/running").json() == {"running": True, "awake": True}
        row = {"id": name, "running": True}
        eventually(lambda: row in client.get("/v1/sandbox", params={"limit": 1000}).json()["sandboxes"])


@pytest.mark.parametrize("name", ["-a", "a-", "A", "a_b", "a.b", "x" * 129, "%2e%2e", "a%00b", "ü", "a%2Fb"])
def test_an_invalid_name_is_refused(client: httpx.Client, name: str) -> None:
    response = client.post(f"/v1/sandbox/{name}/exec", json={"argv": ["true"]})

    assert refusal(response) in {(422, "INVALID_REQUEST"), (404, "NOT_FOUND")}


def test_a_destroyed_sandbox_is_unknown_and_starts_afresh_while_its_backups_stay(box: HttpBox) -> None:
    box.sh("echo old > file")
    handle = box.backup()

    assert box.client.delete(box.url).status_code == 204
    assert refusal(box.client.get(box.url)) == (404, "SANDBOX_NOT_FOUND")
    assert box.client.delete(box.url).status_code == 204

    assert box.sh("ls -A") == ""
    box.restore(handle)
    assert box.read("/workspace/file") == b"old\n"


# --- dir


def test_every_writable_root_can_be_backed_up_and_restored(box: HttpBox) -> None:
    for directory in ("/workspace", "/home/sandbox/x", "/tmp/x", "/var/tmp/x", "/app"):
        box.sh(f"mkdir -p {directory}; echo kept > {directory}/file")
        handle = box.backup(directory)
        box.sh(f"echo lost > {directory}/file")

        box.restore(handle)

        assert handle["dir"] == directory
        assert box.read(f"{directory}/file") == b"kept\n"


def test_a_symlink_out_of_the_sandbox_reaches_nothing_of_the_node(service: Service, box: HttpBox) -> None:
    box.sh("ln -s /etc link; mkdir real; ln -s /etc real/up; ln -s ../../../../../../../../etc climb")
    box.sh("mkdir -p other; echo 1 > other/file")
    handle = box.backup("/workspace/other")
    wait_for_note(service, box, "/workspace")
    before, objects, etc = tree_of(service, box), bucket(service), set(os.listdir("/etc"))

    for directory in ("/workspace/link", "/workspace/real/up/ssl", "/workspace/link/ssl", "/workspace/climb"):
        assert refusal(box.post("backup", dir=directory)) == (400, "INVALID_BACKUP_CONFIG")
        for mode in ("overlay", "copy"):
            response = box.post("restore", id=handle["id"], dir=directory, mode=mode)
            assert refusal(response) == (400, "INVALID_BACKUP_CONFIG")

    assert (tree_of(service, box), bucket(service), set(os.listdir("/etc"))) == (before, objects, etc)


def test_a_symlink_that_stays_inside_the_sandbox_is_followed(box: HttpBox) -> None:
    box.sh("mkdir /app/real; echo kept > /app/real/file; ln -s /app/real absolute; ln -s /app parent")

    through_link = box.backup("/workspace/absolute")
    through_parent = box.backup("/workspace/parent/real")
    box.sh("rm /app/real/file")

    box.restore(through_link)
    assert box.read("/app/real/file") == b"kept\n"
    box.sh("rm /app/real/file")
    box.restore(through_parent)
    assert box.read("/app/real/file") == b"kept\n"


def test_a_directory_that_does_not_exist_is_refused_for_a_backup_and_made_for_a_restore(box: HttpBox) -> None:
    assert refusal(box.post("backup", dir="/workspace/missing")) == (400, "INVALID_BACKUP_CONFIG")
    box.sh("echo 1 > file")
    assert refusal(box.post("backup", dir="/workspace/file")) == (400, "INVALID_BACKUP_CONFIG")

    box.restore(box.backup(), dir="/app/made/on/the/way")

    assert box.read("/app/made/on/the/way/file") == b"1\n"


# --- name, ttl


def test_a_name_of_256_characters_of_any_script_is_taken(box: HttpBox) -> None:
    box.sh("echo 1 > file")
    name = "é🌲" * 128

    handle = box.backup(name=name)

    assert box.client.get(f"/v1/backup/{handle['id']}").json()["name"] == name


def test_a_positive_time_to_live_is_recorded(box: HttpBox) -> None:
    box.sh("echo 1 > file")

    for ttl in (0.5, 61, 86_400.5):
        assert box.client.get(f"/v1/backup/{box.backup(ttl=ttl)['id']}").json()["ttl_s"] == ttl


def test_a_backup_is_expired_from_sixty_seconds_before_its_end(service: Service, box: HttpBox) -> None:
    box.sh("echo kept > file")
    soon = box.backup(ttl=30)
    later = box.backup(ttl=300)
    box.sh("echo now > file")
    before = tree_of(service, box)

    assert refusal(box.post("restore", **soon)) == (410, "BACKUP_EXPIRED")
    assert tree_of(service, box) == before
    assert box.client.get(f"/v1/backup/{soon['id']}").json()["expired"] is True
    box.restore(later)
    assert box.read("/workspace/file") == b"kept\n"


def test_an_expired_backup_stays_in_the_bucket_until_it_is_deleted(service: Service, box: HttpBox) -> None:
    box.sh("echo kept > file")
    handle = box.backup(ttl=1)

    assert refusal(box.post("restore", **handle)) == (410, "BACKUP_EXPIRED")

    assert f"backups/{handle['id']}/data.sqsh" in bucket(service)
    assert box.client.delete(f"/v1/backup/{handle['id']}").status_code == 204
    assert not [name for name in bucket(service) if handle["id"] in name]


# --- excludes, gitignore, compression


def restored_names(box: HttpBox, handle: dict[str, str]) -> set[str]:
    box.restore(handle, dir="/app/restored")
    return set(box.sh("cd /app/restored; find . -mindepth 1 | cut -c3-").split("\n")) - {""}


def test_exclude_patterns_work_as_in_a_gitignore_file(box: HttpBox) -> None:
    box.sh(
        "mkdir -p a/node_modules/deep a/b/c/build src/log; touch a/node_modules/deep/x a/b/c/build/o a/keep.o "
        "top.log src/log/app.log src/log/keep.log src/build.txt; touch 'odd [name]' '#hash'; mkdir build; touch build/o"
    )

    handle = box.backup(excludes=["node_modules/", "**/build/o", "*.log", "!keep.log", "a/**/c", "odd \\[name\\]"])

    assert restored_names(box, handle) == {
        "a", "a/b", "a/keep.o", "src", "src/log", "src/log/keep.log", "src/build.txt", "#hash", "build",
    }  # fmt: skip


def test_gitignore_files_are_heeded_at_every_level_and_only_on_request(box: HttpBox) -> None:
    box.sh(
        "mkdir -p sub/deep; printf '*.tmp\\n/only-top\\n' > .gitignore; "
        "printf '!keep.tmp\\nlocal/\\n' > sub/.gitignore; "
        "mkdir sub/local; touch a.tmp only-top sub/only-top sub/keep.tmp sub/deep/b.tmp sub/deep/keep.tmp sub/local/x"
    )

    heeded, not_heeded = box.backup(gitignore=True), box.backup()

    assert restored_names(box, heeded) == {
        ".gitignore", "sub", "sub/.gitignore", "sub/deep", "sub/only-top", "sub/keep.tmp", "sub/deep/keep.tmp",
    }  # fmt: skip
    assert {"a.tmp", "only-top", "sub/deep/b.tmp", "sub/local/x"} <= restored_names(box, not_heeded)


@pytest.mark.parametrize("mode", ["overlay", "copy"])
def test_every_compression_comes_back(service: Service, box: HttpBox, mode: str) -> None:
    box.sh("seq 100000 > numbers; ln numbers hard; ln -s numbers soft; mkdir empty")
    before = tree_of(service, box)

    for format, level in (("zstd", None), ("zstd", 9), ("lz4", None), ("gzip", None), ("gzip", 9)):
        handle = box.backup(compression={"format": format, **({"level": level} if level else {})})
        box.sh("rm -r *")
        box.restore(handle, mode=mode)

        assert tree_of(service, box) == before
        assert box.client.get(f"/v1/backup/{handle['id']}").json()["compression"] == format


# --- target and mode of a restore


@pytest.mark.parametrize("mode", ["overlay", "copy"])
def test_a_backup_can_be_restored_into_another_directory(box: HttpBox, mode: str) -> None:
    box.sh("echo kept > file")
    handle = box.backup()
    box.sh("echo changed > file")

    result = box.restore(handle, dir="/home/sandbox/elsewhere", mode=mode)

    assert result == {"success": True, "dir": "/home/sandbox/elsewhere", "id": handle["id"]}
    assert box.read("/home/sandbox/elsewhere/file") == b"kept\n"
    assert box.read("/workspace/file") == b"changed\n"


def test_forks_of_one_backup_in_many_sandboxes_are_independent(boxes: Callable[[], HttpBox]) -> None:
    origin, left, right = boxes(), boxes(), boxes()
    origin.sh("echo kept > file; echo gone > other")
    handle = origin.backup()

    left.restore(handle)
    right.restore(handle, mode="copy")
    origin.restore(handle)
    left.sh("echo left > file; rm other")

    assert left.sh("cat file; ls") == "left\nfile\n"
    assert right.sh("cat file; ls") == "kept\nfile\nother\n"
    assert origin.sh("cat file; ls") == "kept\nfile\nother\n"


def test_an_overlay_is_a_mount_and_a_copy_is_plain_files(service: Service, box: HttpBox) -> None:
    box.sh("echo kept > file")
    handle = box.backup()
    place = service.node_path(box.id, "/workspace")

    box.restore(handle)
    assert os.path.ismount(place)
    (restored,) = box.info()["restored"]
    assert (restored["dir"], restored["backup_id"], restored["mode"]) == ("/workspace", handle["id"], "overlay")
    assert restored["driver"]

    box.restore(handle, mode="copy")
    assert not mountinfo.mounts_under(place)
    (restored,) = box.info()["restored"]
    assert (restored["dir"], restored["mode"], "driver" in restored) == ("/workspace", "copy", False)
    box.sh("echo more >> file; mkdir d; mv d e; rm -r e")
    assert box.read("/workspace/file") == b"kept\nmore\n"


def test_a_restored_overlay_takes_every_kind_of_change(box: HttpBox) -> None:
    box.sh("mkdir -p d/e; echo 1 > d/e/f; echo 2 > g; ln g h; mkfifo p")
    box.restore(box.backup())

    box.sh(
        "mv d renamed; echo 3 >> renamed/e/f; rm g; ln -s renamed/e/f link; chmod 600 h; mkdir new; mv new new2; "
        "truncate -s 5 h; touch -d @1000000000 h"
    )

    assert box.sh("cat link; stat -c '%a %s %Y' h; ls") == "1\n3\n600 5 1000000000\nh\nlink\nnew2\np\nrenamed\n"


@pytest.mark.parametrize("mode", ["overlay", "copy"])
def test_restoring_twice_discards_what_was_written_in_between(service: Service, box: HttpBox, mode: str) -> None:
    box.sh("mkdir d; echo kept > d/file")
    handle = box.backup()
    before = tree_of(service, box)

    for _ in range(2):
        box.restore(handle, mode=mode)
        assert tree_of(service, box) == before
        box.sh("rm -r d; echo new > new")
    box.restore(handle, mode=mode)

    assert tree_of(service, box) == before


def test_restoring_a_parent_replaces_what_was_restored_inside_it(service: Service, box: HttpBox) -> None:
    box.sh("mkdir -p project/sub/deeper; echo original > project/sub/file; echo d > project/sub/deeper/file")
    parent, child = box.backup("/workspace/project"), box.backup("/workspace/project/sub")
    deeper = box.backup("/workspace/project/sub/deeper")
    box.restore(child)
    box.restore(deeper)
    box.sh("echo changed > project/sub/file; echo changed > project/sub/deeper/file")
    assert len(box.info()["restored"]) == 2

    box.restore(parent)

    assert box.sh("cat project/sub/file project/sub/deeper/file") == "original\nd\n"
    assert [row["dir"] for row in box.info()["restored"]] == ["/workspace/project"]
    assert len(mountinfo.mounts_under(service.node_path(box.id, "/workspace"))) == 1


def test_restoring_a_child_leaves_the_changes_in_its_restored_parent(box: HttpBox) -> None:
    box.sh("mkdir -p project/sub; echo 1 > project/file; echo 1 > project/sub/file")
    parent, child = box.backup("/workspace/project"), box.backup("/workspace/project/sub")
    box.restore(parent)
    box.sh("echo 2 > project/file; echo 2 > project/sub/file")

    box.restore(child)

    assert box.sh("cat project/file project/sub/file") == "2\n1\n"


def test_a_backup_of_a_restored_and_changed_directory_holds_the_changes(box: HttpBox) -> None:
    box.sh("echo 1 > one; echo 2 > two; mkdir -p sub")
    box.restore(box.backup())
    box.sh("echo 10 > one; rm two; echo 3 > three")
    box.restore(box.backup("/workspace/sub"), dir="/workspace/sub")
    box.sh("echo nested > sub/file")

    second = box.backup()
    box.sh("rm -r one three sub/file")
    box.restore(second)

    assert box.sh("cat one three sub/file; ls") == "10\n3\nnested\none\nsub\nthree\n"


# --- commands during an operation


def test_a_command_is_paused_while_its_directory_is_archived_and_goes_on_after(box: HttpBox) -> None:
    box.sh("head -c 40000000 /dev/urandom > middle")
    counting = box.start("python3", "-c", COUNTER)
    counting.said(b"counting")

    for _ in range(2):
        handle = box.backup()
        after = int(box.read("/workspace/a-first"))
        eventually(lambda after=after: int(box.read("/workspace/a-first")) > after)  # type: ignore[misc]
    eventually(lambda: box.info()["commands"] == 1)

    box.restore(handle, dir="/app/restored")
    first, second = (int(box.read(f"/app/restored/{name}")) for name in ("a-first", "z-second"))
    assert 0 <= first - second <= 1
    assert counting.result().error is not None


def test_commands_are_stopped_by_a_restore_with_an_event_that_says_so(box: HttpBox) -> None:
    box.sh("echo kept > file")
    handle = box.backup()
    running = box.start("sh", "-c", "(trap '' TERM INT HUP; echo ready; while :; do sleep 0.05; done) & wait")
    running.said(b"ready")

    box.restore(handle)

    ran = running.result()
    assert (ran.error or {})["code"] == "EXEC_STOPPED"
    assert ran.exit_code is None
    assert box.info()["commands"] == 0


# --- atomicity


def test_a_backup_that_fails_leaves_nothing_in_the_bucket_and_on_the_node(service: Service, box: HttpBox) -> None:
    box.sh("echo 1 > file")
    box.backup()
    box.sh("for n in 1 2; do truncate -s 40G hole$n; done")
    home = service.node_path(box.id, "/").parent
    wait_for_note(service, box)
    before, objects = tree_of_names(home), bucket(service)

    response = box.post("backup", dir="/workspace")

    assert refusal(response) == (500, "BACKUP_CREATE_FAILED")
    assert (tree_of_names(home), bucket(service)) == (before, objects)
    assert box.info()["recent"][-1]["outcome"] == "BACKUP_CREATE_FAILED"
    assert box.sh("rm hole1 hole2; cat file") == "1\n"
    box.backup()


@pytest.mark.parametrize("mode", ["overlay", "copy"])
def test_a_restore_of_a_corrupt_archive_leaves_everything_as_it_was(service: Service, box: HttpBox, mode: str) -> None:
    box.sh("head -c 300000 /dev/urandom > file")
    handle = box.backup()
    box.restore(box.backup(), dir="/workspace/inside")
    box.sh("echo changed > file; echo changed > inside/file")
    forget_archives(service)
    flip_a_byte(service.s3 / "backups" / handle["id"] / "data.sqsh")
    before, mounts = tree_of(service, box), mountinfo.mounts_under(service.data_dir)
    home = tree_of_names(service.node_path(box.id, "/").parent)

    response = box.post("restore", **handle, mode=mode)

    assert refusal(response) == (500, "BACKUP_RESTORE_FAILED")
    assert (tree_of(service, box), mountinfo.mounts_under(service.data_dir)) == (before, mounts)
    assert tree_of_names(service.node_path(box.id, "/").parent) == home


def test_a_backup_that_the_cloudflare_sdk_wrote_can_be_restored_once_adopted(service: Service, box: HttpBox) -> None:
    box.sh("echo kept > file")
    handle = box.backup(name="from the SDK")
    key = f"backups/{handle['id']}/meta.json"
    document = json.loads(service.store().get(key).data)
    plain = {name: document[name] for name in ("id", "dir", "name", "sizeBytes", "ttl", "createdAt")}
    service.store().put(key, json.dumps(plain).encode())
    box.sh("echo lost > file")
    url = f"/v1/backup/{handle['id']}"

    refused = box.post("restore", **handle)
    assert refusal(refused) == (500, "BACKUP_RESTORE_FAILED")
    assert refused.json()["context"] == {"reason": "UNSIGNED_METADATA"}
    assert f"holdfast adopt {handle['id']}" in refused.json()["hint"]
    assert box.client.get(url).json()["status"] == "unsigned"
    assert box.read("/workspace/file") == b"lost\n"

    adopted = box.client.post(f"{url}/adopt")
    assert adopted.status_code == 200
    assert adopted.json() == box.client.get(url).json()
    assert {name: adopted.json()[name] for name in ("id", "dir", "name", "status")} == {
        **handle, "name": "from the SDK", "status": "ok",
    }  # fmt: skip
    box.restore(handle)
    assert box.read("/workspace/file") == b"kept\n"


def test_a_tampered_backup_is_refused_but_can_be_listed_and_deleted(
    service: Service, box: HttpBox, other_client: httpx.Client
) -> None:
    box.sh("echo 1 > file")
    handle, sound = box.backup(), box.backup()
    key = f"backups/{handle['id']}/meta.json"
    document = json.loads(service.store().get(key).data)
    edited = json.dumps({**document, "tenant": "other", "ttl": 1e9}).encode()
    service.store().put(key, edited)
    url = f"/v1/backup/{handle['id']}"

    with HttpBox(other_client, box.id).destroyed_at_the_end() as theirs:
        for thief in (box, theirs):
            refused = thief.post("restore", **handle)
            assert refusal(refused) == (500, "BACKUP_RESTORE_FAILED")
            assert refused.json()["context"] == {"reason": "TAMPERED_METADATA"}
            assert refusal(thief.client.post(f"{url}/adopt")) == (500, "BACKUP_RESTORE_FAILED")
            assert refusal(thief.client.get(url)) == (409, "DOCUMENT_DAMAGED")
    assert refusal(other_client.delete(url)) == (409, "DOCUMENT_DAMAGED")
    listed = box.client.get(f"{box.url}/backups").json()["backups"]
    assert [(row["id"], row["status"]) for row in listed] == [(sound["id"], "ok"), (handle["id"], "tampered")]
    assert "dir" not in listed[1] and listed[1]["expired"] is False
    assert box.client.delete(url).status_code == 204
    assert not [name for name in bucket(service) if handle["id"] in name]
    box.restore(sound)


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[]", b'{"version":1,"id":"x"}'])
def test_a_sandbox_with_a_damaged_state_can_still_be_used_and_deleted(
    service: Service, box: HttpBox, damage: bytes
) -> None:
    box.sh("echo 1 > file")
    wait_for_note(service, box, "/workspace")
    handle = box.backup()
    # A write that is still on its way would replace the damage unseen: the store has no conditional writes.
    wait_for_note(service, box)
    key = keys.state("default", box.id)
    service.store().put(key, damage)
    refused = box.client.get(f"{box.url}/events")
    assert refusal(refused) == (409, "DOCUMENT_DAMAGED")
    assert refused.json()["context"]["document"] == key
    assert "delete the sandbox" in refused.json()["hint"]
    assert box.read("/workspace/file") == b"1\n"
    later = box.backup()
    assert "state_replaced" in [row["kind"] for row in box.client.get(f"{box.url}/events").json()["events"]]
    service.store().put(key, damage)
    assert box.client.delete(box.url).status_code == 204
    assert refusal(box.client.get(box.url)) == (404, "SANDBOX_NOT_FOUND")
    for kept in (handle, later):
        box.restore(kept)
        assert box.read("/workspace/file") == b"1\n"


def test_a_backup_whose_archive_is_missing_is_not_found(service: Service, box: HttpBox) -> None:
    box.sh("echo 1 > file")
    cached, fresh = box.backup(), box.backup()
    for handle in (cached, fresh):
        service.store().delete(keys.archive(handle["id"]))
    before = tree_of(service, box)

    assert refusal(box.post("restore", **cached)) == (404, "BACKUP_NOT_FOUND")
    forget_archives(service)
    assert refusal(box.post("restore", **fresh)) == (404, "BACKUP_NOT_FOUND")
    assert tree_of(service, box) == before


def test_a_cancelled_backup_leaves_nothing(service: Service, box: HttpBox) -> None:
    box.sh("head -c 200000000 /dev/urandom > large")
    wait_for_note(service, box, "/workspace")
    objects = bucket(service)
    refused: list[tuple[int, str]] = []
    with service.client() as aside:
        thread = threading.Thread(
            target=lambda: refused.append(refusal(HttpBox(aside, box.id).post(
                "backup", dir="/workspace", compression={"format": "zstd", "level": 22}))), daemon=True
        )  # fmt: skip
        thread.start()
        eventually(lambda: bool(box.client.get(f"{box.url}/operation").json()))
        assert box.post("cancel").json() == {"cancelled": True}
        thread.join(120)

    assert refused == [(409, "OPERATION_CANCELLED")]
    assert bucket(service) == objects
    assert box.post("cancel").json() == {"cancelled": False}


# --- other tenants


def test_another_tenants_backups_and_sandboxes_can_be_neither_seen_nor_changed(
    service: Service, box: HttpBox, other_client: httpx.Client
) -> None:
    box.sh("echo secret > file")
    handle = box.backup()
    with HttpBox(other_client, box.id).destroyed_at_the_end() as theirs:
        assert refusal(other_client.get(theirs.url)) == (404, "SANDBOX_NOT_FOUND")
        assert theirs.sh("ls -A") == ""
        wait_for_note(service, box)
        wait_for_note(service, theirs, tenant=OTHER_TENANT)
        objects = bucket(service)

        for mode in ("overlay", "copy"):
            assert refusal(theirs.post("restore", **handle, mode=mode)) == (404, "BACKUP_NOT_FOUND")
        assert refusal(other_client.get(f"/v1/backup/{handle['id']}")) == (404, "BACKUP_NOT_FOUND")
        assert refusal(other_client.delete(f"/v1/backup/{handle['id']}")) == (404, "BACKUP_NOT_FOUND")
        assert other_client.get(f"{theirs.url}/backups").json() == {"backups": []}
        listed = other_client.get("/v1/sandbox", params={"limit": 1000}).json()["sandboxes"]
        assert listed == [{"id": box.id, "running": True}]

        assert bucket(service) == objects
        assert theirs.sh("ls -A") == ""
        theirs.sh("echo theirs > file")
        own = theirs.backup()
        assert refusal(box.post("restore", **own)) == (404, "BACKUP_NOT_FOUND")
        theirs.restore(own)
    assert box.read("/workspace/file") == b"secret\n"
    box.restore(handle)


def tree_of_names(path: Path) -> set[str]:
    """Returns every name below the path, mounts included."""
    return {os.path.join(folder, name) for folder, names, files in os.walk(path) for name in (*names, *files)}


def forget_archives(service: Service) -> None:
    """Empties the node's cache of archives, as an operator may at any time."""
    for path in (service.data_dir / "node" / "cache").glob("*.sqsh"):
        path.unlink(missing_ok=True)


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
