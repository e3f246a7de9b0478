"""A sandbox as seen by a client that speaks plain HTTP."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

WAIT_S = 180.0


@dataclass(slots=True)
class Ran:
    """The result of a command, collected from its event stream."""

    stdout: bytes = b""
    stderr: bytes = b""
    exit_code: int | None = None
    command_id: str | None = None
    error: dict[str, Any] | None = None
    events: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.stdout.decode()

    def take(self, event: str, data: str) -> None:
        self.events.append(event)
        match event:
            case "stdout":
                self.stdout += base64.b64decode(data, validate=True)
            case "stderr":
                self.stderr += base64.b64decode(data, validate=True)
            case "started":
                self.command_id = json.loads(data)["command_id"]
            case "exit":
                self.exit_code = json.loads(data)["exit_code"]
            case "error":
                self.error = json.loads(data)
            case _:
                raise AssertionError(f"an event of the kind {event!r}")


def server_sent_events(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields (event, data) for each event; skips comments."""
    event, data = "message", ""
    for line in lines:
        if not line:
            if data:
                yield event, data
            event, data = "message", ""
        elif line.startswith("event: "):
            event = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data += line.removeprefix("data: ")


class Running:
    """A running command; a thread reads its output."""

    def __init__(self, box: HttpBox, body: Mapping[str, Any]) -> None:
        self._box = box
        self._body = body
        self._changed = threading.Condition()
        self._ran = Ran()
        self._ended = False
        self._hang_up = threading.Event()
        self._response: httpx.Response | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def said(self, text: bytes) -> None:
        """Waits until the command has written `text`."""
        self._wait(lambda: text in self._ran.stdout)

    def feed(self, data: bytes | Iterable[bytes]) -> httpx.Response:
        """Sends the command's input, once it has begun."""
        self._wait(lambda: self._ran.command_id is not None)
        return self._box.client.put(f"{self._box.url}/exec/{self._ran.command_id}/stdin", content=data)

    def result(self) -> Ran:
        """Waits for the end of the stream."""
        self._wait(lambda: self._ended)
        return self._ran

    def hang_up(self) -> None:
        """Closes the connection, like a client that disconnects."""
        assert self._response is not None
        stream = self._response.extensions["network_stream"]
        stream.get_extra_info("socket").shutdown(2)
        self._thread.join(WAIT_S)

    def _wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S), self._ran

    def _read(self) -> None:
        try:
            with self._box.client.stream("POST", f"{self._box.url}/exec", json=self._body) as self._response:
                if self._response.status_code != 200:
                    self._ran.error = json.loads(self._response.read())
                    return
                for event, data in server_sent_events(self._response.iter_lines()):
                    with self._changed:
                        self._ran.take(event, data)
                        self._changed.notify_all()
        except httpx.TransportError:
            pass
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class HttpBox:
    """One sandbox."""

    client: httpx.Client
    id: str

    @property
    def url(self) -> str:
        return f"/v1/sandbox/{self.id}"

    def post(self, action: str, **body: Any) -> httpx.Response:
        """POSTs a JSON document; a field that is None is left out."""
        return self.client.post(f"{self.url}/{action}", json={k: v for k, v in body.items() if v is not None})

    def exec(self, *argv: str, timeout_ms: int | None = None, cwd: str | None = None, **env: str) -> Ran:
        """Runs a command to its end."""
        ran = self.start(*argv, timeout_ms=timeout_ms, cwd=cwd, **env).result()
        if ran.error is None:
            assert ran.events[-1] == "exit"
        return ran

    def sh(self, script: str, *, cwd: str | None = None) -> str:
        """Runs a shell script that must succeed; returns what it wrote."""
        ran = self.exec("sh", "-euc", script, cwd=cwd)
        assert ran.exit_code == 0, ran
        return ran.text

    def taking_input(self, *argv: str) -> Running:
        """Starts a command whose input is sent while it runs."""
        return Running(self, {"argv": list(argv), "stdin_stream": True})

    def start(self, *argv: str, timeout_ms: int | None = None, cwd: str | None = None, **env: str) -> Running:
        """Starts a command."""
        body: dict[str, Any] = {"argv": list(argv), "timeout_ms": timeout_ms, "cwd": cwd, "env": env or None}
        return Running(self, {name: value for name, value in body.items() if value is not None})

    def file_url(self, path: str | bytes) -> str:
        return f"{self.url}/file/{quote(path, safe='/').lstrip('/')}"

    def put(self, path: str | bytes, data: bytes | Iterable[bytes]) -> httpx.Response:
        return self.client.put(self.file_url(path), content=data)

    def get(self, path: str | bytes) -> httpx.Response:
        return self.client.get(self.file_url(path))

    def write(self, path: str | bytes, data: bytes) -> None:
        """Writes a file, which must succeed."""
        response = self.put(path, data)
        assert (response.status_code, response.json()) == (200, {"ok": True})

    def read(self, path: str | bytes) -> bytes:
        """Reads a file, which must succeed."""
        response = self.get(path)
        assert response.status_code == 200, response.text
        return response.content

    def backup(self, dir: str = "/workspace", **options: Any) -> dict[str, str]:
        """Backs a directory up, which must succeed; returns the handle."""
        response = self.post("backup", dir=dir, **options)
        assert response.status_code == 200, response.text
        handle: dict[str, str] = response.json()
        return handle

    def restore(self, handle: Mapping[str, str], **options: Any) -> dict[str, Any]:
        """Restores a backup, which must succeed."""
        response = self.post("restore", **{**handle, **options})
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    def info(self) -> dict[str, Any]:
        """Returns GET's description of the sandbox, which must exist."""
        response = self.client.get(self.url)
        assert response.status_code == 200, response.text
        info: dict[str, Any] = response.json()
        return info

    @contextmanager
    def destroyed_at_the_end(self) -> Iterator[HttpBox]:
        try:
            yield self
        finally:
            assert self.client.delete(self.url).status_code == 204


def refusal(response: httpx.Response) -> tuple[int, str]:
    """Returns the status and code of an error; its document must have the common shape."""
    document = response.json()
    assert {"code", "error", "context", "request_id"} <= document.keys() <= {
        "code", "error", "context", "request_id", "hint"
    }  # fmt: skip
    assert document["error"] and document["request_id"] == response.headers["x-request-id"]
    assert isinstance(document["context"], dict)
    assert response.headers["content-type"] == "application/json"
    return response.status_code, document["code"]
