"""`holdfast cp` and `holdfast ls`."""

from __future__ import annotations

import os
import posixpath
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from actors.errors import BackupNotFoundError, HoldfastError, InvalidRequestError
from actors.models import FileKind
from gateway.cli.arguments import DEFAULT_DIR, Remote, is_uuid, remote
from gateway.cli.contents import list_backup, mode_of
from gateway.cli.remote_entries import find_entry, is_directory
from gateway.cli.session import Session, with_session
from gateway.cli.trees import check_parent

if TYPE_CHECKING:
    from actors.client import Sandbox
    from gateway.cli.output import Output

STANDARD_STREAM = "-"
_PACK = ["tar", "--create", "--format=gnu", "--transform=s,^\\.,d,S"]
"""Archives the directory `.` under the name `d`; links keep their targets."""
_UNPACK = ["tar", "--extract", "--no-same-owner", "--preserve-permissions", "--no-overwrite-dir",
           "--keep-directory-symlink"]  # fmt: skip
"""Unpacks an archive. A directory that exists, or a link to one, stays as it is: as with cp(1)."""


@with_session
def copy(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="SRC", help="BOX:/path, a local file, or - for stdin.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="BOX:/path, a local file, or - for stdout.")],
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Copy a directory with all that is in it.")
    ] = False,
) -> None:
    """Copy a file into or out of a sandbox, with its mode. The target shows whole or not at all.

    A target that is a directory is copied into. With -r, a directory in the sandbox that is there already takes the
    new files in, and a local one must not be there yet; `DIRECTORY/.` stands for what is in it.
    """
    there, here = remote(target), remote(source)
    if (there is None) == (here is None):
        raise InvalidRequestError("Exactly one of SRC and DST must be of the form BOX:/path.")
    try:
        if there is not None:
            copied = (_upload_tree if recursive else _upload)(session, source, there)
        else:
            assert here is not None
            copied = (_download_tree if recursive else _download)(session, here, target)
    except BrokenPipeError:
        raise
    except OSError as e:
        name = e.filename if isinstance(e.filename, str) else "local file"
        raise InvalidRequestError(f"{name}: {e.strerror or e}.") from None
    if session.output.as_json and target != STANDARD_STREAM:
        session.output.result({"ok": True, "bytes": copied})


@with_session
def list_files(
    session: Session,
    directory: Annotated[
        str,
        typer.Argument(
            metavar="BOX[:PATH]|BACKUP_ID[:PATH]",
            help="A directory; /workspace if not given. In a backup, the directory that was backed up is /.",
        ),
    ],
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Of a backup, list what is in the directories below, too.")
    ] = False,
) -> None:
    """List a directory of a sandbox, or of a backup without waking or fetching anything."""
    name, _, inside = directory.partition(":")
    if is_uuid(name):
        with suppress(BackupNotFoundError):  # a sandbox may have such a name
            list_backup(session, name, "/" + inside.lstrip("/"), recursive=recursive)
            return
    if recursive:
        raise InvalidRequestError("Only a backup can be listed with what is in its directories.")
    at = remote(directory) or Remote(directory, DEFAULT_DIR)
    entries = session.sandbox(at.box).list_files(at.path)
    session.output.rows(
        {"files": entries},
        ("mode", "bytes", "modified", "name"),
        [
            (
                mode_of(e.kind, e.mode),
                str(e.size_bytes),
                e.modified_at.isoformat(timespec="seconds"),
                e.name,
            )
            for e in entries
        ],
    )


def _upload(session: Session, source: str, to: Remote) -> int:
    from actors.models import TRANSFER_BYTES
    from gateway.cli.progress import meter

    if source != STANDARD_STREAM and Path(source).is_dir():
        raise _is_a_directory(source)
    with _readable(source) as file, meter(visible=session.output.shows_progress) as display:
        sandbox = session.sandbox(to.box)
        path = to.path
        if path.endswith("/") or is_directory(sandbox, path):
            if source == STANDARD_STREAM:
                raise InvalidRequestError("What comes from standard input needs a name: BOX:DIRECTORY/NAME.")
            path = f"{path.rstrip('/')}/{Path(source).name}"
        found = os.fstat(file.fileno())
        regular = stat.S_ISREG(found.st_mode)
        mode = stat.S_IMODE(found.st_mode) & 0o777 if regular else None
        upload = sandbox.calls.write_file(path, mode=mode).result()
        done = 0
        try:
            while block := file.read(TRANSFER_BYTES):
                upload.send(block).result()
                done += len(block)
                display.amount("copying", done=done, total=found.st_size if regular else None, unit="bytes")
        except BaseException:
            upload.abort().result()
            raise
        upload.commit().result()
    return done


def _download(session: Session, source: Remote, target: str) -> int:
    from gateway.cli.progress import meter

    sandbox = session.sandbox(source.box)
    visible = session.output.shows_progress and not (target == STANDARD_STREAM and session.output.results.isatty())
    there = find_entry(sandbox, source.path) if visible or target != STANDARD_STREAM else None
    is_file = there is not None and there.kind is FileKind.FILE
    if there is not None and there.kind is FileKind.DIRECTORY:
        raise _is_a_directory(source.path)
    total = there.size_bytes if there is not None and is_file else None
    mode = there.mode if there is not None and is_file else None
    done = 0
    blocks = iter(sandbox.calls.read_file(source.path))
    name = PurePosixPath(source.path).name
    with _writable(target, name, session.output, mode) as file, meter(visible=visible) as display:
        for block in blocks:
            file.write(block)
            done += len(block)
            display.amount("copying", done=done, total=total, unit="bytes")
        file.flush()
    return done


