"""The table of settings, from the fields of `actors.settings.Settings` and their docstrings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import griffe

from actors.config import GIB, MIB, NODE_DATA_DIR
from actors.settings import Settings
from docs.generator.markdown import code, table

_SOURCES = Path(__file__).parents[2]


def settings() -> str:
    """One row for each environment variable: its name, its default and its meaning."""
    described = _module("actors.settings")["Settings"].members
    rows = [
        (code(variable), _default(Settings.model_fields[field].default), described[field].docstring.value)
        for field, variable in variables().items()
    ]
    of_a_node = _module("actors.config")["NODE_DATA_DIR"].docstring.value
    return table(("Name", "Default", "Meaning"), [*rows, (code(NODE_DATA_DIR), "", of_a_node)])


def variables() -> Mapping[str, str]:
    """The environment variable of each field of `Settings`."""
    prefix = Settings.model_config["env_prefix"]
    return {
        name: str(field.validation_alias or f"{prefix}{name}".upper()) for name, field in Settings.model_fields.items()
    }


def _module(name: str) -> Any:
    return griffe.load(name, search_paths=[_SOURCES])


def _default(value: Any) -> str:
    if value is None or value in ({}, ()):
        return ""
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, int | float):
        return code(_number(value))
    return code(value)


def _number(value: float) -> str:
    for size, unit in ((GIB, "GiB"), (MIB, "MiB")):
        if value >= size and value % size == 0:
            return f"{value:.0f} ({value // size:.0f} {unit})"
    return f"{value:.0f}"
