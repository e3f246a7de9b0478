"""Every cell of the table in docs/reference/attributes.md, compared with what really happens, on every mount driver."""

from __future__ import annotations

import os
import re
import subprocess
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from actors.errors import HoldfastError
from actors.models import NotKept
from actors.node.drivers import Driver
from actors.sandbox.facade import LocalSandbox
from tests.support.attributes import ATTRIBUTES, Attribute
from tests.support.sandboxes import Node, backup, hydrate, restore
from tests.support.service import PROJECT

_ROW = re.compile(r"\| (.+?) \| (.+?) \| (.+?) \| (.+?) \| (?:`(\w+)` )?\|")
_OF_DRIVERS = re.compile(r"(`\w+`(?:, `\w+`)*): (.+)")
_DRIVERS = frozenset(Driver)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: the cells of the three ways, and the name of its count."""

    overlay: str
    copy: str
    tar: str
    counted_as: str | None


def rows() -> Mapping[str, Row]:
    """Parses the document's table."""
    found = {}
    for line in (PROJECT / "docs" / "reference" / "attributes.md").read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| Attribute"):
            match = _ROW.fullmatch(line)
            assert match is not None, f"not a row: {line}"
            name, overlay, copy, tar, counted_as = match.groups()
            found[name] = Row(overlay, copy, tar, counted_as)
    return found


ROWS = rows()


def said(cell: str, driver: Driver) -> str:
    """Returns a cell's statement about a driver."""
    answer, *special = cell.split("; ")
    for clause in special:
        match = _OF_DRIVERS.fullmatch(clause)
        assert match is not None, f"not a clause about drivers: {clause}"
        names = {Driver(name.strip("`")) for name in match[1].split(", ")}
        if driver in names:
            answer = match[2]
    return answer


def place_of(root: Path, name: str) -> Path:
    """The folder that is used for this attribute alone."""
    return root if ATTRIBUTES[name].is_of_root else root / f"{list(ATTRIBUTES).index(name)}"


def make(root: Path, owner: int, names: Iterable[str]) -> dict[str, object]:
    """Sets attributes on a directory and on folders in it; returns the visible value of each."""
    os.chown(root, owner, owner)
    ordered = sorted(names, key=lambda name: ATTRIBUTES[name].is_of_root)
    for name in ordered:
        place_of(root, name).mkdir(exist_ok=True)
        os.chown(place_of(root, name), owner, owner)
        ATTRIBUTES[name].make(place_of(root, name))
    return {name: ATTRIBUTES[name].look(place_of(root, name)) for name in ordered}


def what_became(attribute: Attribute, before: object, after: object) -> set[str]:
    """Returns every word of the table that is true."""
    words = {f"changed: {change}" for change, is_it in attribute.changes.items() if is_it(before, after)}
    if after == before:
        words.add("kept")
    if after == attribute.absent:
        words.add("left out")
    return words


def wrong_cells(before: Mapping[str, object], root: Path, cell: Callable[[str], str]) -> dict[str, object]:
    """Returns the attributes whose cell contradicts the visible value, with both."""
    wrong: dict[str, object] = {}
    for name, value in before.items():
        after = ATTRIBUTES[name].look(place_of(root, name))
        if cell(name) not in what_became(ATTRIBUTES[name], value, after):
            wrong[name] = (cell(name), value, after)
    return wrong


def unflagged(root: Path) -> None:
    """Removes the flags that would keep the test from deleting the tree."""
    subprocess.run(["chattr", "-R", "-i", "-a", root], capture_output=True)


def work(node: Node, box: LocalSandbox) -> Path:
    """The sandbox's /workspace, as the node sees it."""
    return node.tree(box) / "workspace"


def test_the_document_has_a_row_for_each_attribute() -> None:
    assert list(ROWS) == list(ATTRIBUTES)
    assert {row.counted_as for row in ROWS.values()} - {None} == set(NotKept.model_fields)


@pytest.mark.parametrize("mode", ["overlay", "copy"])
def test_a_backup_keeps_each_attribute_as_the_document_says(node: Node, mode: str) -> None:
    box = node.sandbox()

    def cell(name: str) -> str:
        return said(getattr(ROWS[name], mode), node.driver)

    root = work(node, box) / "all"
    root.mkdir()
    try:
        before = make(root, node.owner(box), [name for name in ROWS if cell(name) != "refused"])
        handle = backup(box, "/workspace/all")
        restore(box, handle, "/workspace/again", mode)
        assert wrong_cells(before, work(node, box) / "again", cell) == {}
        for name in ROWS:
            if cell(name) == "refused":
                refused = work(node, box) / f"refused {list(ROWS).index(name)}"
                refused.mkdir()
                make(refused, node.owner(box), [name])
                with pytest.raises(HoldfastError):
                    restore(box, backup(box, f"/workspace/{refused.name}"), "/workspace/none", mode)
                assert not (work(node, box) / "none").exists()
    finally:
        unflagged(root)


def test_a_backup_counts_what_the_document_says(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    wrong: dict[str, object] = {}
    for name, row in ROWS.items():
        root = work(kernel_node, box) / f"{list(ROWS).index(name)}"
        root.mkdir()
        try:
            if row.copy != "refused":
                make(root, kernel_node.owner(box), [name])
                kept = kernel_node.catalog().get("default", backup(box, f"/workspace/{root.name}").id).not_kept
                assert kept is not None
                counted = {field for field, count in kept.model_dump().items() if count}
                if counted != ({row.counted_as} - {None}):
                    wrong[name] = counted
        finally:
            unflagged(root)
    assert wrong == {}


def test_persist_and_hydrate_keep_each_attribute_as_the_document_says(kernel_node: Node) -> None:
    one, other = kernel_node.sandbox("one"), kernel_node.sandbox("other")
    root = work(kernel_node, one)
    try:
        before = make(root, kernel_node.owner(one), [name for name, row in ROWS.items() if row.tar != "refused"])
        hydrate(other, b"".join(one.persist(uuid.uuid4().hex)))
        assert wrong_cells(before, work(kernel_node, other), lambda name: ROWS[name].tar) == {}
    finally:
        unflagged(root)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.tar == "refused"])
def test_persist_or_hydrate_refuse_what_the_document_says(kernel_node: Node, name: str) -> None:
    one, other = kernel_node.sandbox("one"), kernel_node.sandbox("other")
    make(work(kernel_node, one), kernel_node.owner(one), [name])
    with pytest.raises(HoldfastError):
        hydrate(other, b"".join(one.persist(uuid.uuid4().hex)))
