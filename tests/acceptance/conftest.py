"""One service for the session, watched from its start to its end; a fresh sandbox for each test."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.acceptance.http_box import HttpBox
from tests.support.by_service import OWN_SERVICES
from tests.support.service import CommandLines, Service, running

OTHER_TENANT = "other"
OTHER_KEY = "key-of-other-tenant-000"
API_KEY = "key-of-default-tenant-000"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the search for secrets last: it looks at everything that the other tests have left."""
    items.sort(key=lambda item: item.path.name == "test_secrets.py")


@pytest.fixture(scope="session")
def command_lines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLines]:
    """The service of the session, and its command lines that `ps` saw since its start."""
    folder = tmp_path_factory.mktemp("acceptance")
    env = {"SANDBOX_API_KEY": API_KEY, "HOLDFAST_API_KEYS": f'{{"{OTHER_TENANT}": "{OTHER_KEY}"}}'}
    env["HOLDFAST_GC_EVERY_S"] = "0"  # else a collection begins in the midst of some test
    with running(folder / "home", folder / "data", env=env, key=API_KEY) as service, CommandLines(service) as watcher:
        yield watcher


@pytest.fixture(scope="session")
def service(command_lines: CommandLines, request: pytest.FixtureRequest) -> Service:
    users = {item.path.stem for item in request.session.items if "service" in getattr(item, "fixturenames", ())}
    assert not users & OWN_SERVICES, "a parallel session would start the shared service twice"
    return command_lines.service


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture(scope="session")
def other_client(service: Service) -> Iterator[httpx.Client]:
    """A client with another tenant's key."""
    with service.client(OTHER_KEY) as client:
        yield client


@pytest.fixture
def boxes(client: httpx.Client) -> Iterator[Callable[[], HttpBox]]:
    """Makes sandboxes that are destroyed after the test."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(HttpBox(client, f"t-{uuid.uuid4().hex[:12]}").destroyed_at_the_end())


@pytest.fixture
def box(boxes: Callable[[], HttpBox]) -> HttpBox:
    return boxes()
