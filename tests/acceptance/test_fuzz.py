"""Fuzzing: requests to every route of the OpenAPI document, valid ones, invalid ones, and malformed HTTP.

Every answer must be a documented one: a success, or an error of the common shape, never an internal error. The requests
are the same in each run; HOLDFAST_TEST_FUZZ_SEED makes others.
"""

from __future__ import annotations

import json
import os
import random
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from gateway.status import STATUS
from tests.acceptance.http_box import HttpBox, server_sent_events
from tests.acceptance.test_bad_input import BAD_BODIES
from tests.support.hostile import (
    BACKUP_OPTIONS,
    COMMANDS,
    DIRECTORIES,
    HEADERS,
    PATHS,
    QUERIES,
    TIMES_MS,
    TREE,
    VARIABLES,
    archive,
)
from tests.support.raw_requests import cases
from tests.support.service import Service, is_ready
from tests.support.wire import Answer, Wire, answered_as_documented, refusal_of
from tests.unit.gateway.test_extreme_values import NUMBERS, TEXTS, fields, with_value

SEED = int(os.environ.get("HOLDFAST_TEST_FUZZ_SEED", "1"))
CALLERS = 4
REQUESTS = int(os.environ.get("HOLDFAST_TEST_FUZZ_REQUESTS", "250"))
"""Number of requests of each caller: 250 is enough for CI, thousands make a soak test."""
BUSY = ("/exec", "/backup", "/restore", "/persist", "/hydrate", "/file/{path}")
"""Ends of the paths that do the most work; they are requested most often."""
SERVED = [*DIRECTORIES, *COMMANDS, *VARIABLES, *TIMES_MS, *BACKUP_OPTIONS]
VALUES = [*NUMBERS, "[" * 3000 + "]" * 3000, '{"a":{"a":{"a":1}}}', '[["a"]]', '["a",1]', *map(json.dumps, SERVED)]

Operation = dict[str, Any]


