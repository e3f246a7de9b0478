"""Lifecycle rules that would delete layers of incremental backups are told from all others."""

from __future__ import annotations

from typing import Any

import pytest

from storage.lifecycle import over_layers

EXPIRE: dict[str, Any] = {"ID": "theirs", "Status": "Enabled", "Expiration": {"Days": 7}}


@pytest.mark.parametrize(
    "rule",
    [
        EXPIRE,
        {**EXPIRE, "Prefix": ""},
        {**EXPIRE, "Filter": {}},
        {**EXPIRE, "Filter": {"Prefix": ""}},
        {**EXPIRE, "Filter": {"Prefix": "ten"}},
        {**EXPIRE, "Prefix": "tenants/"},
        {**EXPIRE, "Filter": {"Prefix": "tenants/ac"}},
        {**EXPIRE, "Filter": {"Prefix": "tenants/acme/"}},
        {**EXPIRE, "Filter": {"Prefix": "tenants/acme/lay"}},
        {**EXPIRE, "Filter": {"Prefix": "tenants/acme/layers/5f"}},
        {**EXPIRE, "Filter": {"ObjectSizeGreaterThan": 5}},
        {**EXPIRE, "Filter": {"And": {"Prefix": "tenants/", "ObjectSizeGreaterThan": 5}}},
        {**EXPIRE, "Expiration": {"Date": "2030-01-01"}},
    ],
)
def test_a_rule_over_layers_is_named(rule: dict[str, Any]) -> None:
    assert over_layers([rule]) == ("theirs",)


@pytest.mark.parametrize(
    "rule",
    [
        {**EXPIRE, "Status": "Disabled"},
        {**EXPIRE, "Filter": {"Prefix": "backups/"}},
        {**EXPIRE, "Filter": {"Prefix": "logs/"}},
        {**EXPIRE, "Filter": {"Prefix": "tenants/acme/sandboxes/"}},
        {**EXPIRE, "Filter": {"Prefix": "tenantsx"}},
        {**EXPIRE, "Filter": {"Tag": {"Key": "a", "Value": "b"}}},
        {**EXPIRE, "Filter": {"And": {"Prefix": "", "Tags": [{"Key": "a", "Value": "b"}]}}},
        {**EXPIRE, "Expiration": {"ExpiredObjectDeleteMarker": True}},
        {"ID": "x", "Status": "Enabled", "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}},
        {"ID": "x", "Status": "Enabled", "NoncurrentVersionExpiration": {"NoncurrentDays": 1}},
    ],
)
def test_a_rule_that_leaves_layers_alone_is_not(rule: dict[str, Any]) -> None:
    assert over_layers([rule]) == ()
