"""A model that takes no sweeps says so in Describe and when asked, with the reason, and leaves no traceback in the log."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from probewire.clients import Client, Logit, Scale, hook
from probewire.protos.errors import InvalidArgument, Unsupported
from probewire.server.worker.inprocess import InProcessService
from tests.backends.derived import write


@pytest.fixture(scope="module", params=["torch", "mlx"])
def mamba(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write("mamba", tmp_path_factory.mktemp("mamba"), hidden_size=64, num_hidden_layers=2, state_size=8)
    service = InProcessService.create(folder, backend=request.param, dtype="float32", device="cpu")
    with Client.inprocess(service) as client:
        yield client


def test_a_sweep_is_refused_with_the_reason_that_describe_has(mamba: Client, caplog: pytest.LogCaptureFixture) -> None:
    info = mamba.describe()
    why = info.refused["sweeps"]
    assert "attention" in why
    assert why in " ".join(repr(info).split())
    plans = [[hook("attn_out.1", Scale(0.5))]]
    with caplog.at_level(logging.INFO), pytest.raises(Unsupported) as refused:
        mamba.sweep([[5, 6, 7]], Logit(5), plans, progress=False)
    assert f"takes no sweeps: {why}; send each plan as a run" in refused.value.message
    assert not [record for record in caplog.records if record.exc_info]
    # what it is told to do instead works
    assert mamba.run([[5, 6, 7]], hooks=plans[0], capture=["logits"])["logits"].shape[0] == 3


def test_a_site_is_refused_with_the_reason_that_describe_has(mamba: Client) -> None:
    with pytest.raises(InvalidArgument, match=r"has no site mlp_out \(the layer has no MLP\); allowed: "):
        mamba.run([[5, 6, 7]], capture=["mlp_out.1"])


def test_describe_names_no_attention_kernel_where_there_is_no_attention(mamba: Client) -> None:
    info = mamba.describe()
    assert info.attention == "none"
    if info.backend == "torch":
        told = " ".join(repr(info).split())
        assert "at once (in turns" not in told
        assert "each prompt is read whole, in one forward: tried in pieces, its logits differ" in told
        assert "batching none" not in told
