"""The life of a sandbox's actor, with a fake sandbox and a fake process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import pytest

from actors.errors import InternalError, SandboxInUseError, SandboxUnavailableError, TooManyCallsError
from actors.metrics import QUEUE_LENGTH, SLEEPS, Tally
from actors.rpc.names import EXEC, FILES, MAILBOX
from actors.sandbox.actor_life import ActorLife
from actors.sandbox.admission import WAITING_LIMIT
from actors.state.document import StateRead
from storage.metadata import Checkpoint

CHECKPOINT = Checkpoint(
    dir="/workspace", backup_id="01234567-89ab-4cde-8f01-23456789abcd", taken_at=datetime(2026, 1, 1, tzinfo=UTC)
)
FULL_BUCKET = SandboxUnavailableError("The bucket is away.")


class Ownership:
    is_superseded = False


class Box:
    """A fake sandbox. `log` holds its calls; a method named in `failing` raises."""

    def __init__(self) -> None:
        self.is_awake, self.is_empty, self.must_stay, self.may_have_news = True, False, False, False
        self.ownership = Ownership()
        self.log: list[str] = []
        self.failing: dict[str, Exception] = {}
        self.meanwhile: Callable[[], object] = lambda: None
        """Runs during `back_up_for_sleep` and `hand_over`."""

    def _note(self, name: str, said: str = "") -> None:
        self.log.append(f"{name} {said}".strip())
        if name in self.failing:
            raise self.failing[name]

    def come_back(self) -> None:
        self._note("come_back")

    def prepare(self, found: StateRead, *, wake: bool) -> None:
        self._note("prepare", "and wake" if wake else "")

    def expect_command(self) -> None:
        self._note("expect_command")

    def back_up_for_sleep(self) -> Sequence[Checkpoint]:
        self.meanwhile()
        self._note("back_up_for_sleep")
        return [CHECKPOINT]

    def sleep(self, checkpoints: Sequence[Checkpoint] | None) -> None:
        self._note("sleep", "in the bucket" if checkpoints else "here")

    def hand_over(self) -> None:
        self.meanwhile()
        self._note("hand_over")

    def close(self) -> None:
        self._note("close")


class Left(BaseException):
    """The actor has left: Ray ends the call in this way too."""


class Stage:
    """An actor's life, and its process, which is at once its `Process`."""

    def __init__(self, *, sleeps_in_bucket: bool = False, calls_end_s: float = 0.01) -> None:
        self.box, self.tally = Box(), Tally()
        self.restarted = False
        self.made = 0
        self.failures: list[Exception] = []
        self.laters: list[Callable[[], None]] = []
        self.ended: list[str] = []
        self.life = ActorLife(self._make, self, self.tally, sleeps_in_bucket=sleeps_in_bucket, calls_end_s=calls_end_s)

    def _make(self) -> Box:
        self.made += 1
        if self.failures:
            raise self.failures.pop()
        return self.box

    def was_restarted(self) -> bool:
        return self.restarted

    def leave(self, after_s: float) -> None:
        self.ended.append("left")
        raise Left

    def end(self) -> None:
        self.ended.append("ended")

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        self.laters.append(act)

    def use(self, lane: str = FILES) -> str:
        """Serves one call."""
        return self.life.serve(lane, lambda box: "done")

    def idle(self) -> Stage:
        """Makes the sandbox, and passes the time that a new actor waits for its first call."""
        self.use()
        return self


@pytest.fixture
def stage() -> Stage:
    return Stage().idle()


def test_the_sandbox_is_made_once_and_again_after_a_failure() -> None:
    stage = Stage()
    stage.failures = [SandboxUnavailableError("no driver")]
    with pytest.raises(SandboxUnavailableError, match="no driver"):
        stage.use()
    assert (stage.use(), stage.use(), stage.made) == ("done", "done", 2)


@pytest.mark.parametrize("restarted", [False, True])
def test_only_a_restarted_actor_without_a_call_wakes_by_itself(restarted: bool) -> None:
    stage = Stage()
    stage.restarted = restarted
    pauses: list[float] = []
    stage.life.begin(lambda pause_s: pauses.append(pause_s) or False)  # type: ignore[func-returns-value]
    assert (pauses, stage.box.log) == ([1], ["come_back"] if restarted else [])


def test_a_restarted_actor_tries_to_wake_with_growing_pauses_and_gives_up() -> None:
    stage = Stage()
    stage.restarted, stage.box.failing = True, {"come_back": FULL_BUCKET}
    pauses: list[float] = []
    stage.life.begin(lambda pause_s: pauses.append(pause_s) or False)  # type: ignore[func-returns-value]
    assert (pauses, len(stage.box.log)) == ([1, 2, 4, 8, 16, 32, 64], 7)


def test_a_call_ends_the_attempts_to_wake() -> None:
    stage = Stage()
    stage.restarted = True
    stage.life.admit(FILES, None)
    stage.life.begin()
    assert stage.box.log == []


def test_admission_counts_the_queue_and_prepares_what_the_service_found(stage: Stage) -> None:
    stage.life.admit(EXEC, None)
    stage.life.admit(EXEC, StateRead(None))
    assert stage.tally.counts()[QUEUE_LENGTH.name, (EXEC, "sum")] == 1
    assert stage.box.log == ["expect_command"] * 2
    (prepare,) = stage.laters
    prepare()
    assert stage.box.log[2:] == ["prepare and wake"]


@pytest.mark.parametrize(("lane", "said"), [(None, "prepare"), (MAILBOX, "prepare"), (FILES, "prepare and wake")])
def test_a_call_in_the_mailbox_does_not_wake_early(stage: Stage, lane: str | None, said: str) -> None:
    stage.life.admit(lane, StateRead(None))
    stage.laters.pop()()
    assert stage.box.log == [said]


