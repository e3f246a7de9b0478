"""The number of patterns that exclude many entries of one directory from an archive."""

from __future__ import annotations

import random

import pytest

from actors.node import squashfs
from actors.node.exclusions import Exclusion, find_exclusion


@pytest.mark.parametrize("many", [1_000, 2_000])
@pytest.mark.parametrize(
    ("excluded", "kept"), [("{}.log", "{}.py"), ("tmp{}", "file{}"), (".x{}", ".y{}"), ("{}\n.log", "{}\n")]
)
def test_names_of_one_kind_take_as_few_patterns_however_many_they_are(excluded: str, kept: str, many: int) -> None:
    gone = [excluded.format(number).encode() for number in range(many)]
    exclusion = find_exclusion(gone, [kept.format(number).encode() for number in range(many)])
    lines, words = squashfs.exclude_lines([b"a b/" + name for name in gone], {b"a b/": exclusion})
    assert lines.count(b"\n") == 1
    assert words == []


def test_names_with_nothing_in_common_are_excluded_one_by_one() -> None:
    names = [b"%04d" % number for number in range(1_000)]
    random.Random(1).shuffle(names)
    exclusion = find_exclusion(names[:500], names[500:])
    assert len(exclusion.others) > 400
    lines, words = squashfs.exclude_lines(names[:500], {b"": exclusion})
    assert (lines.count(b"\n"), words) == (
        len(exclusion.others) + len(exclusion.beginnings) + len(exclusion.endings), []
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_the_patterns_match_all_excluded_names_and_no_other(seed: int) -> None:
    chance = random.Random(seed)
    letters = ["a", "b", ".", "ü", "\n"]
    names = {"".join(chance.choices(letters, k=chance.randint(1, 5))) for _ in range(600)}
    last = chance.choice(letters)
    gone = {name.encode() for name in names if name.endswith(last) or name.startswith("b")}
    kept = {name.encode() for name in names} - gone
    exclusion = find_exclusion(sorted(gone), sorted(kept))
    matched = {name for name in gone | kept if _matches(exclusion, name)}
    assert matched | exclusion.others == gone
    assert len(exclusion.others) < len(gone) / 2


def _matches(exclusion: Exclusion, name: bytes) -> bool:
    is_ended = not name.startswith(b".") and any(name.endswith(text) for text in exclusion.endings)
    return is_ended or any(name.startswith(text) for text in exclusion.beginnings)
