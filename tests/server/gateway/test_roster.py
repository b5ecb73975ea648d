"""Models by the names they are served under: found, joined, refused before anything starts. No process is started."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from probewire.backends.checkpoints.default_model import DEFAULT_ID
from probewire.protos.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ProbewireError,
    ResourceExhausted,
    Unavailable,
)
from probewire.protos.loading import LoadRequest
from probewire.server.config import GatewayConfig, WorkerConfig
from probewire.server.gateway.roster import Roster
from probewire.server.gateway.workers import Worker

BASE = WorkerConfig(model="", id="", backend="torch", dtype="float32", revision="main", drain_s=1.0)


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The workers that were told to start, none of which does."""
    seen: list[str] = []
    monkeypatch.setattr(Worker, "start", lambda self: seen.append(self.config.id))
    return seen


@pytest.fixture
def roster() -> Iterator[Roster]:
    made = Roster(GatewayConfig(worker=BASE, max_models=3), lambda _: None)
    yield made
    made.remove_folder()


@pytest.fixture
def join(roster: Roster, tmp_path: Path) -> Callable[..., Worker]:
    """Load by name, in a loop of its own: workers hold what belongs to one."""

    def join(model: str = "m", **request: Any) -> Worker:
        async def work() -> Worker:
            return roster.join(LoadRequest(model, **request), tmp_path)

        return asyncio.run(work())

    return join


def refused(call: Callable[[], object], kind: type[ProbewireError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    return caught.value.message


# ---- finding ---------------------------------------------------------------------------------------------------------


def test_a_model_is_found_by_its_name_or_as_the_only_one(roster: Roster, join: Callable[..., Worker]) -> None:
    worker = join("org/m")
    assert roster.find("org/m") is roster.find("") is worker


def test_without_a_model_one_is_told_to_load_one(roster: Roster) -> None:
    assert refused(lambda: roster.find(""), FailedPrecondition).startswith("no model is loaded; load one first")
    assert refused(lambda: roster.find("x"), NotFound) == "no model 'x' is loaded; loaded: none; load it first"


def test_among_several_the_request_must_name_one(roster: Roster, join: Callable[..., Worker]) -> None:
    join("a")
    join("b")
    assert refused(lambda: roster.find(""), InvalidArgument) == (
        "several models are loaded, so the request must name one of: a, b"
    )
    assert refused(lambda: roster.find("c"), NotFound) == "no model 'c' is loaded; loaded: a, b; load it first"
    assert roster.find("b").config.id == "b"


def test_once_it_closes_nothing_is_found_or_loaded(roster: Roster, join: Callable[..., Worker]) -> None:
    join("a")
    roster.closing = True
    for call in (lambda: roster.find("a"), lambda: roster.find(""), lambda: join("b")):
        assert refused(call, Unavailable) == "the server is shutting down"


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_a_load_starts_a_worker_with_the_operators_settings(
    join: Callable[..., Worker], started: list[str], tmp_path: Path
) -> None:
    worker = join("org/m")
    assert worker.config == replace(BASE, model="org/m", id="org/m", state_dir=str(tmp_path))
    assert started == ["org/m"]


def test_a_request_changes_what_it_names(join: Callable[..., Worker]) -> None:
    config = join("mine=org/m@mlx", dtype="bfloat16", revision="v1").config
    assert (config.id, config.model, config.backend, config.dtype, config.revision) == (
        "mine",
        "org/m",
        "mlx",
        "bfloat16",
        "v1",
    )


def test_the_default_model_has_one_name_however_it_is_asked_for(join: Callable[..., Worker]) -> None:
    worker = join("")
    assert (worker.config.model, worker.config.id) == (DEFAULT_ID, DEFAULT_ID.rpartition("/")[2])
    assert join(DEFAULT_ID.rpartition("/")[2].lower()) is worker


def test_a_second_load_of_the_same_joins_the_first(join: Callable[..., Worker], started: list[str]) -> None:
    assert join("m") is join("m", backend="torch") is join("m", dtype="float32")
    assert started == ["m"]


@pytest.mark.parametrize("other", [{"dtype": "bfloat16"}, {"revision": "v2"}])
def test_an_id_that_is_taken_by_something_else_is_refused(join: Callable[..., Worker], other: dict[str, str]) -> None:
    join("m")
    assert refused(lambda: join("m", **other), FailedPrecondition) == (
        "id 'm' is taken by 'm' (torch, float32); unload that first, or give this one another id"
    )


def test_a_model_quantised_at_load_has_that_in_its_name(roster: Roster, join: Callable[..., Worker]) -> None:
    join("org/m")
    worker = join("org/m", quantize="int4")
    assert (worker.config.id, worker.config.quantize) == ("org/m-int4", "int4")
    assert join("org/m", quantize="int4", backend="mlx").config.id == "org/m-int4@mlx"
    assert "taken by 'org/m' (torch, float32, int4)" in refused(
        lambda: join("org/m", id="org/m-int4"), FailedPrecondition
    )
    assert "unknown quantize 'int3'; allowed: int8, int4" in refused(
        lambda: join("org/m", quantize="int3"), InvalidArgument
    )


def test_the_same_on_another_backend_has_that_in_its_name(roster: Roster, join: Callable[..., Worker]) -> None:
    join("m")
    assert join("m", backend="mlx").config.id == "m@mlx"
    assert join("m@mlx") is roster.workers["m@mlx"]
    assert list(roster.workers) == ["m", "m@mlx"]


def test_a_name_on_another_backend_stays_what_it_was_when_the_first_is_gone(
    roster: Roster, join: Callable[..., Worker]
) -> None:
    first, second = join("m"), join("m", backend="mlx")
    roster.forget(first)
    assert join("m", backend="mlx") is second
    assert join("m", backend="torch").config.id == "m"


def test_so_many_are_loaded_and_no_more(roster: Roster, join: Callable[..., Worker], started: list[str]) -> None:
    for name in "abc":
        join(name)
    assert refused(lambda: join("d"), ResourceExhausted) == ("3 models are loaded, the most allowed; unload one first")
    assert join("a").config.id == "a", "one that is there is still joined"
    roster.forget(roster.workers["b"])
    join("d")
    assert started == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"model": "m", "dtype": "int8"}, "unknown dtype 'int8'; allowed: auto, float32, bfloat16, float16"),
        ({"model": "m", "backend": "jax"}, "unknown backend 'jax'; allowed: auto, torch, mlx"),
        ({"model": "m", "id": "x" * 201}, "a model id has at most 200 printable characters"),
        ({"model": "m", "id": "a\nb"}, "a model id has at most 200 printable characters, got 'a\\nb'"),
        ({"model": "x=m", "id": "y"}, "'x=m' says id 'x'"),
    ],
)
def test_what_cannot_be_loaded_is_refused_before_anything_starts(
    join: Callable[..., Worker], roster: Roster, started: list[str], request_: dict[str, str], told: str
) -> None:
    assert refused(lambda: join(**request_), InvalidArgument).startswith(told)
    assert (roster.workers, started) == ({}, [])


