"""A seccomp filter for sandboxed commands, as the bytes that `bwrap --seccomp FD` takes.

It closes what namespaces and dropped capabilities leave open: system calls that reach large, rarely used
parts of the kernel, and terminal injection. A deny list, because a sandbox runs arbitrary programs; it adds
to the namespaces and does not replace them. Refused calls fail with EPERM; `clone3`, whose flags a filter
cannot see, fails with ENOSYS so that libc falls back to `clone`.

Source: seccomp(2), linux/bpf_common.h, linux/audit.h, the system call tables of x86-64 and arm64.
"""

from __future__ import annotations

import errno
import functools
import platform
import struct

_LD_W_ABS, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
_CLONE_NEW = 0x7E020000
"""CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET. (NEWTIME is clone3's and unshare's only.)"""
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C

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
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_IOCTL = (16, 29)


def _op(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    return struct.pack("<HBBI", code, jt, jf, k)


def _refuse(error: int) -> bytes:
    return _op(_RET, _ERRNO | error)


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
    parts += [_op(_JEQ, _CLONE3[column], 0, 1), _refuse(errno.ENOSYS)]
    parts += [
        _op(_JEQ, _CLONE[column], 0, 4),
        _op(_LD_W_ABS, _ARG0),
        _op(_JSET, _CLONE_NEW, 0, 1),
        _refuse(errno.EPERM),
        _op(_RET, _ALLOW),
    ]
    parts += [
        _op(_JEQ, _IOCTL[column], 0, 5),
        _op(_LD_W_ABS, _ARG1),
        _op(_JEQ, _TIOCSTI, 1, 0),
        _op(_JEQ, _TIOCLINUX, 0, 1),
        _refuse(errno.EPERM),
        _op(_RET, _ALLOW),
    ]
    parts.append(_op(_RET, _ALLOW))
    return b"".join(parts)
