"""Clients with the shortened description of S3 address and sign as those with botocore's whole one."""

from __future__ import annotations

from datetime import datetime, tzinfo
from typing import Any

import pytest
from botocore.config import Config
from botocore.session import Session

from storage.s3_model import S3ModelFiles

CALLS: dict[str, dict[str, Any]] = {
    "get_object": {"Bucket": "a-bucket", "Key": "a/key +.x"},
    "put_object": {"Bucket": "a-bucket", "Key": "key", "ContentMD5": "1B2M2Y8AsgTpgAmY7PhCfg==", "ContentLength": 0},
    "upload_part": {"Bucket": "a-bucket", "Key": "key", "UploadId": "id", "PartNumber": 2, "ContentLength": 5},
    "head_object": {"Bucket": "a-bucket", "Key": "key", "IfMatch": '"e"'},
    "list_objects_v2": {"Bucket": "a-bucket", "Prefix": "p/", "MaxKeys": 7, "StartAfter": "p/q"},
    "get_bucket_lifecycle_configuration": {"Bucket": "a-bucket"},
}


class Clock(datetime):
    """A clock that stands still, so that equal requests have equal signatures."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Clock:
        return cls(2026, 2, 3, 4, 5, 6, tzinfo=tz)

    utcnow = now


@pytest.fixture(scope="module")
def whole() -> Session:
    return Session()


@pytest.fixture(scope="module")
def slim() -> Session:
    session = Session()
    session.get_component("data_loader").file_loader = S3ModelFiles()
    return session


def signed(session: Session, region: str, endpoint: str) -> dict[str, str]:
    client: Any = session.create_client(
        "s3",
        region_name=region,
        endpoint_url=endpoint,
        aws_access_key_id="AKIA",
        aws_secret_access_key="secret",
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )
    return {call: client.generate_presigned_url(call, Params=params, ExpiresIn=60) for call, params in CALLS.items()}


@pytest.mark.parametrize("region", ["auto", "us-east-1", "aws-global", "eu-central-1", "cn-north-1", "somewhere"])
@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9000", "https://s3.eu-central-1.amazonaws.com"])
def test_requests_are_signed_as_with_the_whole_description(
    monkeypatch: pytest.MonkeyPatch, slim: Session, whole: Session, region: str, endpoint: str
) -> None:
    monkeypatch.setattr("datetime.datetime", Clock)
    assert signed(slim, region, endpoint) == signed(whole, region, endpoint)


def test_nothing_of_the_model_is_missing_but_texts(slim: Session, whole: Session) -> None:
    ours, all_of_it = slim.get_service_model("s3"), whole.get_service_model("s3")
    assert ours.operation_names == all_of_it.operation_names
    assert set(ours.shape_names) == set(all_of_it.shape_names)
    for name in ours.shape_names:
        ours_shape, shape = ours.shape_for(name), all_of_it.shape_for(name)
        assert (ours_shape.type_name, ours_shape.serialization) == (shape.type_name, shape.serialization)
        assert list(getattr(ours_shape, "members", ())) == list(getattr(shape, "members", ()))
