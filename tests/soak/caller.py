"""A caller of the soak test: makes random calls on a few sandboxes over HTTP, and compares them with models."""

from __future__ import annotations

import hashlib
import io
import json
import math
import random
import tarfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import Any, TypeVar

import httpx

from tests.acceptance.http_box import HttpBox
from tests.soak import model
from tests.soak.killer import Killer
from tests.soak.model import Change, Files, Model, Seen, WrongTreeError
from tests.support.mount_leaks import wait_until

T = TypeVar("T")
IMPATIENT_S = 15.0
"""After this time without success, the killer pauses until there is one."""
COMES_BACK_S = 90.0
"""Time limit for a sandbox to answer again once the killer pauses, however it was disturbed."""
_ASLEEP_S = 20.0
_DIRECTORIES = ("", "a", "b")
_NAMES = ("f0", "f1", "f2", "f3")
_DISTURBED = frozenset(
    {
        "SANDBOX_UNAVAILABLE",
        "SERVICE_UNAVAILABLE",
        "STORAGE_UNAVAILABLE",
        "MOUNT_LOST",
        "EXEC_STOPPED",
        "BACKUP_CREATE_FAILED",
        "BACKUP_RESTORE_FAILED",
    }
)
"""Codes of the errors that a kill may cause."""
_LIST = "find . -type f ! -name '.holdfast-????????????????' -exec sha256sum {} +"


