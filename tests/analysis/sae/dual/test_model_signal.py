"""The model's own loss as what latents matter by: the numbers are those of the server's latent gradients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from probewire.analysis.sae.dual.guided import GradientGuided
from probewire.analysis.sae.dual.model_signal import ModelSignal, model_signal
from probewire.analysis.sae.model.configs import TrainConfig, new_sae
from probewire.clients import Client, capture
from probewire.protos.errors import FailedPrecondition, InvalidArgument
from probewire.protos.metrics import LogProb, WeightedSum
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

SITE = "resid_post.1"
FORGET, RETAIN = ["the oak is tall and so is the elm", "an oak"], ["two and two are four", "the sun rises in the east"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    with Client.inprocess(InProcessService.create(str(folder), backend="torch", dtype="float32", device="cpu")) as made:
        yield made


def test_importance_is_that_of_the_servers_latent_gradients(client: Client, tmp_path: Path) -> None:
    """f · ∂L/∂f of every latent, from an SAE that the server has loaded."""
    sae = new_sae(TrainConfig(architecture="standard", d_sae=24, steps=10, batch_size=8, l1_coefficient=1.0), 64)
    sae.save_inference_model(tmp_path / "sae")
    info = client.load_sae(tmp_path / "sae", name="asked", site=SITE)
    signal = model_signal(client, SITE, FORGET, RETAIN, n_tokens=12)
    assert (signal.n_forget, len(signal.rows)) == (12, 24)
    sides: list[np.ndarray] = []
    try:
        for texts in (FORGET, RETAIN):
            rows: list[np.ndarray] = []
            for text in texts:
                ids = client.tokenize(text).token_ids
                loss = WeightedSum(
                    tuple(LogProb(ids[at], position=at - 1) for at in range(1, len(ids))), (-1.0,) * (len(ids) - 1)
                )
                read = capture(SITE, latents=info.name, top_k=24)
                found = client.gradients(text, loss, at=[read], progress=False).gradients.latents(SITE)
                dense = np.zeros((len(ids), 24))
                for row, (own, values, n) in enumerate(zip(found.ids, found.attributions, found.counts, strict=True)):
                    dense[row, own[:n]] = np.abs(values[:n])
                rows.append(dense[1:-1])
            sides.append(np.concatenate(rows)[:12].mean(axis=0))
    finally:
        client.unload_sae("asked")
    expected = sides[0] - sides[1]
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(signal.importance(sae).numpy(), expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_scaled_rows_have_the_same_order_and_whitened_ones_are_refused(client: Client) -> None:
    sae = new_sae(TrainConfig(architecture="standard", d_sae=24, steps=10, batch_size=8, l1_coefficient=1.0), 64)
    with torch.no_grad():
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    signal = model_signal(client, SITE, FORGET, RETAIN, n_tokens=12)
    plain = signal.importance(sae)
    sae.activation_scaler = SimpleNamespace(scaling_factor=3.0, whitening=None)
    torch.testing.assert_close(
        signal.importance(sae), plain, msg="without biases f grows by the factor, and the slope falls by it"
    )
    sae.activation_scaler = SimpleNamespace(scaling_factor=None, whitening=object())
    with pytest.raises(FailedPrecondition, match="covariance_whitening"):
        signal.importance(sae)


def test_what_matters_least_to_the_model_begins_anew() -> None:
    """Four latents that read a coordinate each; the model's loss falls with the first alone, on forget rows."""
    rows = np.ones((4, 4), dtype=np.float32)
    gradients = np.zeros((4, 4), dtype=np.float32)
    gradients[:2, 0], gradients[2:, 1] = -1.0, -1.0
    signal = ModelSignal(rows, gradients, 2)

    class Sae:
        W_dec = torch.eye(4)
        cfg = SimpleNamespace()

        def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

    assert signal.importance(Sae()).tolist() == [1.0, -1.0, 0.0, 0.0]
    guided = GradientGuided(torch.tensor([True, False]), 10, signal=signal)
    assert guided.note["signal"]["model"]["n_forget"] == 2
    assert GradientGuided(torch.tensor([True, False]), 10).note["signal"] == "error"


def test_what_is_no_signal_is_refused(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="rows, and 99 were asked for"):
        model_signal(client, SITE, FORGET, RETAIN, n_tokens=99)
    with pytest.raises(InvalidArgument, match="as many gradients as rows"):
        ModelSignal(np.zeros((3, 2), np.float32), np.zeros((3, 2), np.float32), 3)