@dataclass
class Caller:
    """Makes random requests about its own sandbox and backups, and checks each answer."""

    service: Service
    document: dict[str, Any]
    box: HttpBox
    backups: list[str]
    draw: random.Random
    seen: Counter[tuple[str, int]] = field(default_factory=Counter)

    @property
    def operations(self) -> list[tuple[str, str, Operation]]:
        """Method, path and description of every operation in the document."""
        paths = self.document["paths"]
        return [(method.upper(), path, operation) for path, row in paths.items() for method, operation in row.items()]

    def run(self) -> None:
        """Makes all its requests, each on its own connection."""
        weights = [4 if path.endswith(BUSY) else 1 for _, path, _ in self.operations]
        for method, path, operation in self.draw.choices(self.operations, weights, k=REQUESTS):
            answer = self.ask(method, self.target(method, path, operation), operation, self.body(path, operation))
            self.seen[f"{method} {path}", answer.status] += 1
            if path == "/v1/sandbox" and method == "POST" and answer.status == 200:
                assert self.box.client.delete(f"/v1/sandbox/{json.loads(answer.body)['id']}").status_code == 204

    def ask(self, method: str, target: str, operation: Operation, body: bytes) -> Answer:
        """Sends a request, and fails unless its answer is a documented one."""
        head, body = self.encoded(method, target, body)
        try:
            with Wire(address(self.service)) as wire:
                wire.send(head + body)
                answer = wire.answer(to=method)
            check(operation, answer)
        except Exception as e:
            raise AssertionError(f"{head[:600]!r} {body[:600]!r}: {e!r}") from e
        return answer

    def encoded(self, method: str, target: str, body: bytes) -> tuple[bytes, bytes]:
        """Encodes the request for sending: sometimes with extra headers, sometimes chunked."""
        draw = self.draw
        headers = [("Host", "here"), ("Authorization", f"Bearer {self.service.api_key}")]
        if draw.random() < 0.15:
            headers += draw.sample(HEADERS, draw.randint(1, 2))
        if body and draw.random() < 0.2:
            headers.append(("Transfer-Encoding", "chunked"))
            body = b"%x;a=b\r\n%s\r\n0\r\nX-Trailer: 1\r\n\r\n" % (len(body), body)
        elif body or method in ("POST", "PUT"):
            headers.append(("Content-Length", str(len(body))))
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
        return "\r\n".join(lines).encode("latin-1"), body

    def target(self, method: str, path: str, operation: Operation) -> str:
        """Fills the path with names, and sometimes adds a query."""
        draw = self.draw
        declared = [row["name"] for row in operation.get("parameters", []) if row["in"] == "query"]
        target = path.replace("{id}", self.name(method, path)).replace("{path}", draw.choice(PATHS))
        target = target.replace("{command_id}", escaped(draw.choice([*TEXTS, "0" * 32])))
        for name in ("{other}", "{backup}"):
            target = target.replace(name, self.name(method, "/v1/backup"))
        if draw.random() > (0.5 if declared else 0.1):
            return target
        if declared and draw.random() < 0.5:
            return f"{target}?{draw.choice(declared)}={escaped(draw.choice(TEXTS))}"
        return f"{target}?{'&'.join(draw.choices(QUERIES, k=draw.randint(1, 2)))}"

    def name(self, method: str, path: str) -> str:
        """Returns the name of a sandbox or a backup; another sandbox's for a deletion."""
        draw = self.draw
        if draw.random() < 0.1:
            return escaped(draw.choice(TEXTS))
        if path.startswith("/v1/backup"):
            return draw.choice([*self.backups, str(uuid.UUID(int=draw.getrandbits(128)))])
        return f"{self.box.id}-x" if method == "DELETE" and path.endswith("{id}") else self.box.id

    def body(self, path: str, operation: Operation) -> bytes:
        """Returns a body that is valid for the route, nearly valid, or invalid."""
        draw = self.draw
        content = operation.get("requestBody", {}).get("content", {})
        if "application/json" not in content:
            return archive(draw) if content or draw.random() < 0.1 else b""
        right = self.document_for(path.rpartition("/")[2])
        raw = json.dumps(right).encode()
        kind = draw.choices(["right", "changed", "none"], [5, 3, 1])[0]
        if kind == "changed":
            places = [*fields(content["application/json"]["schema"]), ("unknown",)]
            return with_value(right, draw.choice(places), draw.choice(VALUES))
        others = [*BAD_BODIES.values(), b"\xef\xbb\xbf" + raw, json.dumps(right).encode("utf-16"), raw[:-1]]
        return raw if kind == "right" else draw.choice(others)

    def document_for(self, route: str) -> dict[str, Any]:
        """Returns a body with the right fields; not all its values can be served."""
        draw = self.draw
        where = draw.choice([*["/workspace/d"] * 10, *DIRECTORIES])
        match route:
            case "exec":
                options = {
                    "cwd": draw.choice(DIRECTORIES),
                    "env": draw.choice(VARIABLES),
                    "timeout_ms": draw.choice(TIMES_MS),
                }
                chosen = draw.sample([*options], draw.choice([0, 0, 1, 3]))
                return {"argv": draw.choice(COMMANDS), **{name: options[name] for name in chosen}}
            case "backup":
                return {"dir": where, **draw.choice(BACKUP_OPTIONS)}
            case "restore":
                mode: dict[str, str] = draw.choice([{}, {"mode": "copy"}, {"mode": "overlay"}])
                return {"dir": where, "id": draw.choice(self.backups), **mode}
            case "fork":
                return {"sandboxes": [f"{self.box.id}-f"]}
            case "forget":
                return {"dir": draw.choice([where, ["/workspace", "/tmp"]])}
            case "labels":
                return {"a": "b", "x" * 63: "y" * 256}
        return {}


def escaped(text: str) -> str:
    """Percent-encodes the text for a target; text that is encoded already stays as it is."""
    return text if text.startswith("%") else quote(text, safe="")


