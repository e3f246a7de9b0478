"""Two nodes on this machine with one bucket: "a" has a sandbox first, and "b" takes it over."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.node.drivers import Driver
from actors.sandbox.facade import LocalSandbox
from storage.config import BucketConfig
from storage.metadata import SandboxState
from storage.s3 import S3ObjectStore
from tests.support.s3 import FAST
from tests.support.sandboxes import Node


@dataclass
class Pair:
    """Two nodes, and the name of a sandbox that no other test uses."""

    a: Node
    b: Node
    name: str
    conditional: bool
    """True if the bucket has conditional writes."""

    def on_a(self, **options: Any) -> LocalSandbox:
        return self.a.sandbox(self.name, **options)

    def on_b(self, **options: Any) -> LocalSandbox:
        """The sandbox on "b", in a cluster that has lost "a"."""
        return self.b.sandbox(self.name, **{"lost": ["a"], **options})

    @property
    def store(self) -> S3ObjectStore:
        return S3ObjectStore(self.a.bucket, transfer=FAST)

    @property
    def state(self) -> SandboxState:
        return self.a.state(self.name)

    @property
    def is_known(self) -> bool:
        return self.a.catalog().sandboxes.find_state("default", self.name) is not None

    @property
    def backups(self) -> dict[str, str | None]:
        """Names of the sandbox's backups, by id."""
        return {row.id: row.name for row in self.a.catalog().page("default", self.name).records}


def pair(scratch: Path, bucket: BucketConfig, driver: Driver, *, conditional: bool) -> Iterator[Pair]:
    """Makes the two nodes, each with its own data folder below `scratch`."""
    with ExitStack() as stack:
        a, b = (stack.enter_context(Node(scratch / name, bucket, driver, identity=name)) for name in ("a", "b"))
        yield Pair(a, b, f"sb-{uuid.uuid4().hex[:12]}", conditional)
