"""Measures what does not depend on a directory: calls, transfers of a file, and a fork into many sandboxes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

from bench.first_calls import EMPTY_ACTOR, EmptyActors
from bench.samples import Contestant, Row
from bench.service import BUCKET
from bench.tools import Tools


def rows(tools: Tools, limits: EmptyActors, *, forks: int, file_mib: int) -> Iterator[Row]:
    """Measures all rows, beside Ray actors that do nothing."""
    yield _one_call(tools, limits)
    yield _many_forks(tools, limits, forks)
    yield from _large_file(tools, file_mib)


def _one_call(tools: Tools, limits: EmptyActors) -> Row:
    holdfast, data = tools.holdfast, bytes(2**20)
    box = holdfast.new_name()
    holdfast.execute(box, "true")
    contestants = {
        "state of a sandbox": Contestant(lambda: holdfast.api.get(f"/v1/sandbox/{box}")),
        "exec true": Contestant(lambda: holdfast.execute(box, "true")),
        "health": Contestant(lambda: holdfast.api.get("/health")),
        "raw PUT of 1 MiB": Contestant(lambda: tools.s3.put_object(Bucket=BUCKET, Key="mib", Body=data)),
        "raw GET of 1 MiB": Contestant(lambda: tools.s3.get_object(Bucket=BUCKET, Key="mib")["Body"].read()),
    }
    row = Row("any", "one call", (EMPTY_ACTOR,), times_s={EMPTY_ACTOR: limits.call_s})
    tools.interleaved(row, contestants, rounds=20)
    holdfast.destroy(box)
    return row


def _many_forks(tools: Tools, limits: EmptyActors, count: int) -> Row:
    """Many sandboxes from a small backup in one call, beside as many actors that do nothing."""
    holdfast = tools.holdfast
    base, made = holdfast.new_name(), list[str]()
    holdfast.execute(base, "echo 1 > file")
    backup, files = holdfast.back_up(base), holdfast.manifest(base)

    def fork(number: int) -> None:
        made.extend(holdfast.fork(backup, number))

    def compare(_: object) -> None:
        assert all(holdfast.manifest(name) == files for name in made), "other files are there than in the backup"

    def removed() -> None:
        while made:
            holdfast.destroy(made.pop())

    contestants = {
        f"{number} new": Contestant(partial(fork, number), prove=compare, after=removed) for number in (1, count)
    }
    limit = f"{count} empty Ray actors"
    row = Row("one file", "fork in one call", (limit,), times_s={limit: limits.many_s})
    tools.interleaved(row, contestants, rounds=1)
    holdfast.destroy(base)
    return row


def _large_file(tools: Tools, size_mib: int) -> Iterator[Row]:
    """A file on its way into a sandbox and out of it, beside the same number of bytes to and from the S3 server."""
    holdfast, data = tools.holdfast, os.urandom(size_mib * 2**20)
    box = holdfast.new_name()
    url = f"/v1/sandbox/{box}/file/workspace/big"
    tools.raw.hold(len(data))

    def compare(answer: object) -> None:
        assert holdfast.api.get(url).content == data, "the file is another one"

    sent = {
        "raw PUT": Contestant(tools.raw.put),
        "holdfast": Contestant(lambda: holdfast.api.put(url, content=data), prove=compare),
    }
    yield tools.interleaved(Row(f"{size_mib} MiB", "send a file", ("raw PUT",)), sent)
    fetched = {
        "raw GET": Contestant(tools.raw.get),
        "holdfast": Contestant(lambda: holdfast.api.get(url), prove=compare),
    }
    yield tools.interleaved(Row(f"{size_mib} MiB", "fetch a file", ("raw GET",)), fetched)
    holdfast.destroy(box)
