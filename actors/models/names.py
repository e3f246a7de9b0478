"""Models of the names and labels that a request may contain, and of one page of the list of sandboxes."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, RootModel

from actors.models.base import Model

DEFAULT_TENANT = "default"
MAX_LABELS = 64
MAX_LABEL_LENGTH = 256
MAX_PAGE = 1000
MAX_CURSOR_LENGTH = 1024
_ID_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,126}[a-z0-9])?")
_LABEL_KEY = re.compile(r"[a-zA-Z0-9._/-]{1,63}")


def _identifier(value: str) -> str:
    if not _ID_PATTERN.fullmatch(value):
        raise ValueError("must be 1 to 128 characters of a-z, 0-9 and '-', beginning and ending with a letter or digit")
    return value


def _labels(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MAX_LABELS:
        raise ValueError(f"a sandbox may have at most {MAX_LABELS} labels")
    if not all(_LABEL_KEY.fullmatch(key) for key in value):
        raise ValueError("a label's key must be 1 to 63 characters of a-z, A-Z, 0-9, '.', '_', '/' and '-'")
    if not all(len(text) <= MAX_LABEL_LENGTH and text.isprintable() for text in value.values()):
        raise ValueError(f"a label's value must be at most {MAX_LABEL_LENGTH} printable characters")
    return value


SANDBOX_ID_SCHEMA = {"pattern": f"^{_ID_PATTERN.pattern}$"}
"""The pattern of names in the OpenAPI document. `_identifier` enforces it."""
_LABELS_SCHEMA = {"propertyNames": {"pattern": f"^{_LABEL_KEY.pattern}$"}, "maxProperties": MAX_LABELS}

SandboxId = Annotated[str, AfterValidator(_identifier), Field(json_schema_extra=SANDBOX_ID_SCHEMA)]
LabelValues = Annotated[dict[str, str], AfterValidator(_labels), Field(json_schema_extra=_LABELS_SCHEMA)]


class TenantName(Model):
    """The name of a tenant, to whom sandboxes and backups belong."""

    tenant: SandboxId


class Labels(RootModel[LabelValues]):
    """All labels of a sandbox: keys and values that its owner chooses. A key may look like `team/service.name`."""

    model_config = ConfigDict(frozen=True, strict=True)


class LabelChange(Model):
    """Labels to set, and keys of labels to remove. All other labels stay."""

    labels: LabelValues = {}
    removed: Annotated[list[str], Field(max_length=MAX_LABELS)] = []


class NewSandbox(Model):
    """The options of a new sandbox."""

    labels: LabelValues = {}


class PageOptions(Model):
    """The page of a list to return: the first one, or the one after the page that gave `cursor`."""

    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 100
    cursor: Annotated[str, Field(max_length=MAX_CURSOR_LENGTH)] | None = None


class SandboxRef(Model):
    """One row of the list of sandboxes."""

    id: str
    running: bool


class SandboxPage(Model):
    """One page of a tenant's sandboxes, in the order of their ids."""

    sandboxes: list[SandboxRef]
    cursor: str | None = None
