"""Tests of the README's tables against the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from actors.config import NODE_DATA_DIR
from actors.errors import DRAINING
from actors.faults import SENTENCES
from actors.sandbox.recovery import DIRECTORY_MISSING
from actors.settings import Settings
from gateway.status import STATUS

README = (Path(__file__).parents[3] / "README.md").read_text()


def setting_names(settings: type[BaseSettings]) -> list[str]:
    prefix = settings.model_config["env_prefix"]
    return [
        str(field.validation_alias) if field.validation_alias else f"{prefix}{name}".upper()
        for name, field in settings.model_fields.items()
    ]


def described(name: str) -> bool:
    """True if the README names the setting in full, or as `…_TAIL` of its family."""
    return f"`{name}`" in README or any(
        name.endswith(tail) and name.startswith("HOLDFAST_") for tail in re.findall(r"`…(_[A-Z_]+)`", README)
    )


@pytest.mark.parametrize("name", setting_names(Settings))
def test_every_setting_has_a_row(name: str) -> None:
    assert described(name)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(HOLDFAST_[A-Z_]+)`", README))))
def test_every_setting_of_the_readme_exists(name: str) -> None:
    assert name in setting_names(Settings) or name in ("HOLDFAST_ALLOW_MISSING_DRIVERS", NODE_DATA_DIR)


@pytest.mark.parametrize(("code", "status"), sorted(STATUS.items()))
def test_every_error_code_has_a_row_with_its_status(code: str, status: int) -> None:
    rows = [line for line in README.splitlines() if line.startswith("|") and f"`{code}`" in line]
    assert rows, f"{code} has no row"
    assert str(int(status)) in rows[0]


@pytest.mark.parametrize("reason", sorted({*SENTENCES, DIRECTORY_MISSING, DRAINING}))
def test_every_reason_has_a_row(reason: str) -> None:
    assert any(line.startswith("|") and f"`{reason}`" in line for line in README.splitlines())