def check(operation: Operation, answer: Answer) -> None:
    """Fails unless the answer is documented in the operation's description or in the table of errors."""
    assert answer.status, "the connection was closed without an answer"
    assert answer.headers["X-Request-Id"]
    if answer.status >= 400:
        refusal = refusal_of(answer)
        may_be = {STATUS[refusal["code"]]} | ({400} if refusal["code"] == "INVALID_REQUEST" else set())
        assert answer.status in may_be, refusal
        assert answer.status < 500 or refusal["code"] == "EXEC_TIMEOUT", refusal
        return
    documented = operation["responses"][str(answer.status)].get("content", {})
    kind = str(answer.headers["Content-Type"]).partition(";")[0]
    assert kind in documented or not (documented and answer.body), (kind, documented)
    if kind == "text/event-stream":
        (*output, (last, data)) = server_sent_events(answer.body.decode("ascii").splitlines())
        assert {event for event, _ in output} <= {"started", "stdout", "stderr"} and last in ("exit", "error")
        assert last == "exit" or json.loads(data)["code"] in ("EXEC_TIMEOUT", "EXEC_STOPPED"), data


def address(service: Service) -> tuple[str, int]:
    """Host and port on which the service listens."""
    parts = urlsplit(service.url)
    return parts.hostname or "", parts.port or 0


@pytest.fixture(scope="module")
def callers(service: Service, client: httpx.Client) -> Iterator[list[Caller]]:
    document = client.get("/openapi.json").json()
    made: list[Caller] = []
    for number in range(CALLERS):
        box = HttpBox(client, f"fuzz-{number}")
        box.sh(TREE)
        backups = [box.backup("/workspace/d")["id"] for _ in range(4)]
        made.append(Caller(service, document, box, backups, random.Random(f"{SEED} {number}")))
    yield made
    for caller in made:
        for name in (caller.box.id, f"{caller.box.id}-x", f"{caller.box.id}-f"):
            assert client.delete(f"/v1/sandbox/{name}").status_code == 204


@pytest.fixture(autouse=True)
def sound(service: Service) -> Iterator[None]:
    """Checks after each test that the service works and has logged no internal error."""
    yield
    assert is_ready(service)
    said = service.stderr.read_text()
    assert "unhandled error" not in said and "Traceback" not in said, said


def test_every_request_to_every_route_gets_a_documented_answer(callers: list[Caller]) -> None:
    with ThreadPoolExecutor(CALLERS) as threads:
        for ended in [threads.submit(caller.run) for caller in callers]:
            ended.result()
    seen: Counter[tuple[str, int]] = sum((caller.seen for caller in callers), Counter())
    served = {route for route, status in seen if status < 400}
    missed = {f"{method} {path}" for method, path, _ in callers[0].operations} - served
    # No directory is missing, so forget cannot succeed; no drawn name is that of a command that takes input.
    assert missed <= {"POST /v1/sandbox/{id}/forget", "PUT /v1/sandbox/{id}/exec/{command_id}/stdin"}, missed


def test_every_command_directory_and_environment_gets_a_result_or_an_error(callers: list[Caller]) -> None:
    caller = callers[0]
    path = "/v1/sandbox/{id}/exec"
    operation = caller.document["paths"][path]["post"]
    bodies: list[dict[str, Any]] = [{"argv": argv} for argv in COMMANDS]
    bodies += [
        {"argv": ["true"], name: value}
        for name, values in (("cwd", DIRECTORIES), ("timeout_ms", TIMES_MS))
        for value in values
    ]
    bodies += [{"argv": argv, "env": env} for argv in (["true"], ["/bin/true"], ["f"]) for env in VARIABLES]
    for body in bodies:
        caller.ask("POST", path.replace("{id}", caller.box.id), operation, json.dumps(body).encode())


def test_edge_cases_of_http_are_answered_with_a_document(service: Service, box: HttpBox) -> None:
    box.sh("true")
    with ThreadPoolExecutor(8) as threads:
        tried = [
            threads.submit(answered_as_documented, address(service), sent, expected)
            for sent, expected in cases(service.api_key, box.id).values()
        ]
        for ended in tried:
            ended.result()
