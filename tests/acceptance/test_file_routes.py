"""Files in and out: raw bytes, hostile names, large ones, and whole directories as tar archives."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import httpx
import pytest

from actors.sandbox.admission import THREADS
from gateway.server import STALLED_READER_LIMIT_S
from tests.acceptance.http_box import HttpBox, refusal
from tests.acceptance.test_meaning import tree_of, tree_of_names
from tests.support.service import Service, eventually


@pytest.fixture(scope="module")
def shared(client: httpx.Client) -> Iterator[HttpBox]:
    """One sandbox for the tests that do not depend on its content."""
    with HttpBox(client, f"files-{uuid.uuid4().hex[:8]}").destroyed_at_the_end() as box:
        yield box


@pytest.fixture
def box(shared: HttpBox) -> HttpBox:
    shared.sh("find . -mindepth 1 -delete")
    return shared


HOSTILE_NAMES = [
    b"with space", b"new\nline", b"-rf", b"--help", b"'single' \"double\" `back` $(echo no) \\", b"tab\tand\x1bescape",
    b"*?[a-z]", b"...", b"%2e%2e", b"#hash?query=1&x", b"a;b", "Grüße 🌲".encode(), b"not utf-8 \xff\xfe\x80",
    b"x" * 255, b"{id}", b"file", b"C:\\windows", b"a+b",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_file_of_any_name_is_written_read_and_deleted(service: Service, box: HttpBox, name: bytes) -> None:
    path = b"/workspace/dir/" + name
    data = b"content of " + name

    box.write(path, data)

    assert os.listdir(os.fsencode(service.node_path(box.id, "/workspace/dir"))) == [name]
    assert box.get(path).content == data
    assert box.client.delete(box.file_url(path)).status_code == 204
    assert refusal(box.get(path)) == (404, "FILE_NOT_FOUND")


def test_backups_of_files_of_any_name_are_listed_and_compared(box: HttpBox) -> None:
    for name in HOSTILE_NAMES:
        box.write(b"/workspace/dir/" + name, name)
    first = box.backup()["id"]
    box.sh("rm -r dir; mkdir new")
    second = box.backup()["id"]
    names = {"/dir/" + os.fsdecode(name) for name in HOSTILE_NAMES}
    found: set[str] = set()
    wanted: dict[str, str] = {"path": "/dir", "limit": "5"}
    while wanted.get("cursor") != "":
        page = box.client.get(f"/v1/backup/{first}/files", params=wanted).json()
        found |= {file["path"] for file in page["files"]}
        wanted["cursor"] = page.get("cursor", "")
    assert found == names
    for name in (b"not%20utf-8%20%ff%fe%80", b"new%0aline"):
        (file,) = box.client.get(f"/v1/backup/{first}/files?path=/dir/{name.decode()}").json()["files"]
        assert file["path"] in names and file["kind"] == "file"
    assert refusal(box.client.get(f"/v1/backup/{second}/files?path=/dir")) == (404, "FILE_NOT_FOUND")
    changes = box.client.get(f"/v1/backup/{first}/diff/{second}").json()["changes"]
    assert {row["path"]: row["change"] for row in changes} == dict.fromkeys(names | {"/dir"}, "removed") | {
        "/new": "added"
    }
    assert box.client.get(f"{box.url}/diff/{first}").json()["changes"] == changes
    assert box.client.get(f"{box.url}/diff/{second}").json()["changes"] == []
    assert refusal(box.client.get(f"{box.url}/diff/{first}?dir=/etc")) == (400, "INVALID_BACKUP_CONFIG")


@pytest.mark.parametrize("data", [b"", b"\0", bytes(range(256)) * 5000, b"\r\n"])
def test_bytes_come_back_as_they_were(box: HttpBox, data: bytes) -> None:
    box.write("/workspace/file", data)

    response = box.get("/workspace/file")

    assert response.content == data
    assert response.headers["content-type"] == "application/octet-stream"


def test_a_file_of_64_mib_is_streamed_both_ways(box: HttpBox) -> None:
    block = os.urandom(2**20)
    expected = hashlib.sha256()

    def blocks() -> Iterator[bytes]:
        for number in range(64):
            piece = number.to_bytes(8, "big") + block[8:]
            expected.update(piece)
            yield piece

    assert box.put("/workspace/large", blocks()).json() == {"ok": True}

    received, size = hashlib.sha256(), 0
    with box.client.stream("GET", box.file_url("/workspace/large")) as response:
        for piece in response.iter_bytes():
            received.update(piece)
            size += len(piece)
    assert (size, received.digest()) == (64 * 2**20, expected.digest())
    assert box.sh("sha256sum < large").split()[0] == expected.hexdigest()


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "/usr/bin/x", "/", "/workspace2/x", "/var/x"])
def test_a_path_outside_the_writable_roots_is_forbidden(box: HttpBox, path: str) -> None:
    assert refusal(box.get(path)) == (403, "PATH_FORBIDDEN")
    assert refusal(box.put(path, b"x")) == (403, "PATH_FORBIDDEN")
    assert refusal(box.client.delete(box.file_url(path))) == (403, "PATH_FORBIDDEN")


def test_a_link_out_of_the_sandbox_leads_to_nothing_of_the_node(service: Service, box: HttpBox) -> None:
    box.sh(
        "ln -s /etc/hostname file; ln -s /etc dir; ln -s ../../../../../../etc/hostname climb; ln -s /proc/self/root r"
    )
    before = tree_of(service, box)

    for path in ("file", "dir/hostname", "climb", "r/etc/hostname"):
        assert box.get(f"/workspace/{path}").status_code in (403, 404)
    for path in ("dir/hostname", "r/etc/hostname"):
        assert refusal(box.put(f"/workspace/{path}", b"x"))[0] in (403, 404, 409)
        assert refusal(box.client.delete(box.file_url(f"/workspace/{path}")))[0] in (403, 404, 409)
    assert tree_of(service, box) == before


def test_a_file_is_written_through_a_link_that_stays_inside(box: HttpBox) -> None:
    box.sh("mkdir v1; echo old > v1/config; chmod 600 v1/config; ln -s v1 current; ln -s current/config config")
    box.write("/workspace/config", b"new\n")
    assert box.sh("readlink config current; stat -c %a v1/config; cat v1/config") == "current/config\nv1\n600\nnew\n"


def test_a_path_that_is_not_a_regular_file_is_refused(box: HttpBox) -> None:
    box.sh("mkdir dir; touch dir/file; mkfifo fifo; ln -s loop loop")

    assert refusal(box.get("/workspace/dir")) == (409, "NOT_A_REGULAR_FILE")
    assert refusal(box.get("/workspace/fifo")) == (409, "NOT_A_REGULAR_FILE")
    assert refusal(box.put("/workspace/dir", b"x")) == (409, "NOT_A_REGULAR_FILE")
    assert refusal(box.put("/workspace/dir/file/below", b"x")) == (409, "NOT_A_REGULAR_FILE")
    assert refusal(box.client.delete(box.file_url("/workspace/dir"))) == (409, "NOT_A_REGULAR_FILE")
    assert refusal(box.get("/workspace/loop"))[0] in (403, 404)
    assert refusal(box.get("/workspace/" + "x" * 256))[0] in (403, 404, 422)
    assert refusal(box.get("/workspace/%00")) == (404, "FILE_NOT_FOUND")
    assert refusal(box.client.get(f"{box.url}/file/workspace/%00")) == (422, "INVALID_REQUEST")
    assert refusal(box.client.get(f"{box.url}/file/workspace/a%2F..%2Fb")) == (422, "INVALID_REQUEST")


def test_a_written_file_belongs_to_the_sandbox_and_keeps_its_previous_mode(box: HttpBox) -> None:
    box.write("/workspace/new/file", b"1")
    box.sh("echo 1 > script; chmod 750 script")
    box.write("/workspace/script", b"#!/bin/sh\necho ran\n")

    assert box.sh("stat -c '%a %u' new new/file script; ./script") == "755 1000\n644 1000\n750 1000\nran\n"


def test_a_directory_is_listed_with_all_its_names(box: HttpBox) -> None:
    box.sh("mkdir d; echo 123 > d/file; ln -s x d/link; mkdir d/sub; mkfifo d/pipe")
    box.write(b"/workspace/d/\xff", b"")

    files = box.client.get(f"{box.url}/files", params={"path": "/workspace/d"}).json()["files"]

    kinds = {row["name"]: row["kind"] for row in files}
    assert kinds == {"file": "file", "link": "symlink", "sub": "directory", "pipe": "other", "\udcff": "file"}
    assert next(row["size_bytes"] for row in files if row["name"] == "file") == 4


def test_an_upload_that_breaks_off_leaves_nothing(service: Service, box: HttpBox) -> None:
    box.sh("echo before > file")
    folder = service.node_path(box.id, "/workspace")
    before = {name: row for name, row in tree_of(service, box).items() if name}

    def breaking() -> Iterator[bytes]:
        yield bytes(3 * 2**20)
        eventually(lambda: len(os.listdir(folder)) == 2)
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        box.put("/workspace/file", breaking())

    eventually(lambda: os.listdir(folder) == ["file"])
    assert {name: row for name, row in tree_of(service, box).items() if name} == before


def test_stalled_readers_block_no_other_call(service: Service, box: HttpBox) -> None:
    box.sh("truncate -s 400M large")
    with ExitStack() as stack:
        for _ in range(THREADS["reads"]):
            reader = stack.enter_context(service.client())
            response = stack.enter_context(reader.stream("GET", box.file_url("/workspace/large")))
            assert response.status_code == 200
        writer = stack.enter_context(service.client())
        writer.timeout = httpx.Timeout(STALLED_READER_LIMIT_S / 2)
        HttpBox(writer, box.id).write("/workspace/file", b"written meanwhile")
    assert box.read("/workspace/file") == b"written meanwhile"


def test_a_sandbox_deleted_during_an_upload_stays_deleted(
    service: Service, client: httpx.Client, boxes: Callable[[], HttpBox]
) -> None:
    box = boxes()
    box.sh("echo 1 > file")
    folder = service.node_path(box.id, "/workspace")

    def deleted_meanwhile() -> Iterator[bytes]:
        yield bytes(3 * 2**20)
        eventually(lambda: len(os.listdir(folder)) == 2)
        with service.client() as other:
            assert other.delete(box.url).status_code == 204
        eventually(lambda: client.get(box.url).status_code == 404)
        for _ in range(8):
            yield bytes(2**20)

    with service.client() as uploading, suppress(httpx.TransportError):  # refused before everything is sent
        assert refusal(HttpBox(uploading, box.id).put("/workspace/new", deleted_meanwhile()))[1] == "EXEC_STOPPED"
    assert refusal(client.get(box.url)) == (404, "SANDBOX_NOT_FOUND")
    assert box.id not in {row["id"] for row in client.get("/v1/sandbox").json()["sandboxes"]}


def test_a_workspace_travels_as_a_tar_archive(service: Service, boxes: Callable[[], HttpBox]) -> None:
    origin, other = boxes(), boxes()
    origin.sh(
        "mkdir -p d/empty; seq 1000 > d/file; ln d/file hard; ln -s d/file soft; ln -s /nowhere dangling; chmod 750 d; "
        "printf x > 'new\nline'; chmod 000 hard; touch -d @1000000000 d/file; mkfifo pipe"
    )

    tar = origin.client.post(f"{origin.url}/persist")
    assert tar.headers["content-type"] == "application/x-tar"
    response = other.client.post(f"{other.url}/hydrate", content=tar.content)

    assert response.json() == {"ok": True}
    before, after = tree_of(service, origin), tree_of(service, other)
    assert after.keys() == before.keys()
    assert {name: row for name, row in after.items() if name} == {name: row for name, row in before.items() if name}


@pytest.mark.parametrize("tar", [b"garbage" * 1000, b"x", os.urandom(100_000)], ids=["text", "one byte", "noise"])
def test_a_body_that_is_not_a_tar_archive_is_refused(service: Service, box: HttpBox, tar: bytes) -> None:
    box.sh("echo kept > file")
    before = tree_of(service, box)

    assert refusal(box.client.post(f"{box.url}/hydrate", content=tar)) == (422, "INVALID_REQUEST")
    assert tree_of(service, box) == before


def test_a_hostile_tar_archive_writes_nothing_outside_the_sandbox(service: Service, box: HttpBox) -> None:
    box.sh("true")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ("../../escaped", "/escaped", "dir/link/escaped"):
            if "link" in name:
                link = tarfile.TarInfo("dir/link")
                link.type, link.linkname = tarfile.SYMTYPE, "/../../../../../../../tmp"
                tar.addfile(link)
            entry = tarfile.TarInfo(name)
            entry.size = 4
            tar.addfile(entry, io.BytesIO(b"data"))

    box.client.post(f"{box.url}/hydrate", content=archive.getvalue())

    escaped = {name for name in tree_of_names(service.data_dir) if name.endswith("escaped")}
    root = str(service.node_path(box.id, "/"))
    assert all(name.startswith(root) for name in escaped)
    assert not any(os.path.exists(path) for path in ("/escaped", "/tmp/escaped", service.home / "escaped"))
