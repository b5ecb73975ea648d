"""Direct logit attribution: the parts sum to the metric on every family, and equal the formula where we write it down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from probewire.analysis.attribution.direct_logit import DirectLogit, direct_logit
from probewire.clients import Client, InvalidArgument, Unsupported, ablate
from probewire.protos.metrics import Logit, LogitDifference, LogProb, TopLogits
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from tests.tiny_models import tiny_checkpoint

PROMPT = [256, 70, 71, 72, 70, 71]
METRIC = LogitDifference((65, 66), (67,))
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gpt2", "gemma3_text", "phi3", "gpt_oss"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def client_of(folder: Path, family: str, backend: str = "torch", **overrides: object) -> Client:
    path = tiny_checkpoint(family, folder, **overrides)
    config = WorkerConfig(model=str(path), id=family, backend=backend, dtype="float32", device="cpu")
    return Client.inprocess(InProcessService(LocalModel(config, path)))


@pytest.fixture(scope="module")
def llama(folder: Path) -> Iterator[Client]:
    with client_of(folder, "llama") as client:
        yield client


def check_sums(found: DirectLogit) -> None:
    scale = sum(map(abs, found.parts.values()))
    assert abs(found.total - found.metric) <= 1e-4 * max(1.0, scale / 10)
    assert found.cumulative.values[-1] == pytest.approx(found.total)


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_sum_to_the_metric(folder: Path, family: str, backend: str) -> None:
    with client_of(folder, family, backend) as client:
        neurons = family != "gpt_oss"  # experts have no neurons to show
        for metric in (METRIC, Logit(65), Logit(65, position=2, centred=True)):
            found = direct_logit(client, PROMPT, metric, heads=True, neurons=neurons)
            check_sums(found)
            assert found.position == metric.position % len(PROMPT)
        heads, neurons_ = found.heads, found.neurons
        assert heads is not None
        bias = found.attn.values - heads.values.sum(axis=1)
        biased = family in ("gpt2", "gpt_oss")
        assert (np.abs(bias).max() > 1e-3) == biased, "what the heads leave over is the projection's bias"
        if neurons_ is not None:
            rest = found.mlp.values - neurons_.values.sum(axis=1)
            assert (np.abs(rest).max() > 1e-3) == (family == "gpt2")
        assert (found.bias != 0.0) == (family == "gpt2"), "of these only gpt2's last norm has a bias"


def test_against_the_formula(llama: Client) -> None:
    """llama in numpy: (part / rms(stream) · w) · (W_U[correct] − W_U[wrong]), heads through W_O."""
    found = direct_logit(llama, PROMPT, METRIC, heads=True, neurons=True)
    run = llama.run(PROMPT, capture=["embed", "attn_out.*", "mlp_out.*", "resid_post.2", "z.*", "mlp_act.*"])
    weights = {name: llama.weights(name, progress=False).astype(np.float64) for name in llama.weight_names()}
    stream = run["resid_post.2"][-1].astype(np.float64)
    unembed = weights["lm_head.weight"]
    direction = (unembed[65] + unembed[66]) / 2 - unembed[67]
    direction = direction * weights["model.norm.weight"] / np.sqrt((stream**2).mean() + 1e-6)
    assert found.direction == pytest.approx(direction, rel=1e-4, abs=1e-7)
    assert found.embed == pytest.approx(run["embed"][-1] @ direction, abs=1e-4)
    assert found.attn.values == pytest.approx(run.stack("attn_out")[:, -1] @ direction, abs=1e-4)
    assert found.mlp.values == pytest.approx(run.stack("mlp_out")[:, -1] @ direction, abs=1e-4)
    assert found.heads is not None
    assert found.head_slopes is not None
    assert found.neurons is not None
    for layer in range(3):
        project = weights[f"model.layers.{layer}.self_attn.o_proj.weight"].T.reshape(4, 16, 64)
        slopes = project @ direction
        assert found.head_slopes[layer] == pytest.approx(slopes, abs=1e-5)
        assert found.heads.values[layer] == pytest.approx((run[f"z.{layer}"][-1] * slopes).sum(axis=-1), abs=1e-4)
        down = weights[f"model.layers.{layer}.mlp.down_proj.weight"].T @ direction
        assert found.neurons.values[layer] == pytest.approx(run[f"mlp_act.{layer}"][-1] * down, abs=1e-4)


def test_norms_after_the_block_are_held_too(folder: Path) -> None:
    """gemma2 without its softcap: the heads' shares go through the norm that follows the projection."""
    with client_of(folder, "gemma2", final_logit_softcapping=None) as client:
        found = direct_logit(client, PROMPT, METRIC, heads=True)
        check_sums(found)
        assert found.heads is not None
        assert found.heads.values.sum(axis=1) == pytest.approx(found.attn.values, abs=1e-4)


def test_a_softcap_is_refused(folder: Path) -> None:
    with client_of(folder, "gemma2") as client, pytest.raises(Unsupported, match="not linear in the stream"):
        direct_logit(client, PROMPT, Logit(65))


def test_without_later_readers_an_ablation_costs_exactly_the_share(llama: Client) -> None:
    """Of the last layer only the norm stands between a neuron and the logits: ablating moves the metric by its share,
    once the norm's scale is taken back to what it was."""
    found = direct_logit(llama, PROMPT, METRIC, neurons=True)
    assert found.neurons is not None
    unit = int(np.abs(found.neurons.values[2]).argmax())
    hooks = [ablate("mlp_act.2", units=[unit], positions=-1)]
    both = llama.run({"a": PROMPT, "b": PROMPT}, hooks=[hooks[0]], capture=["resid_post.2", "logits"])
    plain = llama.run(PROMPT, capture=["resid_post.2"])
    rms = [
        float(np.sqrt((s[-1].astype(np.float64) ** 2).mean() + 1e-6))
        for s in (both.inputs["a"]["resid_post.2"], plain["resid_post.2"])
    ]
    logits = both.inputs["a"]["logits"][-1].astype(np.float64) * rms[0] / rms[1]
    moved = (logits[65] + logits[66]) / 2 - logits[67]
    assert found.metric - moved == pytest.approx(found.neurons.values[2, unit], abs=1e-4)


def test_bad_input(llama: Client, folder: Path) -> None:
    for metric in (LogProb(65), TopLogits(3)):  # of another stream, other logits would be the largest
        with pytest.raises(InvalidArgument, match="takes Logit or LogitDifference, got"):
            direct_logit(llama, PROMPT, metric)
    with pytest.raises(InvalidArgument, match="position 9; the prompt has 6"):
        direct_logit(llama, PROMPT, Logit(65, position=9))
    with pytest.raises(InvalidArgument):
        direct_logit(llama, PROMPT, Logit(10**6))
    with client_of(folder, "gpt_oss") as client, pytest.raises(Unsupported, match="offers no mlp_act"):
        direct_logit(client, PROMPT, Logit(65), neurons=True)


def test_the_default_model(default_client: Client) -> None:
    good, bad = (default_client.tokenize(name).token_ids[-1] for name in (" Mary", " John"))
    prompt = "When Mary and John went to the store, John gave a drink to"
    found = direct_logit(default_client, prompt, LogitDifference((good,), (bad,)), heads=True)
    assert found.metric > 4.0
    check_sums(found)
    assert found.bias == 0.0
    assert int(found.attn.values.argmax()) >= 20, "names are moved late"
    assert found.heads is not None
    assert found.heads.values.sum(axis=1) == pytest.approx(found.attn.values, abs=1e-4)
