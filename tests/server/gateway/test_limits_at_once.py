"""Two requests that come for one free place at the same time: one gets it, the other is told."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier
from typing import TypeVar
from unittest import mock

import pytest
from serving import Served, gateway, loaded, request_bytes

from probewire.protos.errors import NotFound, ProbewireError, ResourceExhausted
from probewire.protos.model import ModelInfo, SiteInfo
from probewire.protos.operations import BY_CALL
from probewire.protos.saes import LoadSaeRequest, SaeFiles, SaePart
from probewire.protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from probewire.protos.spec import Plan
from probewire.server.auth.callers import CALLER, Caller
from probewire.server.auth.users import User, UserLimits, Users
from probewire.server.gateway import gateway as gateway_module
from probewire.server.gateway.gateway import Gateway
from probewire.server.state import uploads as sae_uploads
from probewire.server.state.captures import CaptureStore
from probewire.server.state.database import State
from probewire.server.state.saes import SaeStore
from probewire.server.worker.sae_loading import load_sae
from tests.saes import write_sae

T = TypeVar("T")
SITE = SiteInfo("resid_post", ("pos", "d_model"), (64,), (0, 1, 2), edits=("latents",))
INFO = ModelInfo("m", "llama", "llama", "torch", "cpu", "float32", "sdpa", "h", 3, 64, 4, 2, 16, 96, 261, sites=(SITE,))


def become(**limits: int) -> User:
    user = User("ada", "researcher", UserLimits(**limits))
    CALLER.set(Caller(user, "req-ada"))
    return user


def over_gateway(scenario: Callable[[Gateway, Served], Awaitable[None]], *models: str, **config: int) -> None:
    async def run() -> None:
        # Ada is no user of this box: whoever looks for ended keys, twice a second, would end what is asked.
        with mock.patch.object(gateway_module, "SWEEP_S", 60.0):
            await served()

    async def served() -> None:
        async with asyncio.timeout(60), gateway(*models, **config) as (it, server):
            await scenario(it, server)

    asyncio.run(run())


async def both(*calls: Awaitable[T]) -> tuple[list[T], list[ProbewireError]]:
    """What came of calls at once: good answers, and refusals."""
    found = await asyncio.gather(*calls, return_exceptions=True)
    errors = [item for item in found if isinstance(item, ProbewireError)]
    return [item for item in found if not isinstance(item, BaseException)], errors


def in_threads(*works: Callable[[], T]) -> tuple[list[T], list[ProbewireError]]:
    """As `both`, in as many threads, all let go at once."""
    gate = Barrier(len(works))

    def work(do: Callable[[], T]) -> T | ProbewireError:
        gate.wait()
        try:
            return do()
        except ProbewireError as error:
            return error

    with ThreadPoolExecutor(len(works)) as pool:
        found = list(pool.map(work, works))
    errors = [item for item in found if isinstance(item, ProbewireError)]
    return [item for item in found if not isinstance(item, ProbewireError)], errors


def test_sessions() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        become(sessions=2)
        request = CreateSessionRequest(Plan(), "fake", "mood")
        made, refused = await both(*(it.create_session(request) for _ in range(4)))
        assert [type(error) for error in refused] == [ResourceExhausted] * 2
        assert "ada has 2 sessions, the most allowed" in refused[0].message
        assert {session.id for session in await it.sessions()} == {session.id for session in made}
        await it.delete_session(made[0].id)
        _, [failed] = await both(it.create_session(CreateSessionRequest(Plan(), "fake", "refused")))
        assert failed.message == "as you asked"
        assert (await it.create_session(request)).revision == 1, "what failed holds no place"

    over_gateway(scenario, "fake")


def test_a_session_deleted_while_it_is_updated_is_gone() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        become()
        session = await it.create_session(CreateSessionRequest(Plan(), "fake", "mood"))
        update, delete = UpdateSessionRequest(session.id, Plan()), session.id
        done, errors = await both(it.update_session(update), it.delete_session(delete))
        assert errors == []
        assert isinstance(done[0], Session), "the update came first, and was done"
        assert it.workers["fake"].sessions == {}, "nor does the worker keep it"
        with pytest.raises(NotFound):
            await it.session(session.id)
        session = await it.create_session(CreateSessionRequest(Plan(), "fake", "mood"))
        done, [late] = await both(
            it.delete_session(session.id), it.update_session(UpdateSessionRequest(session.id, Plan()))
        )
        assert isinstance(late, NotFound)
        assert it.workers["fake"].sessions == {}

    over_gateway(scenario, "fake")


def test_models() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        done, [refused] = await both(loaded(it, "a"), loaded(it, "b"))
        assert len(done) == 1
        assert refused.message == "1 models are loaded, the most allowed; unload one first"
        assert list(it.workers) == ["a"]

    over_gateway(scenario, max_models=1)


def test_requests_under_way() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        become(requests=1)

        async def generate() -> int:
            return len([message async for message in it.streams.stream(BY_CALL["generate"], request_bytes("fake"))])

        done, [refused] = await both(generate(), generate())
        assert done == [5]
        assert "ada has 1 requests under way, the most allowed" in refused.message
        assert await generate() == 5

    over_gateway(scenario, "fake")


def test_room_for_captures_in_two_workers(tmp_path: Path) -> None:
    become()
    stores = [CaptureStore(State(tmp_path), max_bytes=1000, ttl_s=60) for _ in range(2)]
    held, [refused] = in_threads(*(lambda store=store: store.reserve("ada", 600, 0) for store in stores))
    assert len(held) == 1
    assert "600 of the box's 1,000 are in use" in refused.message
    stores[1].release(held[0])
    held, [refused] = in_threads(*(lambda store=store: store.reserve("ada", 500, 800) for store in stores))
    assert "of ada's 800 are in use" in refused.message


def sae_stores(folder: Path) -> list[SaeStore]:
    return [SaeStore(State(folder), max_bytes=1 << 20, max_saes=1) for _ in range(2)]


def test_places_for_saes_in_two_workers(tmp_path: Path) -> None:
    user, folder = become(), write_sae(tmp_path / "sae")
    files = SaeFiles((folder / "cfg.json").read_text(), (folder / "sae_weights.safetensors").read_bytes())
    loads = [
        lambda store=store, name=name: load_sae(LoadSaeRequest(name, files=files), user, INFO, store, ())
        for store, name in zip(sae_stores(tmp_path / "state"), "ab", strict=True)
    ]
    done, [refused] = in_threads(*loads)
    assert len(done) == 1
    assert refused.message == "ada has 1 SAEs loaded, the most allowed; unload one first"
    assert len(list((tmp_path / "state" / "saes").iterdir())) == 1, "what was refused leaves no files"


def test_room_for_saes_that_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user, store = become(store_bytes=1000), sae_stores(tmp_path)[0]
    parts = [SaePart(hashlib.sha256(data).hexdigest(), 600, 0, data) for data in (b"a" * 300, b"b" * 300)]
    done, [refused] = in_threads(*(lambda part=part: store.receive(user, part) for part in parts))
    assert [received.n_bytes for received in done] == [300]
    assert "of ada's 1,000 are in use by SAEs and variants (600 of them sent and not loaded yet)" in refused.message
    monkeypatch.setattr(sae_uploads, "MAX_UPLOADS", 1)
    bob = User("bob", "researcher", UserLimits())
    done, [refused] = in_threads(*(lambda part=part: store.receive(bob, part) for part in parts))
    assert "bob is sending 1 files at once, the most allowed" in refused.message


def test_two_changes_of_one_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`users set --role` in one shell, `users set --requests` in another: each keeps what the other changed."""
    one, other = Users(State(tmp_path)), Users(State(tmp_path))
    one.add("ada", "researcher")
    get = one.get
    with ThreadPoolExecutor(1) as pool:

        def interrupted(name: str) -> User:
            found = get(name)
            monkeypatch.setattr(one, "get", get)
            with suppress(TimeoutError):  # it waits until this change is whole
                pool.submit(other.change, name, limits={"requests": 7}).result(0.5)
            return found

        monkeypatch.setattr(one, "get", interrupted)
        one.change("ada", role="viewer")
    ada = one.get("ada")
    assert (ada.role, ada.limits.requests) == ("viewer", 7)
