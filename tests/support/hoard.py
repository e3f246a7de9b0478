"""Takes as much of one resource as a sandbox's command can get. Runs in the sandbox, as `hoard.py KIND [AT_MOST]`.

Prints `held`, the number, and why it got no more. Without AT_MOST it then keeps them until it is killed. It needs the
standard library only.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

NEVER = sys.maxsize
PIPE_BYTES = 65_536
FOLDER = "/workspace/many"
_KEPT: list[object] = []
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBRT = ctypes.CDLL("librt.so.1", use_errno=True)


def _done(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def files() -> None:
    """Takes one more open file."""
    _KEPT.append(os.open("/dev/null", os.O_RDONLY))


def inotify_instances() -> None:
    """Takes one more inotify instance."""
    _KEPT.append(_done(_LIBC.inotify_init1(os.O_CLOEXEC)))


def _watches() -> Iterator[None]:
    names = [entry.path.encode() for entry in os.scandir(FOLDER)]
    while True:
        try:
            instance = _done(_LIBC.inotify_init1(os.O_CLOEXEC))
        except OSError as e:
            raise OSError(e.errno, f"{e.strerror} (no further instance)") from None
        for name in names:
            _done(_LIBC.inotify_add_watch(instance, name, 0x2))
            yield


class _Sigevent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_int * 12),
    )


def timers() -> None:
    """Takes one more POSIX timer, which counts as a pending signal."""
    event = _Sigevent(None, signal.SIGUSR1, 0)
    timer = ctypes.c_void_p()
    _done(_LIBC.timer_create(1, ctypes.byref(event), ctypes.byref(timer)))


def queued_signals() -> None:
    """Takes one more queued signal, which stays pending."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
    _done(_LIBC.sigqueue(os.getpid(), signal.SIGRTMIN, ctypes.c_void_p()))


def message_queues() -> None:
    """Takes one more POSIX message queue of the default size."""
    _done(_LIBRT.mq_open(f"/q{len(_KEPT)}".encode(), os.O_CREAT | os.O_RDWR, 0o600, None))
    _KEPT.append(None)


def locked_memory() -> None:
    """Takes one more MiB of locked shared memory."""
    segment = _done(_LIBC.shmget(0, 2**20, 0o1600))
    try:
        _done(_LIBC.shmctl(segment, 11, None))
    except OSError:
        _LIBC.shmctl(segment, 0, None)
        raise


def pipes() -> None:
    """Takes one more pipe of the default size."""
    reading, writing = os.pipe()
    _KEPT.append((reading, writing))
    if (room := fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)) < PIPE_BYTES:
        raise OSError(0, f"a pipe of {room} bytes")


def _files_in_flight() -> Iterator[None]:
    with open("/dev/null") as file:
        while True:
            ours, theirs = socket.socketpair()
            _KEPT.extend((ours, theirs))
            ours.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    socket.send_fds(ours, [b"-"], [file.fileno()])
                    yield


def terminals() -> None:
    """Takes one more pseudo-terminal."""
    _KEPT.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))


def asynchronous_io() -> None:
    """Takes a context for 64 more asynchronous I/O requests."""
    _done(_LIBC.syscall(206, 64, ctypes.byref(ctypes.c_void_p())))


def _network_buffers() -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listening:
        while True:
            ours = socket.create_connection(listening.getsockname())
            theirs, _ = listening.accept()
            _KEPT.extend((ours, theirs))
            ours.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    for _ in range(ours.send(bytes(2**20)) // 2**16):
                        yield


def _processes() -> Iterator[None]:
    """Takes processes that each use a processor fully, once no more can be forked."""
    reading, writing = os.pipe()
    _KEPT.append(writing)
    while True:
        if os.fork() == 0:
            os.close(writing)
            os.read(reading, 1)
            while True:
                pass
        yield


def _memory() -> Iterator[None]:
    while True:
        page = mmap.mmap(-1, 2**20)
        page.write(os.urandom(1) * 2**20)
        _KEPT.append(page)
        yield


def _iterated(taken: Iterator[None]) -> Callable[[], None]:
    return lambda: next(taken)


KINDS: dict[str, Callable[[], None]] = {
    "files": files,
    "inotify-instances": inotify_instances,
    "inotify-watches": _iterated(_watches()),
    "timers": timers,
    "queued-signals": queued_signals,
    "message-queues": message_queues,
    "locked-memory": locked_memory,
    "pipes": pipes,
    "files-in-flight": _iterated(_files_in_flight()),
    "terminals": terminals,
    "asynchronous-io": asynchronous_io,
    "network-buffers": _iterated(_network_buffers()),
    "processes": _iterated(_processes()),
    "memory": _iterated(_memory()),
}


def hoard(kind: str, at_most: int) -> tuple[int, str]:
    """Takes as many as it can get, up to `at_most`; returns the number, and why it got no more."""
    held = 0
    try:
        while held < at_most:
            KINDS[kind]()
            held += 1
    except OSError as e:
        return held, f"{e.errno} {e.strerror}"
    return held, "enough"


def remake(folder: str, names: int) -> None:
    """Makes a directory with this many empty files."""
    os.makedirs(folder, exist_ok=True)
    for number in range(names):
        os.close(os.open(f"{folder}/{number}", os.O_CREAT, 0o600))


def use_up_memory_again_and_again() -> None:
    """Forks children that each take memory until the kernel kills them, again and again."""
    while True:
        with suppress(OSError):  # no more processes
            child = os.fork()
            if child == 0:
                hoard("memory", NEVER)
                os._exit(0)
            os.waitpid(child, 0)
            continue
        time.sleep(0.1)


def main(kind: str, at_most: int = NEVER) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if kind == "names":
        remake(FOLDER, at_most)
        print("held", at_most, flush=True)
        return
    if kind == "memory":
        print("held all memory", flush=True)
        use_up_memory_again_and_again()
    held, why = hoard(kind, at_most)
    print("held", held, why, flush=True)
    if kind == "processes":
        os.close(_KEPT.pop())  # type: ignore[arg-type]
    if at_most == NEVER:
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
