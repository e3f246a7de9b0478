"""Settings: read from the environment, and secrets kept out of everything else."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from actors.settings import Settings, take_secrets_out_of_the_environment

BUCKET = {
    "BACKUP_BUCKET_NAME": "my-bucket",
    "CLOUDFLARE_ACCOUNT_ID": "account",
    "R2_ACCESS_KEY_ID": "an-access-key-id",
    "R2_SECRET_ACCESS_KEY": "a-secret-access-key",
}


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("HOLDFAST_", "R2_", "BACKUP_", "CLOUDFLARE_", "SANDBOX_")):
            monkeypatch.delenv(name)


def given(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return Settings()


@pytest.mark.parametrize("missing", BUCKET)
def test_a_missing_setting_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    settings = given(monkeypatch, **{name: value for name, value in BUCKET.items() if name != missing})
    (named,) = settings.missing_bucket_settings()
    assert named.startswith(missing)
    assert settings.bucket() is None
    assert settings.names_a_bucket
    config = settings.sandbox_config(bucket=None, signing_key=SecretStr("key"))
    assert config.missing_settings == (named,)


def test_with_nothing_set_every_needed_setting_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = given(monkeypatch, BACKUP_BUCKET_NAME="")
    assert not settings.names_a_bucket
    assert len(settings.missing_bucket_settings()) == 4


def test_the_bucket_is_reached_by_an_account_or_by_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = given(monkeypatch, **BUCKET).bucket()
    assert bucket is not None
    assert bucket.endpoint_url == "https://account.r2.cloudflarestorage.com"
    bucket = given(monkeypatch, BACKUP_BUCKET_ENDPOINT="https://s3.example.com/").bucket()
    assert bucket is not None
    assert bucket.endpoint_url == "https://s3.example.com"


@pytest.mark.parametrize(
    "url",
    ["s3.example.com", "ftp://host", "https://", "https://user:pass@host", "https://host/path", "https://host?x=1",
     "https://host#x", "file:///etc"],
)  # fmt: skip
def test_an_endpoint_with_more_than_an_origin_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    with pytest.raises(ValidationError):
        given(monkeypatch, BACKUP_BUCKET_ENDPOINT=url)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("BACKUP_BUCKET_ENDPOINT", "http://minio:9000", "BACKUP_BUCKET_ENDPOINT"),
        ("BACKUP_BUCKET_NAME", "Not A Bucket", "BACKUP_BUCKET_NAME"),
        ("HOLDFAST_PART_BYTES", "1000", "HOLDFAST_PART_BYTES"),
        ("HOLDFAST_EXEC_TIMEOUT_S", "-1", "HOLDFAST_EXEC_TIMEOUT_S"),
        ("HOLDFAST_BACKUP_PAUSE_S", "0", "HOLDFAST_BACKUP_PAUSE_S"),
        ("HOLDFAST_TRANSFER_CONCURRENCY", "0", "HOLDFAST_TRANSFER_CONCURRENCY"),
    ],
)
def test_a_bad_setting_is_refused_at_the_start_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    with pytest.raises(ValidationError, match=said) as raised:
        given(monkeypatch, **{**BUCKET, name: value})
    assert "a-secret-access-key" not in str(raised.value.errors(include_input=False))


def test_http_to_another_host_can_be_allowed_on_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, **{**BUCKET, "BACKUP_BUCKET_ENDPOINT": "http://minio:9000", "HOLDFAST_ALLOW_HTTP": "true"})


def test_two_tenants_may_not_share_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="share"):
        given(monkeypatch, HOLDFAST_API_KEYS='{"one": "same-key-for-both", "two": "same-key-for-both"}')
    with pytest.raises(ValidationError, match="share"):
        given(monkeypatch, HOLDFAST_API_KEYS='{"one": "the-same-key"}', SANDBOX_API_KEY="the-same-key")


def test_a_key_must_not_be_short(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="8 characters"):
        given(monkeypatch, SANDBOX_API_KEY="short")


def test_the_default_tenants_key_is_the_sandbox_api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = given(monkeypatch, HOLDFAST_API_KEYS='{"one": "key-of-one"}', SANDBOX_API_KEY="key-of-default")
    keys = {tenant: key.get_secret_value() for tenant, key in settings.keys_by_tenant().items()}
    assert keys == {"one": "key-of-one", "default": "key-of-default"}


def test_secrets_are_removed_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given(
        monkeypatch,
        **BUCKET,
        SANDBOX_API_KEY="a-sandbox-api-key",
        HOLDFAST_SIGNING_KEY="a-signing-key",
        HOLDFAST_OLD_SIGNING_KEYS='["an-old-signing-key"]',
    )
    take_secrets_out_of_the_environment()
    left = " ".join(f"{name}={value}" for name, value in os.environ.items())
    for secret in (
        "an-access-key-id",
        "a-secret-access-key",
        "a-sandbox-api-key",
        "a-signing-key",
        "an-old-signing-key",
    ):
        assert secret not in left


def test_no_repr_shows_a_secret_and_the_config_survives_pickling(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = given(
        monkeypatch, **BUCKET, SANDBOX_API_KEY="a-sandbox-api-key", HOLDFAST_SIGNING_KEY="a-signing-key",
        HOLDFAST_DATA_DIR="relative",
    )  # fmt: skip
    config = settings.sandbox_config(bucket=settings.bucket(), signing_key=SecretStr("a-signing-key"))
    for shown in (repr(settings), str(settings), repr(config), str(config)):
        for secret in ("a-secret-access-key", "a-sandbox-api-key", "a-signing-key", "an-access-key-id"):
            assert secret not in shown
    assert pickle.loads(pickle.dumps(config)) == config
    assert config.node.data_dir == Path("relative").absolute()
