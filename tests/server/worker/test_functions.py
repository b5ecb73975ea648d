"""What a model answers, a function an operation: of the one model there is, and each caller's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from probewire.protos.errors import InvalidArgument, NotFound, Unsupported
from probewire.protos.model import Input, TokenizeRequest
from probewire.protos.operations import BY_CALL, OPERATIONS
from probewire.protos.saes import LoadSaeRequest, SaeFiles, SaePart
from probewire.protos.sessions import Session
from probewire.protos.spec import Capture, Hook, Plan
from probewire.server.auth.callers import Caller
from probewire.server.auth.users import User
from probewire.server.config import WorkerConfig
from probewire.server.state.captures import Kept
from probewire.server.worker import functions
from probewire.server.worker.functions import FUNCTIONS
from probewire.server.worker.model import LocalModel
from probewire.server.worker.operations import LocalOperations
from tests.saes import write_sae
from tests.tiny_models import VOCAB_SIZE, tiny_checkpoint

ADA, BOB = (Caller(User(name, "researcher"), f"req-{name}") for name in ("ada", "bob"))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder: Path = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    made = LocalModel(WorkerConfig(model=str(folder), id="tiny", device="cpu"), folder, model_hash="f00d")
    yield made
    made.close()


def kept(here: LocalModel, caller: Caller) -> str:
    """The id of a capture of a caller's."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    return here.store.put(caller.user.name, Kept("tiny", "z.1", "x", (0, 4), array)).id


def test_every_operation_is_answered_by_a_method_or_a_function() -> None:
    unanswered = [
        row.call for row in OPERATIONS if not hasattr(LocalOperations, row.call) and row.call not in FUNCTIONS
    ]
    assert unanswered == []
    assert set(FUNCTIONS) <= set(BY_CALL)


@pytest.mark.parametrize("call", ["create_session", "update_session", "sessions", "delete_session", "unload"])
def test_what_the_gateway_keeps_is_asked_for_there(here: LocalModel, call: str) -> None:
    with pytest.raises(Unsupported, match="gateway"):
        FUNCTIONS[call](here, ADA, "x", "y")


def test_the_one_model_is_listed_and_described(here: LocalModel) -> None:
    assert functions.models(here, ADA) == [here.info]
    for name in ("", "tiny"):
        info = functions.describe(here, ADA, name)
        assert (info.id, info.model_hash, info.n_layers) == ("tiny", "f00d", 3)


def test_another_model_is_not_here(here: LocalModel) -> None:
    for call in (
        lambda: functions.describe(here, ADA, "m"),
        lambda: functions.weight_names(here, ADA, "m"),
        lambda: functions.weights(here, ADA, "lm_head.weight", "m"),
        lambda: functions.captures(here, ADA, "m"),
        lambda: functions.stored(here, ADA, "c", "m"),
        lambda: functions.delete_capture(here, ADA, "c", "m"),
        lambda: functions.saes(here, ADA, "m"),
        lambda: functions.unload_sae(here, ADA, "s", "m"),
        lambda: functions.tokenize(here, ADA, TokenizeRequest(Input("ab"), "m")),
    ):
        with pytest.raises(NotFound, match="no model 'm' here; loaded: tiny"):
            call()


def test_a_text_is_tokenized(here: LocalModel) -> None:
    told = functions.tokenize(here, ADA, TokenizeRequest(Input("ab")))
    assert (len(told.token_ids), told.tokens[1:]) == (3, ("a", "b"))


def test_weights_are_those_of_the_checkpoint(here: LocalModel) -> None:
    names = functions.weight_names(here, ADA)
    assert names["model.embed_tokens.weight"] == (VOCAB_SIZE, 64)
    array = functions.weights(here, ADA, "model.embed_tokens.weight", "tiny")
    assert array.shape == (VOCAB_SIZE, 64)
    with pytest.raises(NotFound, match=r"no\.such"):
        functions.weights(here, ADA, "no.such")


def test_captures_are_their_callers_alone(here: LocalModel) -> None:
    capture_id = kept(here, ADA)
    assert [item.id for item in functions.captures(here, ADA)] == [capture_id]
    assert functions.captures(here, BOB) == []
    item, tensor = functions.stored(here, ADA, capture_id, "tiny")
    assert (item.site, item.positions) == ("z.1", (0, 4))
    assert tensor.numpy().tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    for call in (functions.stored, functions.delete_capture):
        with pytest.raises(NotFound):
            call(here, BOB, capture_id)
    functions.delete_capture(here, ADA, capture_id)
    with pytest.raises(NotFound):
        functions.stored(here, ADA, capture_id)


def test_an_sae_is_loaded_listed_and_forgotten(here: LocalModel, tmp_path: Path) -> None:
    folder = write_sae(tmp_path / "sae")
    files = SaeFiles((folder / "cfg.json").read_text(), (folder / "sae_weights.safetensors").read_bytes())
    info = functions.load_sae(here, ADA, LoadSaeRequest("mine", files=files))
    assert (info.name, info.site, info.owner, info.model) == ("mine", "resid_post.1", "ada", "tiny")
    assert functions.saes(here, ADA) == [info]
    assert functions.saes(here, BOB, "tiny") == []
    with pytest.raises(NotFound):
        functions.unload_sae(here, BOB, "mine")
    functions.unload_sae(here, ADA, "mine", "tiny")
    assert functions.saes(here, ADA) == []
    with pytest.raises(NotFound, match="no model 'other' here"):
        functions.load_sae(here, ADA, LoadSaeRequest("mine", "other", files=files))


def test_a_part_of_an_sae_is_kept_until_it_is_whole(here: LocalModel) -> None:
    assert functions.send_sae(here, ADA, SaePart("0" * 64, 10, 0, b"hello")).n_bytes == 5
    assert functions.send_sae(here, ADA, SaePart("0" * 64, 10, 5, b"there")).n_bytes == 10


def test_a_session_is_put_read_and_dropped_by_its_owner(here: LocalModel) -> None:
    session = Session("ses-1", "mine", "tiny", Plan((Hook("z.1", capture=Capture()),)), 3)
    functions.put_session(here, ADA, session)
    assert functions.session(here, ADA, "ses-1") == session
    for call in (functions.session, functions.drop_session):
        with pytest.raises(NotFound):
            call(here, BOB, "ses-1")
    functions.drop_session(here, ADA, "ses-1")
    with pytest.raises(NotFound):
        functions.session(here, ADA, "ses-1")


def test_a_session_that_the_model_cannot_honour_is_not_put(here: LocalModel) -> None:
    with pytest.raises(InvalidArgument, match="hook 0"):
        functions.put_session(here, ADA, Session("ses-2", "", "tiny", Plan((Hook("z.9", capture=Capture()),)), 1))
    with pytest.raises(NotFound):
        functions.session(here, ADA, "ses-2")


def test_the_activity_is_the_models_part(here: LocalModel) -> None:
    report = functions.activity(here, ADA)
    [model] = report.models
    assert (model.id, model.state, model.backend, model.device) == ("tiny", "ready", "torch", "cpu")
    assert model.status is not None
    assert model.status.running == functions.status(here, ADA).running == 0
    assert functions.status(here, ADA).n_slots == here.backend.limits.n_slots