class Outcome(Enum):
    """The known outcome of a call, from its answer or error."""

    DONE = auto()
    NOT_DONE = auto()
    UNKNOWN = auto()


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup, and the files that it must hold."""

    handle: dict[str, str]
    files: Files


@dataclass(slots=True)
class Kept:
    """A sandbox with its model."""

    box: HttpBox
    model: Model = field(default_factory=Model)
    kills_at_look: int = 0


class Caller:
    """Acts until the test ends. Every choice comes from `rng`."""

    def __init__(self, client: httpx.Client, name: str, rng: random.Random, killer: Killer) -> None:
        self.done: Counter[str] = Counter()
        self.unknown = 0
        self.log: list[str] = []
        self._client = client
        self._name = name
        self._rng = rng
        self._killer = killer
        self._kept = [Kept(HttpBox(client, f"{name}-{number}")) for number in range(2)]
        self._backups: list[Backup] = []

    def act(self) -> None:
        """Makes one random call. Then compares the whole tree, at random, and whenever a process was killed.

        Raises:
            WrongTreeError: a sandbox has wrong content, gives a wrong answer, or does not come back.
        """
        kept = self._rng.choice(self._kept)
        kinds: dict[Callable[[Kept], None], int] = {
            self._put: 8,
            self._delete: 4,
            self._exec: 10,
            self._read: 3,
            self._backup: 4,
            self._restore: 5,
            self._sleep: 1,
            self._destroy: 1,
        }
        act = self._rng.choices(list(kinds), list(kinds.values()))[0]
        if not kept.model.is_certain:
            self._look(kept)
        act(kept)
        self.done[act.__name__.strip("_")] += 1
        if self._rng.random() < 0.15 or kept.kills_at_look != self._killer.kills:
            self._look(kept)

    def finish(self) -> None:
        """Compares everything once more, including the latest backups, and destroys the sandboxes."""
        for kept in self._kept:
            self._look(kept)
        fresh = Kept(HttpBox(self._client, f"{self._name}-fresh"))
        for backup in self._backups[-4:]:
            body = {**backup.handle, "dir": "/workspace", "mode": self._rng.choice(["overlay", "copy"])}
            self._until_done("restore", partial(self._post, fresh, "restore", body))
            fresh.model.happened([model.restore("", backup.files)])
            self._look(fresh)
        for kept in (*self._kept, fresh):
            self._destroy(kept)

    def _path(self, directory: str | None = None) -> str:
        folder = self._rng.choice(_DIRECTORIES) if directory is None else directory
        return f"{folder}/{self._rng.choice(_NAMES)}".lstrip("/")

    def _data(self) -> bytes:
        size = self._rng.choice([0, 1, 30, 30, 5000, 300_000])
        return self._rng.randbytes(size // 2).hex().encode()

    def _put(self, kept: Kept) -> None:
        path, data = self._path(), self._data()
        self._changed(kept, f"put {path}", lambda: kept.box.put(f"/workspace/{path}", data), [model.put(path, data)])

    def _delete(self, kept: Kept) -> None:
        path = self._path()
        present = path in kept.model.files

        def call() -> httpx.Response:
            return kept.box.client.delete(kept.box.file_url(f"/workspace/{path}"))

        if present:
            self._changed(kept, f"delete {path}", call, [model.remove(path)])
        else:
            self._changed(kept, f"delete {path}, which is not there", call, [], wanted=404)

    def _exec(self, kept: Kept) -> None:
        folder = self._rng.choice(_DIRECTORIES)
        path, other = self._path(folder), self._path(folder)
        temporary = f"{folder}/.new".lstrip("/")
        text = self._data()[:2000].decode()
        write = [model.put(temporary, b""), model.put(temporary, text.encode())]
        scripts: list[tuple[str, list[Change]]] = [
            (f"printf %s {text} >> {path}", [model.append(path, b""), model.append(path, text.encode())]),
            (f"printf %s {text} > {path}", [model.put(path, b""), model.put(path, text.encode())]),
            (f"rm -f {path}", [model.remove(path)]),
            (f"printf %s {text} > {temporary}; mv {temporary} {path}", [*write, model.rename(temporary, path)]),
            (
                f"printf %s {text} > {temporary}; mv {temporary} {path}; rm {path}",
                [*write, model.rename(temporary, path), model.remove(path)],
            ),
        ]
        if path in kept.model.files and path != other:
            scripts += [(f"mv {path} {other}", [model.rename(path, other)])] * 2
        script, changes = self._rng.choice(scripts)
        self.log.append(f"{time.monotonic():.3f} {kept.box.id} exec {script[:150]}")
        ran = kept.box.exec("sh", "-euc", f"mkdir -p ./{folder}; {script}")
        if ran.exit_code == 0:
            kept.model.happened(changes)
            return
        outcome = self._outcome(ran.error) if ran.error is not None else Outcome.UNKNOWN
        self._note(f"exit {ran.exit_code}, {ran.error}, {ran.stderr!r}: {outcome.name}")
        if outcome is Outcome.UNKNOWN:
            self.unknown += 1
            kept.model.may_have_happened(changes)

    def _read(self, kept: Kept) -> None:
        path = self._path()
        expected = kept.model.files.get(path)
        self.log.append(f"{time.monotonic():.3f} {kept.box.id} read {path}")
        try:
            response = kept.box.get(f"/workspace/{path}")
        except httpx.TransportError as e:  # cut off: the process or mount behind it has died
            self._note(repr(e))
            return
        if response.status_code not in (200, 404):
            self._outcome(response.json())
        elif (response.content if response.status_code == 200 else None) != expected:
            raise self._wrong(kept, f"{path} reads as {response.content[:100]!r} ({response.status_code})")

    def _backup(self, kept: Kept) -> None:
        folder = self._rng.choice(_DIRECTORIES)
        files = model.below(kept.model.files, folder)
        if folder and not files:
            return
        key = str(uuid.UUID(int=self._rng.getrandbits(128)))
        body = {"dir": f"/workspace/{folder}".rstrip("/")}
        answer = self._until_done("backup", lambda: self._post(kept, "backup", body, {"Idempotency-Key": key}))
        self._backups.append(Backup(answer, files))

    def _restore(self, kept: Kept) -> None:
        if not self._backups:
            return
        backup, folder = self._rng.choice(self._backups[-6:]), self._rng.choice(_DIRECTORIES)
        mode = self._rng.choice(["overlay", "overlay", "overlay", "copy"])
        body = {**backup.handle, "dir": f"/workspace/{folder}".rstrip("/"), "mode": mode}
        self._changed(
            kept, f"restore {body}", lambda: self._post(kept, "restore", body), [model.restore(folder, backup.files)]
        )

    def _sleep(self, kept: Kept) -> None:
        def is_asleep() -> bool:
            answer = self._client.get(f"{kept.box.url}/running")
            if answer.status_code != 200:
                return False
            found = answer.json()
            if not found["running"] and kept.model.is_certain and kept.model.files:
                raise self._wrong(kept, "it has files, and is said not to be there")
            return not found.get("awake", False)

        asleep = wait_until(is_asleep, timeout_s=_ASLEEP_S)
        self.log.append(f"{time.monotonic():.3f} {kept.box.id} sleep: {asleep}")
        self.done["asleep"] += asleep

    def _destroy(self, kept: Kept) -> None:
        self._until_done("destroy", lambda: self._client.delete(kept.box.url), wanted=204)
        kept.model.happened([model.clear()])

    def _look(self, kept: Kept) -> None:
        """Compares the whole tree with the model."""
        kept.kills_at_look = self._killer.kills
        seen = self._until_seen(kept, self._rng.choice([self._listed, self._persisted]))
        try:
            kept.model.saw(seen)
        except WrongTreeError as e:
            raise self._wrong(kept, str(e)) from None
        self.done["look"] += 1

    def _until_seen(self, kept: Kept, look: Callable[[Kept], Seen | None]) -> Seen:
        return self._patiently(f"{kept.box.id}: {look.__name__.strip('_')}", lambda: look(kept))

    def _listed(self, kept: Kept) -> Seen | None:
        ran = kept.box.exec("sh", "-euc", _LIST)
        if ran.exit_code != 0:
            self._note(f"list: exit {ran.exit_code}, {ran.error}")
            if ran.error is not None:
                self._outcome(ran.error)
            return None
        rows = (line.split("  ", 1) for line in ran.text.splitlines())
        return {path.removeprefix("./"): digest for digest, path in rows}

    def _persisted(self, kept: Kept) -> Seen | None:
        try:
            response = self._client.post(f"{kept.box.url}/persist")
        except httpx.TransportError as e:
            self._note(f"persist: {e!r}")
            return None
        if response.status_code != 200:
            self._outcome(response.json())
            return None
        found = {}
        with tarfile.open(fileobj=io.BytesIO(response.content)) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if content is not None:
                    found[member.name.removeprefix("./")] = hashlib.sha256(content.read()).hexdigest()
        return found

    def _changed(
        self,
        kept: Kept,
        verb: str,
        call: Callable[[], httpx.Response],
        changes: Sequence[Change],
        *,
        wanted: int | None = None,
    ) -> None:
        """Makes a call that changes the tree, and records its outcome in the model."""
        self.log.append(f"{time.monotonic():.3f} {kept.box.id} {verb}")
        response = call()
        if response.status_code == wanted or (wanted is None and response.is_success):
            kept.model.happened(changes)
            return
        if response.is_success:
            raise self._wrong(kept, f"{verb} answers {response.status_code}")
        outcome = self._outcome(response.json())
        self._note(f"{response.status_code} {response.text[:300]}: {outcome.name}")
        if outcome is Outcome.UNKNOWN:
            self.unknown += 1
            kept.model.may_have_happened(changes)

    def _until_done(self, verb: str, call: Callable[[], httpx.Response], *, wanted: int = 200) -> dict[str, str]:
        """Repeats an idempotent call until it succeeds; returns its document."""

        def attempt() -> dict[str, str] | None:
            self.log.append(f"{time.monotonic():.3f} {verb}")
            response = call()
            if response.status_code == wanted:
                document: dict[str, str] = response.json() if response.content else {}
                return document
            self._note(f"{response.status_code} {response.text[:300]}")
            self._outcome(response.json())
            return None

        return self._patiently(verb, attempt)

    def _patiently(self, verb: str, attempt: Callable[[], T | None]) -> T:
        """Repeats an attempt until it returns a result other than None.

        Raises:
            WrongTreeError: there is still none, a long time after the last kill.
        """
        with ExitStack() as stack:
            sparing_from, deadline = time.monotonic() + IMPATIENT_S, math.inf
            while True:
                found = attempt()
                if found is not None:
                    return found
                now = time.monotonic()
                if now > deadline:
                    raise WrongTreeError(f"{verb} has failed for {COMES_BACK_S:g} s\n{self._last()}")
                if now > sparing_from and deadline == math.inf:
                    stack.enter_context(self._killer.sparing())
                    deadline = now + COMES_BACK_S

    def _outcome(self, error: dict[str, Any]) -> Outcome:
        """The outcome of a call that failed with this error. A restore that failed has changed nothing."""
        if error["code"] not in _DISTURBED:
            raise WrongTreeError(f"an error that no kill explains: {json.dumps(error)}\n{self._last()}")
        told = error.get("context", {}).get("outcome")
        if told == "not_executed" or error["code"] == "BACKUP_RESTORE_FAILED":
            return Outcome.NOT_DONE
        return Outcome.UNKNOWN

    def _post(
        self, kept: Kept, action: str, body: dict[str, str], headers: dict[str, str] | None = None
    ) -> httpx.Response:
        return self._client.post(f"{kept.box.url}/{action}", json=body, headers=headers)

    def _note(self, text: str) -> None:
        self.log.append(f"{time.monotonic():.3f}   -> {text}")

    def _wrong(self, kept: Kept, what: str) -> WrongTreeError:
        return WrongTreeError(f"{kept.box.id}: {what}\n{self._last()}")

    def _last(self) -> str:
        return "\n".join(self.log[-60:])