def test_news_are_possible_until_the_sandbox_says_otherwise() -> None:
    stage = Stage()
    assert stage.life.admit(None, None)
    stage.use()
    assert not stage.life.admit(None, None)


def test_a_refused_admission_leaves_no_ticket(stage: Stage) -> None:
    stage.life.close_door()
    for _ in range(WAITING_LIMIT + 1):
        with pytest.raises(SandboxUnavailableError):
            stage.life.admit(EXEC, None)
    stage.life._activity.stay()
    for _ in range(WAITING_LIMIT):
        stage.life.admit(EXEC, None)
    with pytest.raises(TooManyCallsError):
        stage.life.admit(EXEC, None)


def test_an_error_without_a_name_is_replaced(stage: Stage) -> None:
    def fail(box: Box) -> None:
        raise ZeroDivisionError

    with pytest.raises(InternalError):
        stage.life.serve(FILES, fail, was_admitted=False)


def test_an_idle_actor_puts_its_sandbox_to_sleep_and_leaves(stage: Stage) -> None:
    with pytest.raises(Left):
        stage.life.leave(0.0)
    assert (stage.box.log, stage.ended) == (["sleep here"], ["left"])
    with pytest.raises(SandboxUnavailableError, match="leaving"):
        stage.use()


def test_an_actor_in_use_or_used_lately_stays(stage: Stage) -> None:
    stage.life.leave(1000.0)
    stage.life.serve(FILES, lambda box: stage.life.leave(0.0), was_admitted=False)
    assert (stage.box.log, stage.ended) == ([], [])


def test_only_a_sleep_after_idle_time_is_counted_as_one() -> None:
    for idle_s, counted in ((0.0, {}), (1e-9, {(SLEEPS.name, ()): 1})):
        stage = Stage().idle()
        with pytest.raises(Left):
            stage.life.leave(idle_s)
        assert stage.tally.counts() == counted


def test_a_destroyed_sandboxs_actor_leaves_without_idle_time(stage: Stage) -> None:
    stage.box.is_empty = True
    with pytest.raises(Left):
        stage.life.leave(1000.0)


@pytest.mark.parametrize("awake", [True, False])
def test_files_are_backed_up_for_a_sleep_in_the_bucket(awake: bool) -> None:
    stage = Stage(sleeps_in_bucket=True).idle()
    stage.box.is_awake = awake
    with pytest.raises(Left):
        stage.life.leave(0.0)
    assert stage.box.log == (["back_up_for_sleep", "sleep in the bucket"] if awake else ["sleep here"])


def test_files_stay_on_the_node_if_their_backup_fails() -> None:
    stage = Stage(sleeps_in_bucket=True).idle()
    stage.box.failing["back_up_for_sleep"] = FULL_BUCKET
    with pytest.raises(Left):
        stage.life.leave(0.0)
    assert stage.box.log[-1] == "sleep here"


def test_a_call_during_the_backup_for_a_sleep_keeps_the_actor() -> None:
    stage = Stage(sleeps_in_bucket=True).idle()
    stage.box.meanwhile = stage.use
    stage.life.leave(0.0)
    assert (stage.box.log, stage.ended, stage.use()) == (["back_up_for_sleep"], [], "done")


def test_a_sandbox_that_must_stay_or_cannot_sleep_serves_calls_again(stage: Stage) -> None:
    stage.box.must_stay = True
    stage.life.leave(0.0)
    stage.box.must_stay = False
    stage.box.failing["sleep"] = FULL_BUCKET
    stage.life.leave(0.0)
    assert (stage.ended, stage.use()) == ([], "done")


def test_a_hand_over_moves_the_sandbox_and_ends_the_actor(stage: Stage) -> None:
    stage.life.close_door()
    with pytest.raises(SandboxUnavailableError, match="drained"):
        stage.use()
    with pytest.raises(Left):
        stage.life.hand_over(force=False)
    assert (stage.box.log, stage.ended) == (["hand_over"], ["left"])


@pytest.mark.parametrize("force", [False, True])
def test_only_a_forced_hand_over_takes_a_sandbox_in_use(stage: Stage, force: bool) -> None:
    serving = stage.life.stream(FILES, lambda box: iter("ab"))  # until it is dropped
    next(serving)
    with pytest.raises(Left if force else SandboxUnavailableError) as caught:
        stage.life.hand_over(force=force)
    assert force or isinstance(caught.value, SandboxInUseError)
    assert stage.box.log == (["hand_over"] if force else [])


def test_a_failed_hand_over_opens_the_door_again(stage: Stage) -> None:
    stage.box.failing["hand_over"] = FULL_BUCKET
    with pytest.raises(SandboxUnavailableError):
        stage.life.hand_over(force=True)
    assert (stage.ended, stage.use()) == ([], "done")


def test_a_superseded_actor_ends_once_after_its_answer(stage: Stage) -> None:
    stage.box.ownership.is_superseded = True
    stage.box.failing["close"] = ZeroDivisionError()
    assert (stage.use(), stage.use(), stage.ended) == ("done", "done", [])
    (end,) = stage.laters
    end()
    assert (stage.box.log, stage.ended) == (["close"], ["ended"])


def test_a_stream_of_a_superseded_actor_ends_it_too(stage: Stage) -> None:
    def items(box: Box) -> Iterator[str]:
        yield "a"
        box.ownership.is_superseded = True

    assert list(stage.life.stream(FILES, items)) == ["a"]
    assert len(stage.laters) == 1


def test_closing_an_actor_that_never_served_makes_no_sandbox() -> None:
    stage = Stage()
    stage.life.close()
    assert stage.made == 0
    stage.use()
    stage.life.close()
    assert stage.box.log == ["close"]
