"""Commands that cannot start: each gets an error that names the cause and whose fault it is, before any output."""

from __future__ import annotations

import os
import resource
import uuid
from collections.abc import Callable, Iterator

import pytest

from actors.errors import (
    ExecError,
    FileNotFoundInSandboxError,
    HoldfastError,
    InvalidRequestError,
    PathForbiddenError,
    SandboxUnavailableError,
)
from actors.models import MAX_STRING_BYTES, ExecRequest
from actors.sandbox.facade import LocalSandbox
from tests.support.node_faults import tools_replaced
from tests.support.sandboxes import Node, backup, restore, run, sh

PREPARED = """
mkdir 'real dir' closed; echo > file; ln -s 'real dir' link; ln -s missing dangling; ln -s loop loop
ln -s /usr/bin outside; ln -s /etc/ssl etc; chmod 000 closed; mkdir -p deep/closed/in; chmod 000 deep/closed
"""
NOT_ENTERED: dict[str, type[HoldfastError]] = {
    "/workspace/missing": FileNotFoundInSandboxError,
    "/workspace/missing/below": FileNotFoundInSandboxError,
    "/workspace/file": FileNotFoundInSandboxError,
    "/workspace/file/below": FileNotFoundInSandboxError,
    "/workspace/dangling": FileNotFoundInSandboxError,
    "/workspace/loop": FileNotFoundInSandboxError,
    "/workspace/" + "x" * 256: FileNotFoundInSandboxError,
    "/workspace" + "/x" * 2043: FileNotFoundInSandboxError,
    "/workspace/a\nbwrap: Can't chdir to /: File exists": FileNotFoundInSandboxError,
    "/workspace/closed": PathForbiddenError,
    "/workspace/deep/closed/in": PathForbiddenError,
    "/missing": FileNotFoundInSandboxError,
    "/usr/bin/env": FileNotFoundInSandboxError,
    "/etc/passwd": FileNotFoundInSandboxError,
    "/dev/null": FileNotFoundInSandboxError,
}


@pytest.fixture
def box(kernel_node: Node) -> LocalSandbox:
    box = kernel_node.sandbox()
    sh(box, PREPARED)
    return box


def refused(box: LocalSandbox, **command: object) -> HoldfastError:
    """Returns the error of a command that must not start; there is no output before it."""
    events = box.exec(uuid.uuid4().hex, ExecRequest.model_validate({"argv": ["echo", "begun"], **command}))
    with pytest.raises(HoldfastError) as raised:
        print(next(iter(events)))
    return raised.value


@pytest.mark.parametrize(("cwd", "kind"), NOT_ENTERED.items(), ids=[cwd[:40] for cwd in NOT_ENTERED])
def test_a_directory_that_cannot_be_entered_is_named(box: LocalSandbox, cwd: str, kind: type[HoldfastError]) -> None:
    error = refused(box, cwd=cwd)
    assert type(error) is kind, error
    assert error.context == {"cwd": cwd}


@pytest.mark.parametrize(
    ("cwd", "shown"),
    [("/workspace/link", "real dir"), ("/workspace/real dir", "real dir"), ("/workspace/outside", "bin"),
     ("/workspace/etc", "ssl"), ("/usr/lib", "lib"), ("/", "/"), ("/proc/self", "self")],
)  # fmt: skip
def test_a_working_directory_that_can_be_entered_is_entered(box: LocalSandbox, cwd: str, shown: str) -> None:
    ended = run(box, "sh", "-c", 'basename "$(pwd -P)"', cwd=cwd)
    assert ended.exit_code == 0, ended
    assert shown == "self" or ended.stdout.decode() == f"{shown}\n"


def test_a_restored_directory_without_permission_is_named_on_every_driver(node: Node) -> None:
    box = node.sandbox()
    sh(box, "mkdir -p data/closed; echo > data/file; chmod 0 data/closed")
    restore(box, backup(box, "/workspace/data"))
    assert type(refused(box, cwd="/workspace/data/closed")) is PathForbiddenError
    assert type(refused(box, cwd="/workspace/data/file")) is FileNotFoundInSandboxError
    assert type(refused(box, cwd="/workspace/data/none")) is FileNotFoundInSandboxError


