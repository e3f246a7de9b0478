"""The decision whether mksquashfs looks for duplicates: only where the search can save more time than it takes."""

from __future__ import annotations

import pytest

from actors.node.duplicates import SizeCounts


def counted(files: int, size_bytes: int, *, others: int = 0) -> SizeCounts:
    """`files` files of one size, and `others` of which each has its own."""
    sizes = SizeCounts()
    for _ in range(files):
        sizes.add(size_bytes)
    for other in range(others):
        sizes.add(size_bytes + 1 + other)
    return sizes


@pytest.mark.parametrize(
    ("files", "size_bytes", "costs_more"),
    [
        (0, 1, False),
        (1000, 1024, False),
        (5000, 1024, False),
        (10_000, 1024, True),
        (50_000, 1024, True),
        (10_000, 2**20, False),  # if they were equal, the search would save 10 GB
        (50_000, 0, False),
        (50_000, 2**16, False),
    ],
)
def test_small_files_of_one_size_are_not_compared_when_they_are_many(
    files: int, size_bytes: int, costs_more: bool
) -> None:
    assert counted(files, size_bytes).search_costs_more() is costs_more


def test_files_of_different_sizes_are_compared() -> None:
    assert not counted(1, 1024, others=60_000).search_costs_more()


def test_sizes_with_the_same_low_bits_count_as_one() -> None:
    sizes = SizeCounts()
    for number in range(20_000):
        sizes.add(1 + (number % 2) * 2**16)
    assert not sizes.search_costs_more()  # half of the bytes are in files that are worth a search
    for _ in range(200_000):
        sizes.add(1)
    assert sizes.search_costs_more()


def test_small_files_of_two_sizes_are_not_compared_when_they_are_many() -> None:
    sizes = SizeCounts()
    for number in range(50_000):
        sizes.add(1024 + number % 2)
    assert sizes.search_costs_more()