def _own_name(directory: str) -> str:
    """The name that a directory gets when it is copied into another one; "" if only its contents are copied.

    Source: cp(1) of coreutils, for "." and "..".
    """
    name = posixpath.basename(directory.rstrip("/"))
    return "" if name in (".", "..") else name


def _is_a_directory(name: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name} is a directory.", hint="Copy it with -r.")


def _upload_tree(session: Session, source: str, to: Remote) -> int:
    from gateway.cli.progress import meter
    from gateway.cli.trees import pack

    folder = Path(source)
    if not folder.is_dir():
        return _upload(session, source, to)
    sandbox = session.sandbox(to.box)
    place = posixpath.normpath(to.path)
    if to.path.endswith("/") or is_directory(sandbox, place):
        place = posixpath.join(place, _own_name(source)).rstrip("/")
    if not is_directory(sandbox, place) and find_entry(sandbox, place) is not None:
        raise InvalidRequestError(f"{place} in the sandbox is there, and is no directory.")
    parent, name = posixpath.split(place)
    done = 0
    with _archive_there(sandbox) as archive, meter(visible=session.output.shows_progress) as display:
        upload = sandbox.calls.write_file(archive).result()

        def send(data: bytes) -> None:
            nonlocal done
            upload.send(data).result()
            done += len(data)
            display.amount("copying", done=done, total=None, unit="bytes")

        try:
            copied = pack(folder, name, send)
        except BaseException:
            upload.abort().result()
            raise
        upload.commit().result()
        _run(sandbox, ["mkdir", "-p", "--", parent])
        _run(sandbox, [*_UNPACK, f"--directory={parent}", f"--file={archive}"])
    _name_left_out(copied.left_out)
    return copied.total_bytes


def _download_tree(session: Session, source: Remote, target: str) -> int:
    from gateway.cli.progress import meter
    from gateway.cli.trees import unpack

    sandbox = session.sandbox(source.box)
    if not is_directory(sandbox, source.path):
        return _download(session, source, target)
    if target == STANDARD_STREAM:
        raise InvalidRequestError("A directory cannot be copied to standard output.")
    place = Path(target)
    if place.is_dir():
        place = place / _own_name(source.path)
    if os.path.lexists(place):
        raise InvalidRequestError(f"{place}: a directory can only be copied to where nothing is yet.")
    with _archive_there(sandbox) as archive, meter(visible=session.output.shows_progress) as display:
        _run(sandbox, [*_PACK, f"--directory={source.path}", f"--file={archive}", "."])

        def pieces() -> Iterator[bytes]:
            done = 0
            for block in sandbox.calls.read_file(archive):
                yield block
                done += len(block)
                display.amount("copying", done=done, total=None, unit="bytes")

        copied = unpack(pieces(), place)
    _name_left_out(copied.left_out)
    return copied.total_bytes


@contextmanager
def _archive_there(sandbox: Sandbox) -> Iterator[str]:
    """Yields the path for a tar archive in the sandbox and removes it afterwards; backups leave out such names."""
    path = f"/tmp/.holdfast-{secrets.token_hex(8)}"
    try:
        yield path
    finally:
        with suppress(HoldfastError):  # it was never made, or the sandbox is away: the first error counts
            sandbox.delete_file(path)


def _run(sandbox: Sandbox, argv: list[str]) -> None:
    ended = sandbox.exec(argv)
    if ended.exit_code != 0:
        said = ended.stderr.decode("utf-8", "backslashreplace").strip()[-500:]
        raise InvalidRequestError(f"{argv[0]} in the sandbox ended with status {ended.exit_code}: {said}")


def _name_left_out(names: list[str]) -> None:
    for name in names:
        print(f"left out, since it is a socket or a device: {name!r}", file=sys.stderr)


@contextmanager
def _readable(source: str) -> Iterator[BinaryIO]:
    if source == STANDARD_STREAM:
        yield sys.stdin.buffer
    else:
        with Path(source).open("rb") as file:
            yield file


@contextmanager
def _writable(target: str, name: str, output: Output, mode: int | None) -> Iterator[BinaryIO]:
    """Yields the file to write: stdout, a device, or a new file that gets the target's name once it is whole."""
    path = Path(target)
    if target == STANDARD_STREAM:
        yield output.results.buffer
        return
    if path.is_dir():
        path = path / name
    elif target.endswith("/"):
        raise InvalidRequestError(f"{target} is no directory.")
    if path.exists() and not path.is_file():
        with path.open("wb") as device:
            yield device
        return
    check_parent(path)
    path = path.resolve() if path.exists() else path  # a link stays, and its target is written
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode & 0o777 if mode is not None else 0o666 & ~_umask())
            yield file
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