@pytest.mark.parametrize("path", ["", "/nowhere", ":", "/etc/passwd"])
def test_a_command_is_looked_up_as_a_shell_does_for_any_path_variable(box: LocalSandbox, path: str) -> None:
    sh(box, "printf '#!/bin/sh\\necho here\\n' > here; chmod +x here; cp here a=b")

    def status(*argv: str) -> int:
        request = ExecRequest(argv=list(argv), env={"PATH": path})
        return [getattr(event, "exit_code", None) for event in box.exec(uuid.uuid4().hex, request)][-1] or 0

    assert status("ls") in (126, 127)
    assert status("no=such") in (126, 127)
    assert status("/bin/true") == status("./here") == status("./a=b") == 0
    assert status("/workspace/file") == 126


def test_a_variable_of_any_name_reaches_a_command_of_any_name(box: LocalSandbox) -> None:
    sh(box, "ln -s /usr/bin/env a=b")
    env = {"a.b": "1", "npm-config": "2", "É": "3", "a b": "4", "new\nline": "5"}
    for argv in (["env", "-0"], ["/workspace/a=b", "-0"]):
        events = list(box.exec(uuid.uuid4().hex, ExecRequest(argv=argv, env=env)))
        out = b"".join(getattr(event, "data", b"") for event in events).decode().split("\0")
        assert {f"{name}={value}" for name, value in env.items()} <= set(out)


def test_the_longest_arguments_and_environment_arrive(box: LocalSandbox) -> None:
    longest = "x" * MAX_STRING_BYTES
    assert run(box, "sh", "-c", "echo ${#1}", "sh", longest).stdout == f"{MAX_STRING_BYTES}\n".encode()
    several = [longest] * 7
    assert run(box, "sh", "-c", "echo $#", "sh", *several).stdout == b"7\n"
    env = {f"V{number}": "y" for number in range(1024)}
    many = ExecRequest(argv=["sh", "-c", "env | grep -c ^V", *["z"] * 4093], env=env)
    assert b"".join(getattr(event, "data", b"") for event in box.exec("many", many)) == b"1024\n"
    value = ExecRequest(argv=["sh", "-c", "echo ${#LONG}"], env={"LONG": longest[len("LONG=") :]})
    (printed, _) = box.exec("long", value)
    assert getattr(printed, "data", b"") == f"{MAX_STRING_BYTES - 5}\n".encode()


@pytest.fixture
def small_stack() -> Iterator[None]:
    """Gives the programs of this process as few bytes for arguments as the kernel allows."""
    before = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (1024 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_STACK, before)


def test_arguments_too_long_for_the_node_are_the_callers_error(box: LocalSandbox, small_stack: None) -> None:
    found = []
    for words in range(240, 270, 2):  # of 1,000 bytes, and 8 for the pointer
        try:
            ended = run(box, "true", *["x" * 999] * words)
        except InvalidRequestError as e:
            found.append(e.message)
        else:
            assert ended.exit_code in (0, 126)  # 126: there was no room for the last program's environment
            found.append("ran")
    assert found[0] == "ran" and "longer than the node takes" in found[-1]


UNBUILT: dict[str, tuple[str, str]] = {
    "no box": ("echo 'bwrap: Creating new namespace failed: Operation not permitted' >&2; exit 1", "BOX_FAILED"),
    "no program": ("exec /none", "BOX_FAILED"),
    "no memory": ("echo 'bwrap: Out of memory' >&2; exit 1", "OUT_OF_MEMORY"),
    "no processes": ('echo "bwrap: Can\'t fork: Resource temporarily unavailable" >&2; exit 1', "NO_PROCESSES"),
    "killed": ("kill -9 $$", "TOOL_KILLED"),
    "a box that says nothing": ("exit 1", "BOX_FAILED"),
}


@pytest.mark.parametrize(("script", "reason"), UNBUILT.values(), ids=UNBUILT.keys())
def test_a_box_that_cannot_be_built_is_reported_before_any_output(
    kernel_node: Node, box: LocalSandbox, script: str, reason: str
) -> None:
    with tools_replaced(kernel_node.data_dir, {"bwrap": script}):
        error = refused(box)
    assert isinstance(error, SandboxUnavailableError), error
    assert error.context == {"outcome": "not_executed", "reason": reason}
    assert run(box, "echo", "again").stdout == b"again\n"


@pytest.fixture
def few_descriptors() -> Iterator[Callable[[int], None]]:
    """Limits the descriptors of this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def leave(count: int) -> None:
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + count, before[1]))

    yield leave
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("left", range(0, 16, 3))
def test_a_node_out_of_descriptors_is_not_reported_as_an_internal_error(
    box: LocalSandbox, few_descriptors: Callable[[int], None], left: int
) -> None:
    few_descriptors(left)
    try:
        run(box, "true")
    except (SandboxUnavailableError, ExecError) as e:
        assert e.context.get("reason") == "NODE_FAILED"