def in_state(worker: Worker, state: Any) -> None:
    worker._state = state


def test_one_that_is_being_unloaded_is_to_be_asked_for_again(join: Callable[..., Worker]) -> None:
    in_state(join("m"), "stopping")
    with pytest.raises(Unavailable, match="model 'm' is being unloaded; retry") as caught:
        join("m")
    assert caught.value.retry_after_s == 2.0


def test_one_that_failed_gives_its_place_to_a_new_try(
    roster: Roster, join: Callable[..., Worker], started: list[str]
) -> None:
    failed = join("m")
    for name in "ab":
        join(name)
    in_state(failed, "failed")
    again = join("m", dtype="bfloat16")
    assert again is not failed
    assert roster.find("m") is again
    assert started == ["m", "a", "b", "m"]


def test_a_join_wakes_one_that_sleeps(join: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[str] = []
    monkeypatch.setattr(Worker, "wake", lambda self: woken.append(self.config.id))
    in_state(join("m"), "asleep")
    join("m")
    assert woken == ["m"]


def test_a_worker_is_forgotten_only_under_its_own_name(roster: Roster, join: Callable[..., Worker]) -> None:
    failed = join("m")
    in_state(failed, "failed")
    again = join("m")
    roster.forget(failed)
    assert roster.find("m") is again
    roster.forget(again)
    assert roster.workers == {}


def test_a_restart_is_told_with_the_models_id(tmp_path: Path) -> None:
    told: list[str] = []

    async def scenario() -> None:
        roster = Roster(GatewayConfig(worker=BASE), told.append)
        worker = roster.join(LoadRequest("m"), tmp_path)
        worker._on_restart()
        roster.remove_folder()

    asyncio.run(scenario())
    assert told == ["m"]


# ---- the folder of the sockets ---------------------------------------------------------------------------------------


def test_each_socket_has_a_folder_of_its_own_that_others_cannot_enter(roster: Roster) -> None:
    first, second = roster._new_folder(), roster._new_folder()
    assert first != second
    for folder in (roster.folder, first, second):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert len(str(first / "worker.sock")) < 104


def test_a_folder_that_a_cleaner_took_away_is_made_anew(roster: Roster) -> None:
    before = roster.folder
    shutil.rmtree(before)
    folder = roster._new_folder()
    assert folder.parent == roster.folder != before
    assert folder.is_dir()


def test_a_folder_that_somebody_else_has_made_in_its_place_is_not_used(
    roster: Roster, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = roster.folder
    monkeypatch.setattr("probewire.server.gateway.roster.os.getuid", lambda: before.stat().st_uid + 1)
    folder = roster._new_folder()
    assert folder.parent == roster.folder != before
    shutil.rmtree(before)


def test_the_folder_goes_with_the_gateway(roster: Roster) -> None:
    roster._new_folder()
    roster.remove_folder()
    assert not roster.folder.exists()
    roster.remove_folder()


def test_what_never_loaded_is_no_choice_and_takes_no_place(roster: Roster, join: Callable[..., Worker]) -> None:
    in_state(join("bad"), "failed")
    assert roster.find("").config.id == "bad", "its reason is all there is to say"
    good = join("good")
    assert roster.find("") is good
    join("b")
    join("c")
    assert refused(lambda: join("bad"), ResourceExhausted).startswith("3 models are loaded")
    assert refused(lambda: roster.find(""), InvalidArgument).endswith("must name one of: good, b, c")
    assert roster.find("bad").never_loaded
