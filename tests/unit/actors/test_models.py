"""Validation by the models: accepted values, refused ones, and errors that do not repeat a value."""

from __future__ import annotations

import base64
import math
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from actors.client import Sandbox, ServiceCalls
from actors.errors import InvalidBackupConfigError, InvalidRequestError, PathForbiddenError
from actors.models import (
    MAX_INPUT_BYTES,
    MAX_STRING_BYTES,
    MAX_TIMEOUT_MS,
    MAX_VARIABLES,
    BackupOptions,
    Compression,
    DirectoryBackup,
    ExecRequest,
    ForgetOptions,
    RestoreMode,
    RestoreOptions,
    validated,
    writable_path,
)

ID = "01234567-89ab-4cde-8f01-23456789abcd"
SECRET = "s3cr3t-value"


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("/workspace", "/workspace"), ("/workspace/", "/workspace"), ("//workspace//a", "/workspace/a"),
        ("/workspace/./a", "/workspace/a"), ("/app/x", "/app/x"), ("/var/tmp", "/var/tmp"), ("/home/ü", "/home/ü"),
    ],
)  # fmt: skip
def test_directories_are_normalized(given: str, normal: str) -> None:
    assert BackupOptions(dir=given).dir == normal
    assert writable_path(given) == normal


@pytest.mark.parametrize(
    "bad",
    ["", "workspace", "/", "/etc", "/var", "/workspaces", "/workspace/..", "/workspace/../etc", "/workspace/a\0",
     "/workspace/" + "x" * 4096, 7, None, True, b"/workspace", ["/workspace"]],
)  # fmt: skip
def test_other_directories_are_refused(bad: Any) -> None:
    with pytest.raises(InvalidBackupConfigError, match="dir"):
        validated(BackupOptions, {"dir": bad}, InvalidBackupConfigError)


def test_a_paths_length_is_counted_in_bytes() -> None:
    writable_path("/workspace/" + "x" * 4085)
    with pytest.raises(InvalidRequestError):
        writable_path("/workspace/" + "ü" * 2043)
    with pytest.raises(PathForbiddenError):
        writable_path("/etc/passwd")


@pytest.mark.parametrize("name", ["", "a" * 256, "größer 🌲", None])
def test_names_may_be_anything_printable(name: str | None) -> None:
    assert BackupOptions(dir="/app", name=name).name == name


@pytest.mark.parametrize("name", ["a" * 257, "line\nbreak", "\x1b[0m", "\x7f", "\udc80", 5, True])
def test_control_characters_and_long_names_are_refused(name: Any) -> None:
    with pytest.raises(InvalidRequestError):
        validated(BackupOptions, {"dir": "/app", "name": name})


@pytest.mark.parametrize("ttl", [1, 0.001, 259_200, 3_000_000_000])
def test_times_to_live_are_finite_and_positive(ttl: float) -> None:
    assert BackupOptions(dir="/app", ttl=ttl).ttl == ttl
    assert BackupOptions(dir="/app").ttl == 259_200


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), True, False, "60", None, 4e9, 10**400])
def test_other_times_to_live_are_refused(ttl: Any) -> None:
    with pytest.raises(InvalidRequestError):
        validated(BackupOptions, {"dir": "/app", "ttl": ttl})


@pytest.mark.parametrize("bad", ["", "0123", ID.replace("-", ""), "{" + ID + "}", f"urn:uuid:{ID}", ID + "\n", 5, None])
def test_only_hyphenated_uuids_are_backup_ids(bad: Any) -> None:
    with pytest.raises(InvalidRequestError):
        validated(DirectoryBackup, {"id": bad, "dir": "/app"})


def test_backup_ids_become_lower_case() -> None:
    assert DirectoryBackup(id=ID.upper(), dir="/app").id == ID


@pytest.mark.parametrize("excludes", [[""], ["a\nb"], ["a\0b"], ["x" * 4097], ["a"] * 1001, "*.log", [7], None])
def test_impossible_exclude_patterns_are_refused(excludes: Any) -> None:
    with pytest.raises(InvalidRequestError):
        validated(BackupOptions, {"dir": "/app", "excludes": excludes})


@pytest.mark.parametrize(
    "compression",
    [{"format": "xz"}, {"format": "zstd", "level": 0}, {"format": "zstd", "level": 23}, {"format": "gzip", "level": 10},
     {"format": "lz4", "level": 1}, {"level": "3"}, {"level": True}, {"level": 1.5}, {"other": 1}, "zstd"],
)  # fmt: skip
def test_unknown_compressions_and_levels_are_refused(compression: Any) -> None:
    with pytest.raises(InvalidRequestError):
        validated(BackupOptions, {"dir": "/app", "compression": compression})


def test_every_compression_with_its_levels_is_accepted() -> None:
    for form, level in (("zstd", 22), ("zstd", None), ("gzip", 9), ("lz4", None)):
        assert Compression(format=form, level=level).level == level  # type: ignore[arg-type]


def test_a_mode_may_be_given_as_a_string() -> None:
    assert validated(RestoreOptions, {"id": ID, "dir": "/app", "mode": "copy"}).mode is RestoreMode.COPY
    assert RestoreOptions(id=ID, dir="/app").mode is RestoreMode.OVERLAY
    with pytest.raises(InvalidRequestError):
        validated(RestoreOptions, {"id": ID, "dir": "/app", "mode": "move"})


