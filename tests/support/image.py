"""Builds the Dockerfile's image step by step in folders, without Docker.

It interprets the few instructions that the file has. `FROM` a Debian makes a tree with debootstrap, of the smallest
variant, like Docker's own slim images. Steps run as root with Docker's capabilities, in a chroot with their own
namespaces and this machine's network. So that apt and pip find packages here, each step borrows this machine's
configuration of both, and its certificates. They are bound read-only over the image's, so that nothing of them stays
in the image, and nothing on the machine changes.

Unlike Docker, it has no layers and no cache; sizes are those of the last tree.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.container import Privileges

_RELEASES = {"debian:12-slim": "bookworm"}
_STEP_S = 1200
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LENT = ("/etc/resolv.conf", "/etc/hosts", "/etc/apt", "/etc/pip.conf", "/etc/xdg/pip")
_LEFT_BY_DEBOOTSTRAP = ("etc/resolv.conf", "etc/hostname")
"""Files of this machine that debootstrap copies into a tree."""
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_LENT_CERTIFICATES = "/run/lent/certificates.crt"
_LENT_VARIABLES = re.compile(r"PIP_|SSL_CERT_FILE$|.*_(proxy|PROXY)$")
_PLACES_OF_PACKAGES = re.compile(r"(?:find-links|index-url)='(.*)'")
"""Matches a line of `pip config list`."""
_NAMESPACES = (
    "setpriv", "--pdeathsig", "KILL", "--",
    "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--",
)  # fmt: skip
"""Mounts and processes end with the command, however it ends."""
_BIND_AND_RUN = """
mount -t proc proc "$0/proc"
mount --bind "$0/proc/sys" "$0/proc/sys"
mount -o remount,bind,ro "$0/proc/sys"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$0/dev/pts"
while [ "$1" != -- ]; do mount --bind "$1" "$2"; mount -o remount,bind,ro "$2"; shift 2; done
shift
exec "$@"
"""
"""A shell program. `$0` is the tree. Its arguments are pairs of paths to bind, then `--`, then the command.

Binds are read-only, because a step's packages write to such folders, and the sources belong to this machine.
"""


@dataclass(slots=True)
class Image:
    """A stage's tree, and the Dockerfile's settings for running it."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": _PATH})
    folder: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Disk space of the tree."""
        said = subprocess.run(["du", "-s", "-B1", self.root], check=True, capture_output=True, text=True)
        return int(said.stdout.split()[0])


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction of the Dockerfile; its arguments are not split."""

    name: str
    rest: str


def instructions(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile, without comments, and with continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        Instruction(name, rest.strip())
        for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)
    ]


