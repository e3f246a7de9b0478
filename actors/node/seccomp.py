"""The seccomp filter for sandboxed commands, as the bytes that `bwrap --seccomp FD` takes.

It closes what namespaces and dropped capabilities leave open: system calls that reach large, rarely used
parts of the kernel, and terminal injection. It is a deny list, because a sandbox runs arbitrary programs; it adds
to the namespaces and does not replace them. Refused calls fail with EPERM. Two fail with ENOSYS, so that programs
fall back to others: `clone3`, because a filter cannot see its flags (libc then calls `clone`), and `io_setup`, because
one process could use up the machine's limit of requests (fs.aio-max-nr).

The families of sockets are an allow list. Programs need few of them. Each other family adds kernel code that a command
can reach, and some escape the network namespace (AF_VSOCK reaches the host of a virtual machine). They fail with
EAFNOSUPPORT, as on a kernel without them.

Two requests of ioctl are refused because they exchange blocks of two files, and so change a file's content, but leave
its times as they were: a backup would miss the change (`actors.node.fingerprints`). Only defragmenters need them.

In the box's user namespace the kernel lets a command make only one device: 0:0, the overlay's whiteout, which the next
restore would take for a deleted file. Only mknod and a flag of renameat2 make it. So mknod of any device fails with
EPERM, and the flag with EINVAL.

Source: seccomp(2), linux/bpf_common.h, linux/audit.h, the system call tables of x86-64 and arm64; do_mknodat and
vfs_mknod in fs/namei.c; address_families(7); io_setup(2); ext4_move_extents and xfs_swap_extents, and our experiment on
ext4 of Linux 6.18.
"""

from __future__ import annotations

import errno
import functools
import platform
import socket
import struct

_LD_W_ABS, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCH = 0, 4
_ARG0, _ARG1, _ARG2, _ARG4 = 16, 24, 32, 48
"""The lower halves of arguments: every argument that the filter checks is 32 bits wide."""

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
_CLONE_NEW = 0x7E020000
"""CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET. (NEWTIME is clone3's and unshare's only.)"""
_REFUSED_REQUESTS = {
    "TIOCSTI": 0x5412,
    "TIOCLINUX": 0x541C,
    "EXT4_IOC_MOVE_EXT": 0xC028660F,
    "XFS_IOC_SWAPEXT": 0xC0C0586D,
}

_DENIED = {
    # name: (x86_64, aarch64)
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "quotactl": (179, 60),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "fanotify_init": (300, 262),
}
_MISSING = {
    "clone3": (435, 435),
    "io_setup": (206, 0),
}
"""Refused with ENOSYS, as on a kernel without them."""
_CLONE = (56, 220)
_IOCTL = (16, 29)
_SOCKET = (41, 198)
_SOCKETPAIR = (53, 199)
_MKNOD = (133, None)
_MKNODAT = (259, 33)
_RENAMEAT2 = (316, 276)

_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
"""AF_NETLINK: libc reads the interfaces and addresses through it."""
_DEVICE_BIT, _NO_DEVICE_BIT = 0x2000, 0x8000
"""Of the file types in a mode, only S_IFCHR and S_IFBLK have the first bit and not the second. Source: inode(7)."""
_RENAME_WHITEOUT = 4


def _op(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("<HBBI", code, jt, jf, k)


def _refuse(error: int) -> bytes:
    return _op(_RET, _ERRNO | error)


_ALLOWED = _op(_RET, _ALLOW)


@functools.cache
def program(machine: str | None = None) -> bytes:
    """The filter for this machine (or `machine`, as `platform.machine()` names it), as a sock_filter array.

    Raises:
        ValueError: no filter is known for the architecture.
    """
    machine = machine or platform.machine()
    if machine not in _AUDIT_ARCH:
        raise ValueError(f"no seccomp filter is known for {machine}")
    column = list(_AUDIT_ARCH).index(machine)
    parts = [
        _op(_LD_W_ABS, _ARCH),
        _op(_JEQ, _AUDIT_ARCH[machine], 1, 0),
        _refuse(errno.ENOSYS),
        _op(_LD_W_ABS, _NUMBER),
    ]
    if machine == "x86_64":
        parts += [_op(_JGE, _X32, 0, 1), _refuse(errno.ENOSYS)]
    for numbers in _DENIED.values():
        parts += [_op(_JEQ, numbers[column], 0, 1), _refuse(errno.EPERM)]
    for numbers in _MISSING.values():
        parts += [_op(_JEQ, numbers[column], 0, 1), _refuse(errno.ENOSYS)]
    parts += _when(
        _CLONE[column], [_op(_LD_W_ABS, _ARG0), _op(_JSET, _CLONE_NEW, 0, 1), _refuse(errno.EPERM), _ALLOWED]
    )
    parts += _when(_IOCTL[column], _of_a_harmless_request())
    for numbers in (_SOCKET, _SOCKETPAIR):
        parts += _when(numbers[column], _of_a_family())
    for each, mode in ((_MKNOD, _ARG1), (_MKNODAT, _ARG2)):
        parts += _when(each[column], _of_no_device(mode))
    parts += _when(
        _RENAMEAT2[column],
        [_op(_LD_W_ABS, _ARG4), _op(_JSET, _RENAME_WHITEOUT, 0, 1), _refuse(errno.EINVAL), _ALLOWED],
    )
    parts.append(_ALLOWED)
    return b"".join(parts)


def _when(number: int | None, block: list[bytes]) -> list[bytes]:
    """The block for one system call, which ends with a verdict. Empty if the machine has no such call (None)."""
    return [] if number is None else [_op(_JEQ, number, 0, len(block)), *block]


def _of_a_harmless_request() -> list[bytes]:
    to_refused = range(len(_REFUSED_REQUESTS), 0, -1)
    tests = [_op(_JEQ, k, jump, 0) for k, jump in zip(_REFUSED_REQUESTS.values(), to_refused, strict=True)]
    return [_op(_LD_W_ABS, _ARG1), *tests, _ALLOWED, _refuse(errno.EPERM)]


def _of_a_family() -> list[bytes]:
    to_allowed = range(len(_FAMILIES), 0, -1)
    tests = [_op(_JEQ, family, jump, 0) for family, jump in zip(_FAMILIES, to_allowed, strict=True)]
    return [_op(_LD_W_ABS, _ARG0), *tests, _refuse(errno.EAFNOSUPPORT), _ALLOWED]


def _of_no_device(mode: int) -> list[bytes]:
    tests = [_op(_JSET, _DEVICE_BIT, 0, 2), _op(_JSET, _NO_DEVICE_BIT, 1, 0)]
    return [_op(_LD_W_ABS, mode), *tests, _refuse(errno.EPERM), _ALLOWED]
