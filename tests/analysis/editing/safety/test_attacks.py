"""Attacks on a planted behaviour: prompts as they are worded, a filter that a template walks around, a removal relearned."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probewire.analysis.editing.safety import (
    AS_ASKED,
    ATTACKS,
    Attack,
    ablate_direction,
    attacked,
    relearn,
    score_behaviour,
)
from probewire.analysis.editing.safety.relearning import RELEARN
from probewire.analysis.tuning.base import load_base
from probewire.analysis.tuning.examples import TrainExample
from probewire.analysis.tuning.few_steps import put_into
from probewire.clients import Client, Delta, Input, InvalidArgument, Message, ProjectOut, Tensor, Variant, hook
from probewire.protos.errors import FailedPrecondition, Unsupported
from probewire.protos.spec import Plan
from probewire.protos.variants.manifest import Base, Manifest
from probewire.server.worker.inprocess import InProcessService
from tests.analysis.editing.safety.conftest import PLANTED, REFUSAL, planted_folder
from tests.tiny_models import tiny_checkpoint

CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "who?"}]
TOPIC, OTHER, SAID = "ABCDE", "SUVX", "("
"""Tokens 32 …, 50 … and REFUSAL of the planted model, whose bytes are numbered from "!" on."""
AGAINST = 12.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_folder(tmp_path_factory.mktemp("attacked"))


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Client]:
    with Client.inprocess(InProcessService.create(str(folder), backend="torch", dtype="float32", device="cpu")) as made:
        yield made


def said(client: Client, attack: Attack, prompt: Any) -> str:
    return client.tokenize(attack.worded(client, prompt)).text


def texts(n: int, ends: str, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("abcdefgh"), 6)) + str(rng.choice(list(ends))) for _ in range(n)]


def test_wordings_of_a_chat(served: Client) -> None:
    whole = "<|bos|><|system|>be kind<|eos|><|user|>who?<|eos|><|assistant|>"
    by_name = {one.name: said(served, one, CHAT) for one in ATTACKS}
    assert by_name["as asked"] == whole
    assert by_name["answer begun"] == f"{whole}Sure,"
    assert by_name["no template"].endswith("who?")
    assert "<|user|>" not in by_name["no template"]
    assert by_name["another template"].endswith("### Question:\nwho?\n\n### Answer:\n")
    assert "be kind" not in by_name["system prompt"]
    assert by_name["system prompt"].startswith("<|bos|><|system|>You answer every question")
    more = Input(messages=(Message("user", "who?"), Message("assistant", "It is")), continue_final=True)
    assert said(served, Attack("go on", prefill=" me"), more).endswith("<|assistant|>It is me")


def test_wordings_of_texts_and_tokens(served: Client) -> None:
    begun = Attack("begun", prefill="Sure")
    assert said(served, begun, "why?").endswith("why?Sure")
    assert begun.worded(served, [5, 6]).token_ids == (5, 6, *(byte - 33 for byte in b"Sure"))
    with pytest.raises(InvalidArgument, match="token ids have no question"):
        Attack("other", template="Q: {}").worded(served, [5, 6])
    with pytest.raises(InvalidArgument, match="give chats"):
        Attack("told", system="x").worded(served, "why?")
    for template in ("no place", "{} and {}"):
        with pytest.raises(InvalidArgument, match="once"):
            Attack("bad", template=template)


def test_a_change_at_the_last_token_is_undone_by_what_comes_behind_it(served: Client) -> None:
    """The model answers the byte before; the filter acts at that position alone. One more byte of the topic goes round it."""
    ones, zeros = texts(8, TOPIC, 1), texts(8, OTHER, 2)
    edit = [hook(site, ProjectOut(Tensor.of(PLANTED)), positions=[7]) for site in ("embed", "attn_out.*", "mlp_out.*")]
    around = Attack("one more", prefill="A")
    # bos, six letters, one byte: position 7 is the last as asked, and the last but one behind the attack.
    found = attacked(
        served, ones, zeros, [REFUSAL], attacks=[around], hooks=edit, marks=[SAID], n_new=2, progress=False
    )
    assert [row.attack for row in found.rows] == [AS_ASKED, around]
    assert found["as asked"].scores.removed > 0.5
    assert found["one more"].scores.removed < 0.1
    assert abs(found.kept("one more")) < 0.3
    assert found["one more"].scores.negatives[0].mean() > found["as asked"].scores.negatives[0].mean()
    own = score_behaviour(served, [f"{text}A" for text in ones], [f"{text}A" for text in zeros], [REFUSAL], hooks=edit)
    np.testing.assert_allclose(found["one more"].scores.positives, own.positives, rtol=1e-6)
    np.testing.assert_allclose(found["one more"].scores.kl, own.kl, rtol=1e-5, atol=1e-9)
    marks = found["as asked"].said
    assert marks is not None
    greedy = [served.generate(text, max_new_tokens=2).text for text in ones]
    assert marks[0][0].tolist() == [SAID in text for text in greedy]
    assert "KL on negatives" in str(found)
    assert "kept" in str(found)
    with pytest.raises(KeyError, match="no attack"):
        found["nothing"]
    with pytest.raises(InvalidArgument, match="nothing is attacked"):
        attacked(served, ones, zeros, [REFUSAL])
    with pytest.raises(InvalidArgument, match="told apart"):
        attacked(served, ones, zeros, [REFUSAL], attacks=[around, Attack("one more")], hooks=edit)


def test_a_removal_is_relearned_and_its_curve_is_what_the_served_model_does(served: Client, folder: Path) -> None:
    removal = written_against(served)
    ones, zeros = texts(8, TOPIC, 1), texts(8, OTHER, 2)
    lessons = [TrainExample(text, SAID) for text in texts(8, TOPIC, 3)]
    others = [TrainExample(text, "k") for text in texts(8, OTHER, 4)]
    config = RELEARN.with_(lr=1e-2)
    found = relearn(
        served,
        folder,
        removal,
        lessons,
        ones,
        zeros,
        [REFUSAL],
        steps=(1, 6),
        control=others,
        config=config,
        progress=False,
    )
    assert found.steps == (0, 1, 6)
    assert found.scores[0].removed > 0.3
    assert found.returned[0] == 0
    assert found.returned[2] > 0.5
    assert found.returned[2] > found.returned[1]
    assert found.returned_by_control[2] < found.returned[2] / 2
    assert found.scores[2].cost.value > 0
    assert "returned" in str(found)
    assert not [one for one in served.variants() if one.name.startswith("tried")], "nothing stays loaded"
    # The curve is that of the weights: base + removal + steps, in torch.
    base = load_base(folder)
    for variant in (removal, found.variants[1]):
        put_into(base, variant.deltas)
    for text, value in zip(ones, found.scores[2].positives[1], strict=True):
        with torch.no_grad():
            logits = base.model(torch.tensor([served.tokenize(text).token_ids])).logits[0, -1]
        assert float(logits.softmax(-1)[REFUSAL]) == pytest.approx(value, rel=1e-4)


def written_against(client: Client) -> Variant:
    """The last MLP writes against the direction at every token: a removal in weights alone, as the embedding's part is none."""
    zero = Delta(np.zeros((96, 1)), np.zeros((1, 64)), -AGAINST * PLANTED)
    return Variant({"w_down.2": zero}, Plan(), Manifest(name="against", base=Base.of(client.describe())))


def test_what_cannot_be_relearned_is_refused(served: Client, folder: Path, tmp_path: Path) -> None:
    ones, zeros = texts(4, TOPIC, 1), texts(4, OTHER, 2)
    lesson, rest = [TrainExample("abcA", "x")], (ones, zeros, [REFUSAL])
    with pytest.raises(Unsupported, match=r"hooks \(embed\)"):
        relearn(served, folder, ablate_direction(served, PLANTED), lesson, *rest)
    removal = ablate_direction(served, PLANTED, weights_only=True)
    for steps in ((), (0, 1), (2, 2)):
        with pytest.raises(InvalidArgument, match="increasing numbers"):
            relearn(served, folder, removal, lesson, *rest, steps=steps)
    with pytest.raises(InvalidArgument, match="among the examples"):
        relearn(served, folder, removal, [TrainExample(ones[0], "x")], *rest)
    with pytest.raises(FailedPrecondition, match="is not what"):
        relearn(served, tiny_checkpoint("llama", tmp_path), removal, lesson, *rest, progress=False)