def sent(context: Path) -> list[Path]:
    """The files that are sent to the build, after .dockerignore, relative to the context."""
    patterns = [line for line in (context / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    found = []
    for folder, _, names in os.walk(context):
        for name in names:
            path = Path(folder, name).relative_to(context)
            if not _ignored(path, patterns):
                found.append(path)
    return found


def _ignored(path: Path, patterns: list[str]) -> bool:
    ignored = False
    names = [str(path), *(str(parent) for parent in path.parents)][:-1]
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        deep = wanted.startswith("**/")
        if any(fnmatch.fnmatchcase(Path(name).name if deep else name, wanted.removeprefix("**/")) for name in names):
            ignored = not pattern.startswith("!")
    return ignored


def debian(folder: Path, release: str) -> Path:
    """Makes a Debian tree of the smallest variant."""
    argv = [*_NAMESPACES, "debootstrap", "--variant=minbase", release, str(folder)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=_STEP_S)
    for leftover in (folder / "var/cache/apt/archives").glob("*.deb"):
        leftover.unlink()
    for name in _LEFT_BY_DEBOOTSTRAP:
        (folder / name).unlink(missing_ok=True)
    return folder


def build(context: Path, scratch: Path) -> Image:
    """Builds the Dockerfile of `context`, with the trees below `scratch`. Returns the image of the last stage."""
    bases: dict[str, Path] = {}
    stages: dict[str, Image] = {}
    image: Image | None = None
    for number, step in enumerate(instructions((context / "Dockerfile").read_text())):
        if step.name == "FROM":
            name, _, alias = step.rest.partition(" AS ")
            if name not in bases:
                bases[name] = debian(scratch / f"base-{len(bases)}", _RELEASES[name])
            image = Image(scratch / f"stage-{number}")
            subprocess.run(["cp", "-a", bases[name], image.root], check=True)
            stages[alias] = image
        else:
            assert image is not None, "a Dockerfile begins with FROM"
            _run_step(step, image, stages, context)
    assert image is not None
    return image


def _run_step(step: Instruction, image: Image, stages: Mapping[str, Image], context: Path) -> None:
    match step.name:
        case "RUN":
            run(image, ["/bin/sh", "-c", step.rest])
        case "COPY":
            _copy(step.rest, image, stages, context)
        case "ENV":
            name, _, value = step.rest.partition("=")
            image.environment[name] = re.sub(r"\$(\w+)", lambda found: image.environment[found[1]], value)
        case "WORKDIR":
            image.folder = step.rest
            _inside(image, step.rest).mkdir(parents=True, exist_ok=True)
        case "ENTRYPOINT":
            image.entrypoint = json.loads(step.rest)
        case "CMD":
            image.command = json.loads(step.rest)
        case "VOLUME":
            image.volumes.append(step.rest)
            _inside(image, step.rest).mkdir(parents=True, exist_ok=True)
        case "EXPOSE":
            pass
        case _:
            raise NotImplementedError(f"{step.name} {step.rest}")


def _copy(words: str, image: Image, stages: Mapping[str, Image], context: Path) -> None:
    *options, source, target = shlex.split(words)
    to = _inside(image, target)
    if options:
        (option,) = options
        tree = stages[option.removeprefix("--from=")].root
        subprocess.run(["cp", "-a", "--no-target-directory", tree / source.lstrip("/"), to], check=True)
        return
    for path in sent(context):
        if path.is_relative_to(source):
            here = to / path.relative_to(source) if source == "." else to / path.name
            here.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(context / path, here)


def _inside(image: Image, path: str) -> Path:
    return image.root / os.path.join(image.folder, path).lstrip("/")


def run(image: Image, argv: list[str]) -> str:
    """Runs a command in the image, as a build step; returns its standard output. Fails if the command fails."""
    with _lent(image.root) as (binds, variables), image.root.with_suffix(".log").open("ab") as log:
        inside = [
            *Privileges().words(),
            "chroot",
            str(image.root),
            "/bin/sh",
            "-c",
            'cd "$0" && exec "$@"',
            image.folder,
            *argv,
        ]
        done = subprocess.run(
            [*_NAMESPACES, "/bin/sh", "-ec", _BIND_AND_RUN, str(image.root), *binds, "--", *inside],
            env={**variables, **image.environment, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            timeout=_STEP_S,
            check=False,
        )
    assert done.returncode == 0, f"{argv}: {done.stdout}{Path(log.name).read_text(errors='replace')[-4000:]}"
    return done.stdout


@contextmanager
def _lent(root: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """The files and variables that a step borrows: pairs of paths to bind, the second within the tree; and variables.

    Mount points made in the tree are removed afterwards. The certificates have a path of their own, since the image's
    belong to its package.
    """
    binds: list[str] = []
    with contextlib.ExitStack() as stack:
        for path in (path for path in map(Path, _LENT) if path.exists()):
            binds += [str(path.resolve()), stack.enter_context(_place(root, str(path), is_folder=path.is_dir()))]
        for folder in _local_indexes():
            binds += [folder, stack.enter_context(_place(root, folder, is_folder=True))]
        variables = {name: value for name, value in os.environ.items() if _LENT_VARIABLES.match(name)}
        if _CERTIFICATES.exists():
            binds += [str(_CERTIFICATES), stack.enter_context(_place(root, _LENT_CERTIFICATES, is_folder=False))]
            variables = {name: value for name, value in variables.items() if value != str(_CERTIFICATES)}
            variables |= dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE"), _LENT_CERTIFICATES)
        yield binds, variables


@contextmanager
def _place(root: Path, path: str, *, is_folder: bool) -> Iterator[str]:
    """A path in the tree to bind over. If it was not there before, it is removed afterwards."""
    target = root / path.lstrip("/")
    places = [place for place in (target, *target.parents) if place.is_relative_to(root)]
    assert not any(place.is_symlink() for place in places), f"{path} of the image may lead to this machine's"
    made = [place for place in places if not place.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    if made:
        target.mkdir() if is_folder else target.touch()
    try:
        yield str(target)
    finally:
        for place in made:
            with contextlib.suppress(OSError):  # a step has put a file beside it
                place.rmdir() if place.is_dir() else place.unlink()


def lent_paths() -> list[Path]:
    """The files of this machine that steps borrow."""
    found = [path for path in map(Path, _LENT) if path.exists()]
    return [*found, *(below for path in found if path.is_dir() for below in path.rglob("*"))]


def _local_indexes() -> list[str]:
    """Folders from which this machine's pip takes packages."""
    said = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True)
    words = " ".join(_PLACES_OF_PACKAGES.findall(said.stdout)).split()
    folders = [Path(word.removeprefix("file://")) for word in words]
    # An index refers to files beside it.
    roots = [folder.parent if folder.name == "simple" else folder for folder in folders]
    return sorted({str(root) for root in roots if root.is_absolute() and root.is_dir()})
