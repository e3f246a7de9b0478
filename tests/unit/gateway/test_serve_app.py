"""The application built for Ray Serve, and a replica's refusals to start. The acceptance tests run it."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from pathlib import Path

import pytest
from ray import cloudpickle
from starlette.types import Message, Receive, Scope, Send

from actors.errors import InvalidRequestError
from actors.settings import SECRET_SETTINGS, Settings
from gateway import serve_app
from gateway.shared_service import shared_service
from tests.unit.gateway.conftest import KEY

BUCKET = {
    "BACKUP_BUCKET_NAME": "of-a-test",
    "BACKUP_BUCKET_ENDPOINT": "http://127.0.0.1:9",
    "R2_ACCESS_KEY_ID": "access-key-of-a-test",
    "R2_SECRET_ACCESS_KEY": "secret-key-of-a-test",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (*SECRET_SETTINGS, *BUCKET, "CLOUDFLARE_ACCOUNT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOLDFAST_DATA_DIR", str(tmp_path))


def test_the_application_sent_to_replicas_contains_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**BUCKET, "SANDBOX_API_KEY": KEY}.items():
        monkeypatch.setenv(name, value)

    built = serve_app.application({})._bound_deployment
    sent: bytes = cloudpickle.dumps((built.func_or_class, built.init_args, built.init_kwargs))  # type: ignore[no-untyped-call]

    assert b"replica_app" in sent
    assert not [value for value in (*BUCKET.values(), KEY) if value.encode() in sent]


def test_the_error_for_arguments_in_a_serve_config_shows_their_names_only() -> None:
    with pytest.raises(InvalidRequestError, match="api_key") as refused:
        serve_app.application({"api_key": KEY})
    assert KEY not in str(refused.value)


def test_the_error_of_a_replica_without_settings_names_the_missing_ones() -> None:
    with pytest.raises(InvalidRequestError, match=r"BACKUP_BUCKET_NAME.*SANDBOX_API_KEY missing"):
        serve_app.replica_app()


def test_the_error_of_a_replica_with_a_wrong_setting_shows_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_API_KEY", "short-1")
    with pytest.raises(InvalidRequestError, match="at least 8 characters") as refused:
        serve_app.replica_app()
    assert "short-1" not in repr(refused.value) and refused.value.__suppress_context__


def test_a_shared_service_without_a_signing_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**BUCKET, "SANDBOX_API_KEY": KEY}.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(InvalidRequestError, match="HOLDFAST_SIGNING_KEY missing") as refused:
        shared_service(Settings())
    assert not [value for value in (*BUCKET.values(), KEY) if value in f"{refused.value!r} {refused.value.hint}"]


@pytest.mark.parametrize(
    ("old", "verifying"),
    [(None, ("secret-key-of-a-test",)), ("[]", ()), ('["an-earlier-key", "another"]', ("an-earlier-key", "another"))],
)
def test_the_old_signing_keys_default_to_the_buckets_secret(
    monkeypatch: pytest.MonkeyPatch, old: str | None, verifying: tuple[str, ...]
) -> None:
    for name, value in {**BUCKET, "SANDBOX_API_KEY": KEY, "HOLDFAST_SIGNING_KEY": "a-signing-key"}.items():
        monkeypatch.setenv(name, value)
    if old is not None:
        monkeypatch.setenv("HOLDFAST_OLD_SIGNING_KEYS", old)

    config = shared_service(Settings()).config
    assert tuple(key.get_secret_value() for key in config.old_signing_keys) == verifying
    assert not [key for key in ("a-signing-key", *verifying) if key in repr(config)]


def test_the_shared_service_has_the_buckets_and_tenants_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**BUCKET, "SANDBOX_API_KEY": KEY, "HOLDFAST_SIGNING_KEY": "a-signing-key"}.items():
        monkeypatch.setenv(name, value)

    service = shared_service(Settings())

    assert service.bucket == "of-a-test"
    assert {tenant: key.get_secret_value() for tenant, key in service.keys_by_tenant.items()} == {"default": KEY}
    assert service.config.signing_key.get_secret_value() == "a-signing-key"


@pytest.mark.parametrize(("ours", "kept"), [(b"of-serve", False), (b"another", True)])
def test_the_answer_has_one_request_id_though_serve_and_the_gateway_both_set_it(ours: bytes, kept: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", ours)]})

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing to receive")

    scope = {"type": "http", "headers": [(b"x-request-id", b"of-serve")]}
    asyncio.run(serve_app._OneRequestId(app)(scope, receive, send))

    assert [value for name, value in sent[0]["headers"]] == ([ours] if kept else [])


def test_a_request_is_served_in_an_empty_context_and_cancelled_with_serves_task() -> None:
    """Ray finds the parent of a call in such a variable, and cancels the calls of a cancelled parent."""
    parent: ContextVar[str | None] = ContextVar("parent", default=None)
    seen: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(parent.get())
        try:
            await receive()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def send(message: Message) -> None:
        raise AssertionError("nothing to send")

    async def scenario() -> None:
        parent.set("the request's task")
        serving = asyncio.ensure_future(serve_app._ContextOfItsOwn(app)({"type": "http"}, receive, send))
        while not seen:
            await asyncio.sleep(0)
        serving.cancel()
        await asyncio.wait({serving})
        assert serving.cancelled()

    asyncio.run(scenario())
    assert seen == [None, "cancelled"]
