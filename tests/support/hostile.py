"""Values for every part of a request: some are valid, some cannot be served, and some are meaningless."""

from __future__ import annotations

import io
import random
import tarfile
from typing import Any

TREE = r"""
mkdir -p d; echo text > d/file; echo text > f; ln -sfn loop loop; ln -sfn /etc/passwd out; ln -sfn missing dangling
[ -p fifo ] || mkfifo fifo; mkdir -p -m 0 closed
printf '#!/none\n' > script; : > empty; head -c 99 /dev/urandom > binary; chmod +x script empty binary
"""
"""A shell script that makes the files for the paths below."""

PATHS = (
    "workspace/f",
    "workspace/d",
    "workspace/d/file",
    "workspace/new",
    "workspace/deep/er/new",
    "workspace/f/g",
    "",
    "workspace/loop",
    "workspace/out",
    "workspace/dangling",
    "workspace/fifo",
    "workspace/closed/x",
    "workspace",
    "etc/passwd",
    "proc/self/environ",
    "workspace/d/../f",
    "workspace/%2e%2e/etc",
    "workspace/%00",
    "workspace/%ff",
    "workspace/%zz",
    "workspace/%0a",
    "workspace//f",
    "workspace/.",
    "tmp/..",
    "workspace/" + "x" * 300,
    "workspace/" + "x/" * 2100,
    "workspace/" + "y/" * 500,
    "workspace/.holdfast-0123456789abcdef",
    "app/%F0%9F",
)
QUERIES = (
    "limit=1",
    "limit=1000",
    "path=/workspace",
    "path=/tmp",
    "path=/workspace/f",
    "path=/workspace/loop",
    "path=/etc",
    "path=%2fworkspace%2f%ff",
    "path=",
    "excludes=d",
    "excludes=*.py,!d",
    "excludes=%5bz-a%5d",
    "excludes=%00",
    "cursor=x",
    "unknown=1",
    "limit=1&limit=2",
    "&&&",
    "=",
    "%",
    "limit",
    "limit=1;path=/tmp",
)
DIRECTORIES = (
    "/workspace",
    "/workspace/d",
    "/workspace/d/.",
    "/tmp",
    "/app",
    "/home",
    "/workspace/f",
    "/workspace/loop",
    "/workspace/dangling",
    "/workspace/fifo",
    "/workspace/closed",
    "/workspace/out",
    "/workspace/missing",
    "/",
    "/usr",
    "/etc/passwd",
    "/proc/self/root",
    "/workspace/..",
    "/" + "x" * 300,
    "/" + "x/" * 2000,
    "/tmp/" + "x/" * 2100,
    "d",
    "",
    "/workspace/\0",
    "/workspace/\udcff",
)
COMMANDS: tuple[list[str], ...] = (
    ["true"],
    ["echo", "a"],
    ["sh", "-c", "exit 3"],
    ["sh", "-c", "kill -9 $$"],
    ["sh", "-c", "echo b >&2; pwd"],
    ["no-such-program"],
    ["/workspace/d"],
    ["/workspace/f"],
    ["d"],
    ["./f"],
    ["/workspace/script"],
    ["../usr/bin/true"],
    ["/workspace/empty"],
    ["/workspace/binary"],
    ["/workspace/loop"],
    ["/workspace/fifo"],
    ["kill", "-9", "1"],
    ["kill", "-9", "-1"],
    ["true", "\udcff"],
    ["\udcff"],
    ["true", "x" * 131_071],
    ["true", "x" * 131_072],
    ["true", *["x" * 100_000] * 10],
    [""],
    ["true", ""],
    ["a\0"],
    ["true", *["y"] * 4095],
    ["true", *["y"] * 4096],
    ["x" * 300],
    ["x" * 5000],
    ["x/" * 2500],
    ["-c"],
    ["a=b"],
    ["--help"],
    ["/proc/self/exe"],
    ["/proc/self/fd/1"],
    ["sh", "-c", "head -c 300000 /dev/zero"],
    ["sh", "-c", "exec >&- 2>&-; sleep 0.1"],
    [],
    ["sh", "-c", "ulimit -v 1; true"],
)
VARIABLES: tuple[dict[str, Any], ...] = (
    {},
    {"A": "b"},
    {"PATH": ""},
    {"PATH": ":"},
    {"PATH": "/workspace/closed"},
    {"PATH": "\udcff"},
    {"PATH": "/workspace/loop"},
    {"PATH": "x" * 131_000},
    {"": "b"},
    {"A=": "b"},
    {"A\0": "b"},
    {"A": "b\0"},
    {"A": None},
    {"A": 1},
    {"HOME": ""},
    {"LD_PRELOAD": "/none.so"},
    {"IFS": "t"},
    {"A": "x" * 131_069},
    {"A": "x" * 131_071},
    {"BASH_ENV": "/workspace/f"},
    {f"V{n}": "" for n in range(1024)},
    {f"V{n}": "" for n in range(1025)},
    {f"V{n}": "x" * 100_000 for n in range(10)},
)
TIMES_MS = (1, 1000, 60_000, 10**12, 0, -1, 1.5, 10**309, "1", True)
HEADERS = (
    ("Content-Type", "text/plain"),
    ("Content-Type", "application/json; charset=latin-1"),
    ("Accept", "text/xml"),
    ("Content-Type", "\xff"),
    ("Content-Type", "multipart/form-data"),
    ("Idempotency-Key", "key"),
    ("Host", "another"),
    ("Idempotency-Key", ""),
    ("Idempotency-Key", "\xe9"),
    ("Idempotency-Key", "k" * 5000),
    ("Session-Id", "1"),
    ("Content-Encoding", "gzip"),
    ("Content-Encoding", "identity"),
    ("Content-Range", "bytes 1-2/3"),
    ("Range", "bytes=9-1"),
    ("If-Match", "*"),
    ("Expect", "100-continue"),
    ("Connection", "close"),
    ("X-Request-Id", "\xff\xfe"),
    ("X-Request-Id", "x" * 5000),
    ("Cookie", "\x80"),
    ("Upgrade", "websocket"),
    ("Authorization", "Bearer other"),
    ("X-Http-Method-Override", "DELETE"),
    ("X-Forwarded-For", "::1, \xff"),
)
BACKUP_OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"gitignore": True},
    {"excludes": ["*", "!f"]},
    {"name": "x" * 256},
    {"ttl": 1e-300},
    {"compression": {"format": "gzip", "level": 9}},
    {"compression": {"format": "lz4"}},
)


def archive(draw: random.Random) -> bytes:
    """A tar archive with odd entries, whole, truncated or damaged; or bytes that are no archive."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name in draw.sample(["a", "b/c", "../up", "/etc/x", "f", "d", "loop/x", "closed/x", "é" * 90], 3):
            entry = tarfile.TarInfo(name)
            entry.size, entry.type = draw.choice([(5, tarfile.REGTYPE), (0, tarfile.DIRTYPE), (0, tarfile.FIFOTYPE)])
            entry.mtime, entry.mode = draw.choice([0, -1, 2**33]), draw.choice([0, 0o644, 0o4755])
            tar.addfile(entry, io.BytesIO(b"bytes"))
    whole = bytearray(made.getvalue())
    match draw.choice(["whole", "cut", "damaged", "none"]):
        case "cut":
            return bytes(whole[: draw.randrange(len(whole))])
        case "damaged":
            for _ in range(5):
                whole[draw.randrange(1500)] = draw.randrange(256)
        case "none":
            return draw.randbytes(draw.choice([0, 1, 511, 512, 5000]))
    return bytes(whole)
