"""The errors of the file routes, for every error number of a file system."""

from __future__ import annotations

import errno
import os

import pytest

from actors.errors import HoldfastError, InternalError, MountLostError, NotARegularFileError
from actors.node.errors import PathTypeError
from actors.node.tree import DEAD_MOUNT, _translated
from actors.sandbox.transfers import translated
from gateway.status import status_of


def told(number: int) -> HoldfastError:
    with pytest.raises(HoldfastError) as raised, translated("/workspace/x"), _translated("/workspace/x"):
        raise OSError(number, os.strerror(number), "/var/lib/of-the-node")
    return raised.value


@pytest.mark.parametrize("number", errno.errorcode, ids=errno.errorcode.values())
def test_no_error_number_becomes_an_internal_error(number: int) -> None:
    error = told(number)
    assert not isinstance(error, InternalError)
    assert 400 <= status_of(error) != 500
    assert "of-the-node" not in f"{error.message} {error.hint} {error.context}"
    assert error.context["path"] == "/workspace/x"


@pytest.mark.parametrize("number", sorted(DEAD_MOUNT))
def test_the_errors_of_a_dead_daemons_mount_become_a_lost_mount(number: int) -> None:
    assert isinstance(told(number), MountLostError)


def test_the_error_for_removing_a_mounted_directory_names_a_way_out() -> None:
    error = told(errno.EBUSY)
    assert isinstance(error, NotARegularFileError) and "restored" in error.message
    assert '"mode": "copy"' in (error.hint or "")
    with pytest.raises(PathTypeError), _translated("/workspace/x"):
        raise OSError(errno.EBUSY, "busy")
