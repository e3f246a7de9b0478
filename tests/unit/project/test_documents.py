"""Tests that the documents name only files, tests and pages that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]
DOCUMENTS = tuple(sorted((*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md"))))
PACKAGES = ("", "actors", "actors/node", "gateway", "gateway/embedded", "storage", "tests/acceptance")


def code() -> Iterator[str]:
    """Each text between backticks in a document, with the document's name."""
    for document in DOCUMENTS:
        for span in re.findall(r"`([^`\n]+)`", document.read_text()):
            yield f"{document.relative_to(PROJECT)}: {span}"


def named(pattern: str) -> list[str]:
    """The spans of code that match the pattern as a whole."""
    return sorted({span for span in code() if re.fullmatch(pattern, span.partition(": ")[2])})


@pytest.fixture(scope="module")
def tests() -> set[str]:
    """The names of all tests."""
    files = (PROJECT / "tests").rglob("test_*.py")
    return {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}


@pytest.mark.parametrize("span", named(r"test_\w+"))
def test_every_test_that_a_document_names_exists(span: str, tests: set[str]) -> None:
    assert span.partition(": ")[2] in tests


@pytest.mark.parametrize("span", named(r"[\w/-]+\.(py|yaml|lock)|tests(/\w+)+"))
def test_every_file_that_a_document_names_exists(span: str) -> None:
    name = span.partition(": ")[2]
    assert any((PROJECT / package / name).exists() for package in PACKAGES)


@pytest.mark.parametrize("document", sorted(PROJECT.glob("*.md")), ids=lambda document: document.name)
def test_every_link_of_a_document_beside_the_site_leads_to_a_file(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
        assert (PROJECT / target).is_file(), target


def test_the_documents_name_tests_and_files() -> None:
    assert len(named(r"test_\w+")) > 80 and len(named(r"[\w/-]+\.py")) > 20
