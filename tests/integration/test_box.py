"""The box: a command in it can do its work, and nothing else."""

from __future__ import annotations

import dataclasses
import errno
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from actors.node import process
from actors.node.bubblewrap import Bind, Box, Identity, boxed
from tests.support.sandboxes import UID

PYTHON = "/usr/bin/python3"
PROGRAMS = Path(__file__).parents[1] / "support" / "programs"


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "work"
    folder.mkdir()
    os.chown(folder, UID, UID)
    yield folder


@pytest.fixture
def box(work: Path) -> Box:
    return Box(uid=UID, hostname="a-box", binds=(Bind(work, "/workspace", writable=True),))


def inside(
    box: Box,
    *argv: str,
    identity: Identity = Identity.COMMAND,
    env: Mapping[str, str] | None = None,
    binds: tuple[Bind, ...] = (),
) -> process.Ended:
    with boxed(box, argv, identity=identity, cwd="/", env=env, binds=binds) as ready:
        return process.run(ready.argv, timeout_s=100, pass_fds=ready.fds)


def said(box: Box, script: str, **options: Identity) -> str:
    return inside(box, "sh", "-c", script, **options).stdout.decode().strip()  # type: ignore[arg-type]


def test_a_command_is_unprivileged_without_capabilities_or_new_privileges(box: Box, work: Path) -> None:
    status = said(box, "cat /proc/self/status; id -u; touch /workspace/made")
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    assert {fields[f"Cap{kind}"].strip() for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert fields["NoNewPrivs"].strip() == "1"
    assert fields["Seccomp"].strip() == "2"
    assert status.endswith("1000")
    assert (work / "made").stat().st_uid == UID


@pytest.mark.parametrize("path", ["/", "/usr", "/etc", "/usr/bin", "/sandbox"])
def test_everything_but_the_writable_roots_is_read_only(box: Box, path: str) -> None:
    assert inside(box, "sh", "-c", f"touch {path}/new").status != 0


def test_a_command_sees_no_file_process_or_name_of_the_node(box: Box, tmp_path: Path) -> None:
    listing = said(box, "ls -a / | tr '\\n' ' '")
    assert not {"root", "opt", "srv", "sandbox", "mnt"} & set(listing.split())
    assert said(box, f"ls {tmp_path} 2>&1").startswith("ls: cannot access")
    assert set(said(box, "echo /proc/[0-9]*").split()) <= {f"/proc/{pid}" for pid in range(1, 8)}
    assert str(os.getpid()) not in said(box, "ls /proc").split()
    assert said(box, "cat /proc/1/environ 2>/dev/null | tr '\\0' ' '").find("PYTEST") == -1
    assert said(box, "hostname") == "a-box"
    assert str(tmp_path) not in said(box, "cat /proc/*/cmdline | tr '\\0' ' '")


def test_a_command_inherits_neither_environment_nor_descriptors(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "secret")
    secret = os.open("/etc/shadow", os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        found = inside(box, "sh", "-c", "env; ls /proc/self/fd", env={"ADDED": "yes"}).stdout.decode()
    finally:
        os.close(secret)
    assert "SECRET" not in found
    assert "ADDED=yes" in found
    lines = found.split()
    assert [fd for fd in lines if fd.isdigit() and int(fd) > 3] == []


def test_there_is_no_network_unless_it_was_asked_for(box: Box) -> None:
    assert said(box, "ls /sys/class/net 2>/dev/null; tail -n +3 /proc/net/dev | cut -d: -f1").split() == ["lo"]


FORBIDDEN = {
    "mount": "libc.mount(b'none', b'/workspace', b'tmpfs', 0, None)",
    "umount": "libc.umount2(b'/workspace', 0)",
    "a user namespace by unshare": "libc.unshare(0x10000000)",
    "a user namespace by clone": "libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)",
    "setns": "libc.setns(0, 0)",
    "keyctl": "libc.syscall(250, 0, -3, 0)",
    "add_key": "libc.syscall(248, b'user', b'x', b'y', 1, -3)",
    "ptrace": "libc.ptrace(16, 1, 0, 0)",
    "bpf": "libc.syscall(321, 0, 0, 0)",
    "io_uring": "libc.syscall(425, 1, 0)",
    "perf": "libc.syscall(298, 0, 0, 0, 0, 0)",
    "userfaultfd": "libc.syscall(323, 0)",
    "open_by_handle_at": "libc.syscall(304, 0, 0, 0)",
    "chroot": "libc.chroot(b'/workspace')",
    "TIOCSTI": "libc.ioctl(0, 0x5412, b'x')",
    "a device": "libc.mknod(b'/workspace/dev', 0o020666, 0x0103)",
    "a whiteout": "libc.mknod(b'/workspace/gone', 0o020000, 0)",
    "a block device": "libc.mknod(b'/workspace/dev', 0o060666, 0x0801)",
    "a whiteout by mknodat": "libc.syscall(259, -100, b'/workspace/gone', 0o020000, 0)",
    "another uid": "libc.setuid(0)",
    "a file of another": "libc.chown(b'/workspace', 0, 0)",
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="system calls by number")
@pytest.mark.parametrize("what", FORBIDDEN)
@pytest.mark.parametrize("identity", [Identity.COMMAND, Identity.READER])
def test_a_command_cannot_reach_the_kernels_dangerous_parts(box: Box, what: str, identity: Identity) -> None:
    if identity is Identity.READER and what in ("another uid", "a file of another"):
        return  # the reader is uid 0 of its own namespace already, in which no other user is mapped
    code = (
        f"import ctypes; libc = ctypes.CDLL(None, use_errno=True); r = {FORBIDDEN[what]}; print(r, ctypes.get_errno())"
    )
    ended = inside(box, PYTHON, "-c", code, identity=identity)
    assert ended.status == 0, ended
    result, error = ended.stdout.decode().split()
    assert result == "-1"
    assert error in (("1", "22") if what in ("another uid", "a file of another") else ("1",))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="system calls by number")
def test_a_command_cannot_use_up_the_machines_asynchronous_io_contexts(box: Box) -> None:
    code = "import ctypes; libc = ctypes.CDLL(None, use_errno=True); context = ctypes.c_void_p(); "
    code += "print(libc.syscall(206, 64, ctypes.byref(context)), ctypes.get_errno())"
    assert inside(box, PYTHON, "-c", code).stdout.split() == [b"-1", str(errno.ENOSYS).encode()]


TERMINALS = (PROGRAMS / "terminals.py").read_text()


def test_a_command_has_its_own_limited_number_of_pseudo_terminals(box: Box) -> None:
    assert inside(box, PYTHON, "-c", TERMINALS, "64").stdout == b"/dev/pts/0 to the other side 1000\n"
    assert b"No space left" in inside(box, PYTHON, "-c", TERMINALS, "65").stderr
    assert said(box, "script -qec tty /dev/null") == "/dev/pts/0"


FAMILIES = (PROGRAMS / "socket_families.py").read_text()


@pytest.mark.parametrize("network", [False, True])
def test_only_sockets_of_four_families_can_be_opened(box: Box, network: bool) -> None:
    ended = inside(dataclasses.replace(box, network=network), PYTHON, "-c", FAMILIES)
    assert set(map(int, ended.stdout.split())) == {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}


def test_sockets_that_programs_need_work(box: Box) -> None:
    code = (
        "import socket; a, b = socket.socketpair(); a.send(b'x'); b.recv(1);"
        "s = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname());"
        "print(socket.if_nameindex(), socket.getaddrinfo('localhost', 1)[0][4])"
    )
    ended = inside(box, PYTHON, "-c", code)
    assert ended.status == 0 and b"lo" in ended.stdout, ended


def test_a_rename_cannot_leave_a_whiteout(box: Box, work: Path) -> None:
    code = "import ctypes; libc = ctypes.CDLL(None, use_errno=True); open('/workspace/a', 'w');"
    code += "print(libc.renameat2(-100, b'/workspace/a', -100, b'/workspace/b', 4), ctypes.get_errno());"
    code += "print(libc.renameat2(-100, b'/workspace/a', -100, b'/workspace/b', 1))"
    assert inside(box, PYTHON, "-c", code).stdout.decode().split() == ["-1", "22", "0"]
    assert os.listdir(work) == ["b"]


def test_fifos_and_sockets_can_be_made(box: Box) -> None:
    code = "import os, socket, stat; os.mkfifo('f'); os.mknod('g', 0o600); os.mknod('h', 0o600 | stat.S_IFSOCK);"
    code += "socket.socket(socket.AF_UNIX).bind('s'); print(sorted(os.listdir()))"
    ended = inside(box, "sh", "-c", f'cd /workspace && {PYTHON} -c "{code}"')
    assert ended.stdout.decode().strip() == "['f', 'g', 'h', 's']", ended


def test_clone3_falls_back_so_that_threads_work(box: Box) -> None:
    code = "import threading, os; t = threading.Thread(target=print, args=('up',)); t.start(); t.join(); os.fork()"
    assert inside(box, PYTHON, "-c", code).stdout.startswith(b"up")


def test_a_setuid_program_gains_no_privileges(box: Box, work: Path) -> None:
    subprocess.run(["cp", "/usr/bin/id", work / "id"], check=True)
    (work / "id").chmod(0o6755)
    assert said(box, "/workspace/id -u") == "1000"


def test_a_reader_reads_files_of_any_mode_and_nothing_of_other_users(box: Box, work: Path) -> None:
    (work / "closed").write_text("mine")
    (work / "foreign").write_text("root's")
    os.chown(work / "closed", UID, UID)
    for name in ("closed", "foreign"):
        (work / name).chmod(0)
    assert inside(box, "cat", "/workspace/closed").status != 0
    assert said(box, "cat /workspace/closed", identity=Identity.READER) == "mine"
    assert inside(box, "cat", "/workspace/foreign", identity=Identity.READER).status != 0
    assert inside(box, "cat", "/etc/shadow", identity=Identity.READER).status != 0


def test_a_keeper_sees_its_binds_and_nothing_else(work: Path, tmp_path: Path) -> None:
    empty = Box(uid=UID, hostname="keeper", binds=())
    binds = (Bind(work, "/parent", writable=True),)
    ended = inside(empty, "sh", "-c", "ls -a /; ls /proc | grep -c '^[0-9]'; tail -n +3 /proc/net/dev; id -u",
                   identity=Identity.KEEPER, binds=binds)  # fmt: skip
    out = ended.stdout.decode().split()
    assert not {"root", "etc", "home", "var", "opt", "work"} & set(out)
    assert [word for word in out if word.endswith(":")] == ["lo:"]
    assert out[-1] == "0"
    assert inside(empty, "mount", "-t", "tmpfs", "none", "/parent", identity=Identity.KEEPER, binds=binds).status != 0
    assert inside(empty, "touch", "/usr/new", identity=Identity.KEEPER, binds=binds).status != 0
    assert inside(empty, "chown", "5:5", "/parent", identity=Identity.KEEPER, binds=binds).status == 0


def test_the_nodes_process_list_shows_nothing_of_a_box(box: Box, tmp_path: Path) -> None:
    with boxed(box, ["sleep", "30"], cwd="/", env={"TOKEN": "hidden-value"}) as ready:
        assert "hidden-value" not in " ".join(ready.argv)
        assert str(tmp_path) not in " ".join(ready.argv)
