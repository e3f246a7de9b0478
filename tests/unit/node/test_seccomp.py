"""The seccomp filter, run by an interpreter of the few BPF instructions that it uses."""

from __future__ import annotations

import errno
import struct

import pytest

from actors.node import seccomp

ALLOW, REFUSE, NOSYS = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
NO_FAMILY, INVALID = 0x00050000 | errno.EAFNOSUPPORT, 0x00050000 | errno.EINVAL
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED = {"x86_64": {"read": 0, "execve": 59, "openat": 257, "fork": 57, "futex": 202, "statx": 332},
           "aarch64": {"read": 63, "execve": 221, "openat": 56, "futex": 98, "statx": 291}}  # fmt: skip


def verdict(program: bytes, *, arch: int, number: int, args: tuple[int, ...] = ()) -> int:
    data = struct.pack("<IIQ6Q", number, arch, 0, *(args + (0,) * (6 - len(args))))
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    at, accumulator = 0, 0
    while True:
        operation, jt, jf, k = code[at]
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x15:
                at += jt if accumulator == k else jf
            case 0x35:
                at += jt if accumulator >= k else jf
            case 0x45:
                at += jt if accumulator & k else jf
            case 0x06:
                return int(k)
            case _:
                raise AssertionError(f"an instruction that the filter should not need: {operation:#x}")


@pytest.fixture(params=list(ARCH))
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_denied_calls_are_refused_and_ordinary_ones_allowed(machine: str) -> None:
    program, column = seccomp.program(machine), list(ARCH).index(machine)
    for name, numbers in seccomp._DENIED.items():
        assert verdict(program, arch=ARCH[machine], number=numbers[column]) == REFUSE, name
    for name, number in ALLOWED[machine].items():
        assert verdict(program, arch=ARCH[machine], number=number) == ALLOW, name


@pytest.mark.parametrize(
    "flag", [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000]
)  # NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
def test_clone_makes_processes_and_threads_but_no_namespaces(machine: str, flag: int) -> None:
    program, number = seccomp.program(machine), seccomp._CLONE[list(ARCH).index(machine)]
    for usual in (17, 0x3D0F00, 0x1200011):
        assert verdict(program, arch=ARCH[machine], number=number, args=(usual,)) == ALLOW
        assert verdict(program, arch=ARCH[machine], number=number, args=(usual | flag,)) == REFUSE


@pytest.mark.parametrize("call", ["clone3", "io_setup"])
def test_optional_calls_answer_that_they_do_not_exist(machine: str, call: str) -> None:
    number = {"clone3": {"x86_64": 435, "aarch64": 435}, "io_setup": {"x86_64": 206, "aarch64": 0}}[call][machine]
    assert verdict(seccomp.program(machine), arch=ARCH[machine], number=number) == NOSYS


@pytest.mark.parametrize(
    ("request_", "expected"),
    [(0x5412, REFUSE), (0x541C, REFUSE), (0xC028660F, REFUSE), (0xC0C0586D, REFUSE), (0x5401, ALLOW), (0, ALLOW)],
)
def test_ioctl_cannot_type_into_a_terminal_or_change_files_without_a_trace(
    machine: str, request_: int, expected: int
) -> None:
    program, number = seccomp.program(machine), seccomp._IOCTL[list(ARCH).index(machine)]
    for high in (0, 1 << 32):  # the kernel looks at the lower half only
        assert verdict(program, arch=ARCH[machine], number=number, args=(0, request_ | high)) == expected


def test_calls_of_another_architecture_answer_that_they_do_not_exist(machine: str) -> None:
    program = seccomp.program(machine)
    assert verdict(program, arch=0x40000003, number=0) == NOSYS
    if machine == "x86_64":
        assert verdict(program, arch=ARCH[machine], number=0x40000000 | 165) == NOSYS


def test_an_unknown_machine_is_an_error() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        seccomp.program("riscv64")


@pytest.mark.parametrize("call", ["_SOCKET", "_SOCKETPAIR"])
def test_only_four_socket_families_are_allowed(machine: str, call: str) -> None:
    program, number = seccomp.program(machine), getattr(seccomp, call)[list(ARCH).index(machine)]
    for family in (*range(256), 0x7FFFFFFF, 0xFFFFFFFF):
        expected = ALLOW if family in (1, 2, 10, 16) else NO_FAMILY
        for high in (0, 1 << 32):  # the kernel looks at the lower half only
            assert verdict(program, arch=ARCH[machine], number=number, args=(family | high, 1)) == expected, family


KINDS = {"fifo": (0o010000, ALLOW), "character device": (0o020000, REFUSE), "directory": (0o040000, ALLOW),
         "block device": (0o060000, REFUSE), "file": (0o100000, ALLOW), "link": (0o120000, ALLOW),
         "socket": (0o140000, ALLOW), "no type": (0, ALLOW)}  # fmt: skip


@pytest.mark.parametrize(("kind", "expected"), KINDS.values(), ids=KINDS.keys())
def test_devices_cannot_be_made(machine: str, kind: int, expected: int) -> None:
    program, column = seccomp.program(machine), list(ARCH).index(machine)
    for numbers, before in ((seccomp._MKNOD, 1), (seccomp._MKNODAT, 2)):
        if (number := numbers[column]) is not None:
            for permissions in (0, 0o777, 0o7000):
                args = (*(0,) * before, kind | permissions)
                assert verdict(program, arch=ARCH[machine], number=number, args=args) == expected


@pytest.mark.parametrize(("flags", "expected"), [(0, ALLOW), (1, ALLOW), (2, ALLOW), (4, INVALID), (5, INVALID)])
def test_a_rename_that_leaves_a_whiteout_is_refused(machine: str, flags: int, expected: int) -> None:
    program, number = seccomp.program(machine), seccomp._RENAMEAT2[list(ARCH).index(machine)]
    assert verdict(program, arch=ARCH[machine], number=number, args=(0, 0, 0, 0, flags)) == expected