@pytest.mark.parametrize(
    "bad",
    [{"argv": []}, {"argv": "ls"}, {"argv": [1]}, {"argv": ["a\0"]}, {"argv": ["a"], "timeout_ms": 0},
     {"argv": ["a"], "timeout_ms": True}, {"argv": ["a"], "cwd": "x"}, {"argv": ["a"], "env": {"A=B": "x"}},
     {"argv": ["a"], "env": {"": "x"}}, {"argv": ["a"], "env": {"A": "x\0"}}, {"argv": ["x" * 1_000_001]},
     {"argv": ["a"], "other": 1}, {"argv": [""]}, {"argv": ["a"], "timeout_ms": 10**309}, {"argv": ["a"] * 4097},
     {"argv": ["a"], "timeout_ms": MAX_TIMEOUT_MS + 1}, {"argv": ["a"], "timeout_ms": -1},
     {"argv": ["a", "x" * (MAX_STRING_BYTES + 1)]}, {"argv": ["a", "é" * (MAX_STRING_BYTES // 2 + 1)]},
     {"argv": ["a"], "env": {"A": "x" * (MAX_STRING_BYTES - 1)}}, {"argv": ["a"], "env": {"x" * MAX_STRING_BYTES: ""}},
     {"argv": ["a"], "env": {f"V{n}": "x" for n in range(MAX_VARIABLES + 1)}}, {"argv": ["x" * 100_000] * 11},
     {"argv": ["a"], "stdin": b"x"}, {"argv": ["a"], "stdin": "x" * (MAX_INPUT_BYTES + 1)},
     {"argv": ["a"], "stdin": "é" * (MAX_INPUT_BYTES // 2 + 1)}, {"argv": ["a"], "stdin_base64": "no base64"},
     {"argv": ["a"], "stdin_base64": "eA=\n="}, {"argv": ["a"], "stdin_base64": "é"},
     {"argv": ["a"], "stdin_base64": base64.b64encode(bytes(MAX_INPUT_BYTES + 1)).decode()},
     {"argv": ["a"], "stdin_stream": 1}, {"argv": ["a"], "stdin": "", "stdin_stream": True},
     {"argv": ["a"], "stdin": "", "stdin_base64": ""}],
)  # fmt: skip
def test_impossible_commands_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        validated(ExecRequest, bad)


@pytest.mark.parametrize(
    "good",
    [{"argv": ["a"] * 4096}, {"argv": ["a"], "timeout_ms": MAX_TIMEOUT_MS}, {"argv": ["x" * MAX_STRING_BYTES]},
     {"argv": ["a"], "env": {"A": "x" * (MAX_STRING_BYTES - 2)}}, {"argv": ["x" * 100_000] * 10},
     {"argv": ["a"], "env": {f"V{n}": "x" for n in range(MAX_VARIABLES)}},
     {"argv": ["a"], "stdin": "é" * (MAX_INPUT_BYTES // 2)},
     {"argv": ["a"], "stdin_base64": base64.b64encode(bytes(MAX_INPUT_BYTES)).decode()}],
    ids=range(8),
)  # fmt: skip
def test_the_longest_commands_are_accepted(good: dict[str, Any]) -> None:
    assert validated(ExecRequest, good).argv == good["argv"]


@pytest.mark.parametrize("timeout_s", [math.inf, -math.inf, math.nan, 1e306, 1e300])
def test_a_timeout_that_is_no_number_of_milliseconds_is_refused(timeout_s: float) -> None:
    with pytest.raises(InvalidRequestError, match="timeout"):
        Sandbox("box").exec_stream(["true"], timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (BackupOptions, {"dir": f"/{SECRET}"}),
        (BackupOptions, {"dir": "/app", "name": f"{SECRET}\n"}),
        (BackupOptions, {"dir": "/app", "ttl": SECRET}),
        (BackupOptions, {"dir": "/app", "excludes": [f"{SECRET}\n"]}),
        (BackupOptions, {"dir": "/app", "compression": {"format": SECRET}}),
        (DirectoryBackup, {"id": SECRET, "dir": "/app"}),
        (ExecRequest, {"argv": [f"{SECRET}\0"]}),
        (ExecRequest, {"argv": ["a"], "env": {"A": f"{SECRET}\0"}}),
    ],
)
def test_no_error_repeats_a_value(model: Any, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        validated(model, values)
    assert SECRET not in f"{raised.value} {raised.value.context} {raised.value.hint}"


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        ("/workspace/\udcff", {"dir"}),
        (["/workspace", "/workspace/\udcff"], {"dir.1"}),
        ([], {"dir"}),
        (5, {"dir"}),
    ],
)
def test_the_error_for_a_wrong_dir_fits_one_directory_or_several(value: Any, fields: set[str]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        validated(ForgetOptions, {"dir": value})
    assert set(caught.value.context["fields"]) == fields


def test_models_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        setattr(BackupOptions(dir="/app"), "dir", "/tmp")  # noqa: B010


@pytest.mark.parametrize("tenant", ["", "x\udcff", "A", "a/b"])
def test_an_impossible_tenant_is_refused_before_any_call(tenant: str) -> None:
    for make in (lambda: ServiceCalls(tenant=tenant), lambda: Sandbox("box", tenant=tenant)):
        with pytest.raises(InvalidRequestError, match="tenant"):
            make()


@pytest.mark.parametrize("value", [BackupOptions(dir="/workspace"), Compression(), RestoreMode.COPY])
def test_a_pickle_names_its_class_by_the_package_alone(value: Any) -> None:
    pickled = pickle.dumps(value)
    assert b"actors.models." not in pickled
    assert pickle.loads(pickled) == value
