"""The watch over Ray's processes, with fake processes and a fake end."""

from __future__ import annotations

import threading

import pytest

from actors.errors import ServiceUnavailableError
from gateway.embedded.ray_watch import RayWatch

DEADLINE_S = 60.0


def test_the_service_shuts_down_when_a_part_of_ray_has_ended() -> None:
    dead: list[str] = []
    looked, ended = threading.Event(), threading.Event()

    def look() -> list[str]:
        looked.set()
        return dead

    with RayWatch(look=look, end=ended.set, every_s=0.01, grace_s=0.0) as watch:
        assert looked.wait(DEADLINE_S)
        assert not ended.is_set()
        watch.check()
        dead.append("raylet")
        assert ended.wait(DEADLINE_S)
        with pytest.raises(ServiceUnavailableError, match="Ray has ended"):
            watch.check()


def test_the_watch_does_not_end_a_service_that_is_already_stopping() -> None:
    looked, ended = threading.Event(), threading.Event()

    def look() -> list[str]:
        looked.set()
        return ["raylet"]

    with RayWatch(look=look, end=ended.set, every_s=0.01, grace_s=3600.0) as watch:
        assert looked.wait(DEADLINE_S)
    watch.check()
    assert not ended.is_set()
