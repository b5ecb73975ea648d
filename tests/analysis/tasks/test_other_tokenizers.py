"""The shipped tasks under a decoder that strips: what is kept is what the same vocabulary keeps without."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest

from probewire.analysis.tasks import Task, agreement, capitals, fit, greater_than, ioi
from probewire.backends.model.tokenizer import Tokenizer
from probewire.clients import Client
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from tests.tiny_models import tiny_checkpoint
from tests.tiny_tokenizers import VOCAB_SIZE, tokenizer_folder


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Client]]:
    """One tiny model, behind each kind of tokenizer."""
    folder = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"), vocab_size=VOCAB_SIZE)
    model = LocalModel(WorkerConfig(model=str(folder), id="tiny"), folder)
    made: dict[str, Client] = {}
    for kind in ("byte_level", "llama2", "llama2_unstripped", "metaspace_first", "wordpiece"):
        dressed = copy.copy(model)
        dressed.tokenizer = Tokenizer(tokenizer_folder(kind, tmp_path_factory.mktemp(kind)), VOCAB_SIZE)
        made[kind] = Client(service=InProcessService(dressed))
    yield made
    model.close()


@pytest.mark.parametrize("make", [ioi, greater_than, agreement, capitals])
def test_a_decoder_that_strips_loses_no_example(make: Callable[[int], Task], clients: dict[str, Client]) -> None:
    stripped, plain = (fit(make(20), clients[kind]) for kind in ("llama2", "llama2_unstripped"))
    assert len(stripped) == len(plain) >= 5
    assert stripped.examples == plain.examples
    assert stripped.dropped == plain.dropped


@pytest.mark.parametrize("kind", ["byte_level", "llama2", "metaspace_first", "wordpiece"])
def test_roles_lie_where_their_words_are(kind: str, clients: dict[str, Client]) -> None:
    for example in fit(ioi(20), clients[kind]).examples:
        words = {role: "".join(example.clean_tokens[i] for i in at) for role, at in example.roles.items()}
        for role in ("io", "s1", "s2"):
            begin, stop = example.example.roles[role]
            assert words[role].strip() == example.example.clean[begin:stop]
        assert [example.clean_tokens[example.roles["end"][0]]] == [example.clean_tokens[-1]]
        (answer,) = example.correct
        assert clients[kind].token(example.example.correct[0]) == answer
