"""Tests of the examples that no other test runs: their syntax, and that what they name exists.

`tests/acceptance/test_documents.py` runs all others.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import click
import pytest
import typer
from ray.scripts.scripts import cli as ray_cli
from ray.serve.scripts import cli as serve_cli

from gateway.cli.app import app
from tests.support.container import FEWEST
from tests.support.examples import LANGUAGES, NOT_RUN, PROJECT, Block, blocks, pattern

EXAMPLES = [block for block in blocks() if block.language]
UNRUN = [block for block in EXAMPLES if block.reason_not_run is not None]
PARSERS: Mapping[str, Any] = {"holdfast": typer.main.get_command(app), "ray": ray_cli, "serve": serve_cli}


def unrun_commands() -> Iterator[list[str]]:
    """The words of each command that is not run."""
    for block in UNRUN:
        for command in block.commands:
            yield shlex.split(command, comments=True)


def first_line(block: Block) -> str:
    return f"{block.page}: {block.text.splitlines()[0]}"


@pytest.mark.parametrize("block", EXAMPLES, ids=first_line)
def test_each_example_has_a_language_and_its_syntax(block: Block) -> None:
    assert block.language in LANGUAGES, "a test runs sh, python and console; a picture has no language"
    if block.language == "python":
        compile(block.text, block.page, "exec")
        return
    read = subprocess.run(
        ["bash", "-n"], input="\n".join(block.commands), capture_output=True, text=True, timeout=20, check=False
    )
    assert (read.returncode, read.stderr) == (0, "")


def test_each_reason_not_to_run_an_example_is_needed() -> None:
    assert {block.reason_not_run for block in UNRUN} == set(NOT_RUN.values())
    for begin, reason in NOT_RUN.items():
        assert any(block.commands[0].startswith(begin) and block.reason_not_run == reason for block in UNRUN), begin


def test_only_transcripts_are_left_unrun() -> None:
    assert {block.language for block in UNRUN} == {"console"}


@pytest.mark.parametrize("words", [w for w in unrun_commands() if w[0] in (*PARSERS, "systemd-run")], ids=" ".join)
def test_each_command_that_is_not_run_has_a_name_and_options_that_exist(words: list[str]) -> None:
    parse(words)


@pytest.mark.parametrize(
    "words", [["ray", "drain-node", "--no-such-option"], ["holdfast", "serve", "--no-such-option"]]
)
def test_a_command_with_a_wrong_option_is_noticed(words: list[str]) -> None:
    with pytest.raises((click.UsageError, typer.exceptions.TyperException)):
        parse(words)


def parse(words: list[str]) -> None:
    """Reads the command line as its program does, from the program's name on. Raises a usage error."""
    at = next(index for index, word in enumerate(words) if word in PARSERS)
    command, arguments = PARSERS[words[at]], words[at + 1 :]
    context = command.make_context(words[at], arguments, resilient_parsing=True)
    _, inner, rest = command.resolve_command(context, arguments)
    inner.make_parser(inner.context_class(inner, parent=context)).parse_args(args=list(rest))


def test_each_file_and_target_that_an_unrun_example_names_exists() -> None:
    targets = re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(), flags=re.MULTILINE)
    for words in unrun_commands():
        files = [word for word in words if re.fullmatch(r"(scripts/)?[\w-]+\.(yaml|service)", word)]
        assert all((PROJECT / file).exists() for file in files), files
        assert words[0] != "make" or words[1] in targets


def test_the_example_for_docker_has_the_fewest_capabilities() -> None:
    (words,) = (words for words in unrun_commands() if words[0] == "docker")
    added = [value for option, value in pairwise(words) if option == "--cap-add"]
    assert sorted(added) == sorted(FEWEST)


def test_an_output_matches_what_is_shown_of_it() -> None:
    assert pattern("a…c\n…\nend\n").fullmatch("abc\n1\n2\nend\n")
    assert pattern("…\n").fullmatch("")
    assert not pattern("a\n").fullmatch("ab\n")
    assert not pattern("a…c\n").fullmatch("a\nc\n")


def test_a_transcript_is_taken_apart() -> None:
    block = Block("page", "console", "$ one \\\n    more\nshown\n$ two\n")
    assert block.transcript == [("one \\\n    more\n", "shown\n"), ("two\n", "")]
