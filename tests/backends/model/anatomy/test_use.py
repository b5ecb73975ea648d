"""What a derived table is good for: gradients, sweeps, generation and what Describe says of it, on architectures without a row."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from probewire.clients import Client, InvalidArgument, Logit, capture, steer
from probewire.server.worker.inprocess import InProcessService
from tests.backends.derived import SIZES, write

KINDS: dict[str, dict[str, Any]] = {
    "gpt_neox": {**SIZES, "intermediate_size": 256},
    "olmo2": {**SIZES, "num_key_value_heads": 2},
    "granite": {**SIZES, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "mixtral": {**SIZES, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "olmo3": {**SIZES, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
}
PROMPT = [list(range(10, 26))]
METRIC = Logit(7)


@pytest.fixture(scope="module", params=[(kind, backend) for kind in KINDS for backend in ("torch", "mlx")], ids=str)
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of a model in this process."""
    kind, backend = request.param
    folder = write(kind, tmp_path_factory.mktemp(kind), **KINDS[kind])
    with Client.inprocess(InProcessService.create(folder, backend=backend, dtype="float32", device="cpu")) as client:
        yield client


def test_a_gradient_is_the_difference_that_an_edit_makes(client: Client) -> None:
    """Central differences along a random direction, at the stream and at an inner site."""
    for site in ("resid_pre.1", "attn_in.2", "z.1"):
        value = client.run(PROMPT, capture=[site])[site]
        found = client.gradients(PROMPT, METRIC, at=[site], progress=False)
        step = np.random.default_rng(3).standard_normal(value.shape[1:]).astype(np.float32)
        step *= 1e-3 * np.abs(value).mean()
        sides = [
            client.run(PROMPT, capture=["logits"], hooks=[steer(site, step, sign)])["logits"][-1, 7] for sign in (1, -1)
        ]
        expected = (sides[0] - sides[1]) / 2
        assert (found.gradients[site] * step).sum() == pytest.approx(expected, rel=2e-2, abs=1e-5), site


def test_sharing_what_plans_have_in_common_changes_nothing(client: Client) -> None:
    plans = [[steer(f"resid_post.{layer}", np.ones(64), 0.5, positions=p)] for layer in range(3) for p in (4, 12)]
    shared, alone = (client.sweep(PROMPT, METRIC, plans, share=share, progress=False) for share in (True, False))
    assert np.allclose(shared.array(), alone.array(), rtol=1e-4, atol=1e-5)


def test_a_generation_is_the_run_of_its_tokens(client: Client) -> None:
    made = client.generate(PROMPT, capture=["resid_post.2"], max_new_tokens=12, ignore_eos=True)
    ran = client.run([list(made.token_ids[:-1])], capture=["resid_post.2", "logits"])
    assert np.abs(made["resid_post.2"] - ran["resid_post.2"]).max() <= 1e-4 * np.abs(ran["resid_post.2"]).max()
    assert made.token_ids[16:] == tuple(ran["logits"][15:].argmax(axis=-1))


def test_describe_says_what_was_proven_and_why_the_rest_is_not_there(client: Client) -> None:
    info = client.describe()
    assert "sites derived from one forward" in info.proof
    assert "proof" in repr(info)
    for site, reason in info.refused.items():
        assert info.site(site) is None
        assert reason in " ".join(repr(info).split()), reason
        with pytest.raises(InvalidArgument, match=re.escape(f"no site {site} ({reason}); allowed")):
            client.run(PROMPT, capture=[capture(f"{site}.0")])
