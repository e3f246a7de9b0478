"""`persist` and `hydrate`, compared with GNU tar on the same tree."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import tarfile
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from actors.errors import InvalidRequestError, NoSpaceError
from actors.models import ExecRequest
from actors.node.bubblewrap import Identity
from actors.node.drivers import Driver
from actors.sandbox.facade import LocalSandbox
from actors.sandbox.tar_process import Complaints
from tests.support.full_disk import unmounted
from tests.support.mount_leaks import wait_until
from tests.support.random_trees import random_tree
from tests.support.sandboxes import Background, Node, backup, code_of, hydrate, restore, run, sh, write
from tests.support.trees import Entry, fingerprint, make_interesting_tree

XATTRS = ("--xattrs", "--xattrs-include=user.*")
FAR_S = (-2_000_000_000, 9_000_000_000)


def work(node: Node, box: LocalSandbox) -> Path:
    return node.tree(box) / "workspace"


def persisted(box: LocalSandbox, *excludes: str) -> bytes:
    return b"".join(box.persist(uuid.uuid4().hex, excludes))


def unpacked_by_tar(tar: bytes, folder: Path) -> Path:
    folder.mkdir()
    subprocess.run(
        ["tar", "--extract", "--file=-", "--preserve-permissions", *XATTRS], input=tar, cwd=folder, check=True
    )
    return folder


def packed_by_tar(folder: Path, *options: str) -> bytes:
    return subprocess.run(
        ["tar", "--create", "--file=-", *options, "."], cwd=folder, check=True, stdout=subprocess.PIPE
    ).stdout


def without_owners(tree: Mapping[bytes, Entry]) -> dict[bytes, Entry]:
    return {name: replace(entry, uid=0, gid=0) for name, entry in tree.items()}


def times_ns(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_an_interesting_tree_is_carried_over_exactly(kernel_node: Node, tmp_path: Path) -> None:
    one, other = kernel_node.sandbox("one"), kernel_node.sandbox("other")
    root = work(kernel_node, one)
    owner = kernel_node.owner(one)
    root.rmdir()
    make_interesting_tree(root, owner)
    tar = persisted(one)
    expected = fingerprint(root)
    assert without_owners(fingerprint(unpacked_by_tar(tar, tmp_path / "unpacked"))) == without_owners(expected)
    hydrate(other, tar)
    assert fingerprint(work(kernel_node, other)) == expected


@pytest.mark.parametrize("seed", range(5))
def test_any_tree_is_carried_over_as_gnu_tar_does(kernel_node: Node, tmp_path: Path, seed: int) -> None:
    one, other = kernel_node.sandbox("one"), kernel_node.sandbox("other")
    rng, root = random.Random(seed), work(kernel_node, one)
    random_tree(root, rng, outside=kernel_node.tree(one) / "tmp", kinds=("file", "symlink", "fifo"))
    for path in root.rglob("*"):
        if rng.random() < 0.5 and not path.is_symlink() and not path.is_fifo():
            os.setxattr(path, f"user.{rng.randrange(100)}", rng.randbytes(rng.randrange(100)))
        if rng.random() < 0.3:
            os.utime(path, ns=(0, rng.choice(FAR_S) * 10**9 + rng.randrange(10**9)), follow_symlinks=False)
    tar = persisted(one)
    reference = unpacked_by_tar(packed_by_tar(root, "--format=posix", *XATTRS), tmp_path / "reference")
    expected = without_owners(fingerprint(reference))
    ours = unpacked_by_tar(tar, tmp_path / "unpacked")
    hydrate(other, tar)
    for found in (ours, work(kernel_node, other)):
        assert without_owners(fingerprint(found)) == expected
        assert times_ns(found) == times_ns(root)


@pytest.mark.parametrize("attribute", [False, True])
def test_a_restored_tree_is_carried_over_exactly(node: Node, attribute: bool) -> None:
    one, other = node.sandbox("one"), node.sandbox("other")
    for folder in ("kept", "written to"):
        for name in (f"{folder}/file", f"{folder}/folder/file", f"{folder}/second"):
            write(one, f"/workspace/{name}", b"data")
    sh(one, "ln -s x kept/link; mkfifo kept/fifo; ln kept/file kept/hard")
    if attribute:
        os.setxattr(work(node, one) / "kept/file", "user.a", b"b")
    restore(one, backup(one))
    sh(one, "echo more >> 'written to/file'; mv 'written to/second' 'written to/third'; rm 'written to/third'")
    hydrate(other, persisted(one))
    expected, found = fingerprint(work(node, one)), fingerprint(work(node, other))
    if node.driver is Driver.FUSE:  # it shows two times for its root
        del expected[b""], found[b""]
    assert found == expected


@pytest.mark.parametrize("format", ["gnu", "oldgnu", "ustar", "posix"])
def test_an_archive_of_any_format_is_unpacked(kernel_node: Node, tmp_path: Path, format: str) -> None:
    box, source = kernel_node.sandbox(), tmp_path / "source"
    source.mkdir()
    random_tree(source, random.Random(1), outside=tmp_path, kinds=("file", "symlink"))
    for path in source.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000), follow_symlinks=False)
    hydrate(box, packed_by_tar(source, f"--format={format}"))
    found = without_owners(fingerprint(work(kernel_node, box)))
    assert found.keys() == fingerprint(source).keys()
    assert {name: found[name] for name in found if name} == {
        name: entry for name, entry in without_owners(fingerprint(source)).items() if name
    }


def test_equal_trees_give_equal_tar_archives(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    make_interesting_tree(work(kernel_node, box) / "tree", kernel_node.owner(box))
    first = persisted(box)
    run(box, "cat", "/workspace/tree/large")
    assert persisted(box) == first


def test_files_that_change_during_persist_do_not_break_the_archive(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "mkdir kept live; for n in $(seq 1000); do echo $n > kept/$n; done")
    comes_and_goes = "while :; do mkdir -p live/a/b; touch live/a/b/c live/d; rm -r live/a live/d; done"
    running = box.exec("a-name", ExecRequest(argv=["sh", "-c", f"echo begun; {comes_and_goes}"]))
    next(running)
    for _ in range(20):
        with tarfile.open(fileobj=io.BytesIO(persisted(box))) as archive:
            assert sum(name.startswith("./kept/") for name in archive.getnames()) == 1000
    assert box.stop("a-name")


def started(read: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=read)
    thread.start()
    return thread


def test_a_pipe_of_a_tool_is_closed_only_after_its_reader_has_ended(kernel_node: Node) -> None:
    box = kernel_node.sandbox("one")
    sh(box, "true")
    heard: list[bytes] = []
    commands, late = box.parts.commands, threading.Event()
    with commands.tool("a-name", ["echo", "all"], identity=Identity.READER, stdin=None) as tool:
        pipe = tool.process.stdout
        assert pipe is not None

        def read() -> None:
            late.wait(0.5)
            heard.extend(pipe)

        tool.beside(read)
    assert heard == [b"all\n"]


def test_a_file_that_goes_before_its_attributes_are_listed_is_no_complaint() -> None:
    said = (
        r"tar: d: Warning: Cannot llistxattrat: No such file or directory\ntar: ./e: Cannot open: Permission denied\n"
    )
    with subprocess.Popen(["printf", said], stdout=subprocess.PIPE) as printing:
        tool = SimpleNamespace(process=SimpleNamespace(stderr=printing.stdout), beside=started)
        complaints = Complaints(tool)  # type: ignore[arg-type]
        assert complaints.text() == "tar: ./e: Cannot open: Permission denied"


def test_a_hole_of_many_gigabytes_is_carried_over_quickly(kernel_node: Node) -> None:
    one, other = kernel_node.sandbox("one"), kernel_node.sandbox("other")
    sparse = work(kernel_node, one) / "sparse"
    sparse.touch()
    os.chown(sparse, kernel_node.owner(one), kernel_node.owner(one))
    os.truncate(sparse, 2**36)
    hydrate(other, persisted(one))
    found = (work(kernel_node, other) / "sparse").stat()
    assert (found.st_size, found.st_blocks) == (2**36, 0)


def test_an_attribute_that_cannot_be_set_is_an_error(kernel_node: Node, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", source], check=True)
    try:
        (source / "file").touch()
        os.setxattr(source / "file", "user.large", bytes(40_000))  # more than ext4 holds
        tar = packed_by_tar(source, "--format=posix", *XATTRS)
    finally:
        unmounted(source)
    box = kernel_node.sandbox()
    with pytest.raises(InvalidRequestError) as caught:
        hydrate(box, tar)
    assert "user.large" in str(caught.value.context)


def test_attributes_of_other_name_spaces_are_ignored_without_an_error(kernel_node: Node, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").touch()
    for name in ("trusted.a", "security.b", "user.c"):
        os.setxattr(source / "file", name, b"value")
    box = kernel_node.sandbox()
    hydrate(box, packed_by_tar(source, "--format=posix", "--xattrs", "--xattrs-include=*"))
    assert os.listxattr(work(kernel_node, box) / "file") == ["user.c"]


@pytest.mark.parametrize(
    "excludes",
    [
        ("*.log",),
        (".venv", "__pycache__/"),
        ("/build", "!build/keep"),
        ("a/**/z", "*.log", "!important.log"),
        ("new\nline*".replace("\n", "?"), "star\\*", "[!-]x", "\udcff*", "\\ lead", "tail\\ "),
        ("*",),
    ],
)
def test_persist_excludes_the_same_files_as_a_backup(
    kernel_node: Node, tmp_path: Path, excludes: tuple[str, ...]
) -> None:
    one, other = kernel_node.sandbox("one"), kernel_node.sandbox("other")
    root = work(kernel_node, one)
    for name in (
        b"a/b/z", b"a/z", b"build/keep", b"build/x.log", b"important.log", b"x.log", b"d/.venv/bin/p", b".venv/p",
        b"d/__pycache__/c", b"__pycache__x", b"new\nline", b"newxline", b"newxline2/f", b"star*", b"starx", b"-x",
        b"#x", b"\xff\xfe", b"\xffdir/f", b" lead", b"lead", b"tail ", b"tail", b"tab\t", b"back\\slash", b"k[a]/x",
    ):  # fmt: skip
        path = os.path.join(os.fsencode(root), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_bytes(name)
    subprocess.run(["chown", "-R", f"--reference={root}", root], check=True)
    restore(other, backup(one, excludes=list(excludes)))
    expected = without_owners(fingerprint(work(kernel_node, other)))
    found = without_owners(fingerprint(unpacked_by_tar(persisted(one, *excludes), tmp_path / "unpacked")))
    assert found == expected


def test_excluded_names_with_newlines_and_blanks_exclude_no_other_files(kernel_node: Node, tmp_path: Path) -> None:
    box = kernel_node.sandbox()
    root = work(kernel_node, box)
    for name in ("new\nline", "new", "line", "tail ", "tail", "tab\t", "tab"):
        (root / name).touch()
    tar = persisted(box, "*[\t ]", "new?line")
    assert sorted(os.listdir(unpacked_by_tar(tar, tmp_path / "unpacked"))) == ["line", "new", "tab", "tail"]


def test_excludes_that_cannot_be_applied_are_an_error_before_the_first_byte(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "d=.; for i in $(seq 600); do d=$d/d; done; mkdir -p $d")
    with pytest.raises(InvalidRequestError, match="levels deep"):
        next(box.persist(uuid.uuid4().hex, ["*.log"]))


BLOCK = 512


def variants(tmp_path: Path) -> dict[str, bytes]:
    """Archives as various programs make them, and damaged, cut or padded variants."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "folder").mkdir()
    for name, size in (("a", 0), ("b", 1), ("folder/c", BLOCK), ("folder/d", 3 * BLOCK + 1), ("x" * 120, 700)):
        (source / name).write_bytes(random.Random(name).randbytes(size))
    (source / "link").symlink_to("folder/d")
    os.link(source / "b", source / "hard")
    plain = packed_by_tar(source, "--format=posix")
    other = packed_by_tar(source / "folder")
    end = len(plain.rstrip(b"\0")) // BLOCK * BLOCK + BLOCK
    large = tmp_path / "large"
    large.mkdir()
    (large / "file").write_bytes(random.Random(0).randbytes(300_000))
    long = packed_by_tar(large)
    made = {
        **{f"cut after {at}": plain[:at] for at in range(end + BLOCK, len(plain) + 1, BLOCK)},
        **{f"a long one, cut after {at}": long[:at] for at in (65_536, 200_000, 299_520, 300_032, 300_544)},
        **{f"of {n} blocks a record": packed_by_tar(source, f"-b{n}") for n in (1, 7, 20, 2048)},
        **{f"followed by {n} zeros": plain + bytes(n) for n in (1, BLOCK, 65_536, 3_000_000)},
        **{f"with {n} zero blocks at its end": plain[:end] + bytes(n * BLOCK) for n in (1, 2, 3)},
        **{f"followed by {n} bytes of garbage": plain + b"garbage!" * (n // 8) for n in (8, 10_240, 3_000_000)},
        "garbage in place of its end": plain[:end] + b"garbage!" * 200,
        "one after another": plain + other,
        "one after another without an end between": plain[:end] + other,
        "cut, and followed by another": plain[: end - 2 * BLOCK] + other,
        "cut, and followed by zeros": long[:200_000] + bytes(20 * BLOCK),
        "damaged in a header": plain[:100] + b"?" + plain[101:],
        "damaged in the content": long[:70_000] + b"?" + long[70_001:],
        "nothing but zeros": bytes(20 * BLOCK),
        "one zero block": bytes(BLOCK),
        "one zero": b"\0",
        "text": b"this is no archive\n" * 2000,
    }
    packers = (["gzip", "-c"], ["bzip2", "-c"], ["xz", "-c"], ["zstd", "-c"])
    packed = {f"by {argv[0]}": subprocess.run(argv, input=plain, capture_output=True).stdout for argv in packers}
    return made | packed


def test_hydrate_accepts_and_refuses_the_same_archives_as_gnu_tar(kernel_node: Node, tmp_path: Path) -> None:
    box = kernel_node.sandbox()
    root, reference, wrong = work(kernel_node, box), tmp_path / "reference", []
    verdicts = set()
    for name, tar in variants(tmp_path).items():
        for folder in (root, reference):
            subprocess.run(["find", folder, "-mindepth", "1", "-delete"], check=folder is root, capture_output=True)
        reference.mkdir(exist_ok=True)
        argv = ["tar", "--extract", "--file=-", "--no-same-owner"]
        expected = subprocess.run(argv, input=tar, cwd=reference, capture_output=True).returncode == 0
        try:
            hydrate(box, tar)
            found = True
        except InvalidRequestError:
            found = False
        verdicts.add(expected)
        if found != expected or (expected and content(root) != content(reference)):
            wrong.append((name, expected, found))
    assert wrong == []
    assert verdicts == {True, False}


@pytest.mark.parametrize("options", KINDS := [
    ("--format=v7",), ("--format=ustar", "-b1"), ("--format=oldgnu", "--sparse"), ("--format=gnu", "--label=x", "-b7"),
    ("--format=gnu", "--listed-incremental=../snapshot"), ("--format=posix", "--sparse", "--label=x"), ("--xattrs",),
], ids=" ".join)  # fmt: skip
def test_an_archive_that_is_cut_off_anywhere_before_its_end_mark_is_refused(
    kernel_node: Node, tmp_path: Path, options: tuple[str, ...]
) -> None:
    source, reference = tmp_path / "source", tmp_path / "reference"
    for folder in (source, reference):
        folder.mkdir()
    for name, size in (("a", 0), ("b", 1), ("c", 3 * BLOCK)):
        (source / name).write_bytes(random.Random(name).randbytes(size))
    if options != KINDS[0]:
        (source / ("n" * 90)).mkdir()
        (source / ("n" * 90) / ("m" * 60)).write_bytes(b"a long name")
    (source / "link").symlink_to("c")
    with (source / "sparse").open("wb") as file:
        for at in range(0, 10 * 65_536, 65_536):
            file.seek(at)
            file.write(random.Random(at).randbytes(5 * BLOCK))
    os.link(source / "sparse", source / "hard")
    box, tar = kernel_node.sandbox(), packed_by_tar(source, *options)
    end = -(-len(tar.rstrip(b"\0")) // BLOCK) * BLOCK
    cuts = {*range(BLOCK, end, 7 * BLOCK), *(random.Random(1).randrange(BLOCK, end) for _ in range(20))}
    for at in sorted(cuts | {end - BLOCK, end - 1, end, end + BLOCK - 1}):
        with pytest.raises(InvalidRequestError, match="cut off"):
            hydrate(box, tar[:at])
        assert content(work(kernel_node, box)) == {}
    for whole in (tar, tar[: end + BLOCK], tar[: end + 2 * BLOCK + 1], tar + b"rest"):
        hydrate(box, whole)
        subprocess.run(["tar", "--extract", "--file=-"], input=whole, cwd=reference, check=True, capture_output=True)
        assert content(work(kernel_node, box)) == content(reference)


def test_a_name_that_looks_like_an_end_mark_is_not_mistaken_for_it(kernel_node: Node, tmp_path: Path) -> None:
    box, source = kernel_node.sandbox(), tmp_path / "source"
    (source / "block 1: ** Block of NULs **").mkdir(parents=True)
    (source / "** Block of NULs **").write_bytes(b"block 1: ** Block of NULs **\n" * 100)
    tar = packed_by_tar(source)
    with pytest.raises(InvalidRequestError, match="cut off"):
        hydrate(box, tar.rstrip(b"\0") + bytes(-len(tar.rstrip(b"\0")) % BLOCK))
    assert os.listdir(work(kernel_node, box)) == []


@pytest.mark.parametrize("end", ["restore", "stop"])
def test_a_restore_ends_a_running_hydrate(kernel_node: Node, tmp_path: Path, end: str) -> None:
    box, source = kernel_node.sandbox(), tmp_path / "source"
    source.mkdir()
    for number in range(20_000):
        (source / f"{number}").touch()
    handle = backup(box)
    transfer = box.open_hydrate()
    tar = packed_by_tar(source)
    for start in range(0, len(tar), 65_536):
        box.send(transfer, tar[start : start + 65_536])
    assert os.listdir(work(kernel_node, box)) == []
    unpacking = Background(lambda: box.commit(transfer))

    def is_stopped_half_way() -> bool:
        tars = [pid for pid, name in kernel_node.processes().items() if name == "tar"]
        for pid in tars:
            with suppress(ProcessLookupError):  # the one that looks through the archive ends before
                os.kill(pid, signal.SIGSTOP)
        has_begun = bool(tars) and len(os.listdir(work(kernel_node, box))) > 0
        for pid in tars if not has_begun else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        return has_begun

    assert wait_until(is_stopped_half_way)
    if end == "restore":
        restore(box, handle)
    else:
        box.abort(transfer)
    assert code_of(unpacking.error()) == "EXEC_STOPPED"
    assert len(os.listdir(work(kernel_node, box))) < 20_000
    assert not box.info().commands


def test_a_full_disk_is_named_whatever_a_member_is_called(kernel_node: Node, tmp_path: Path) -> None:
    box, source = kernel_node.sandbox(), tmp_path / "source"
    owner = kernel_node.owner(box)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", work(kernel_node, box)], check=True)
    try:
        source.mkdir()
        (source / ("n" * 250)).write_bytes(bytes(2_000_000))
        os.chown(work(kernel_node, box), owner, owner)
        with pytest.raises(NoSpaceError):
            hydrate(box, packed_by_tar(source))
        with pytest.raises(InvalidRequestError):
            hydrate(box, b"No space left on device".ljust(10_240, b"."))
    finally:
        unmounted(work(kernel_node, box))


def content(folder: Path) -> dict[str, bytes | str]:
    paths = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes() for path in paths
    }
