"""Adapters of PEFT on both backends: the logits that PEFT itself gives with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

pytestmark = [
    # PEFT asks transformers by an old name
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # lookup and head of a tied model, each with an adapter of its own: what is tested
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    # biases of adapters at modules without one
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
    # … which have one axis, and PEFT takes them for parts of a sharded model
    pytest.mark.filterwarnings("ignore:Adapter 'default'.*have invalid shape"),
]
IDS = [5, 17, 200, 31, 8]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "patterns": (
        "llama",
        {"target_modules": ["q_proj", "down_proj"], "rank_pattern": {"down_proj": 3}, "use_rslora": True},
    ),
    "biases": ("llama", {"target_modules": ["o_proj", "gate_proj"], "lora_bias": True}),
    "embedding and head": ("qwen2", {"target_modules": ["embed_tokens", "lm_head", "v_proj"]}),
    "merged projections": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "turned": ("gpt2", {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True}),
}


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_peft_computes(case: str, backend: str, tmp_path: Path) -> None:
    family, config = CASES[case]
    folder = tiny_checkpoint(family, tmp_path / "base")
    torch.manual_seed(3)
    base: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapted: Any = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=6, **config))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.eval()
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with torch.no_grad():
        expected = adapted(torch.tensor([IDS])).logits[0].numpy()
    with Client.inprocess(
        InProcessService.create(str(folder), backend=backend, dtype="float32", device="cpu")
    ) as client:
        client.load_variant(tmp_path / "adapter")
        got = client.run(IDS, capture="logits", variant="adapter").captures["logits"]
    bound = {"torch": 1e-5, "mlx": 1e-4}[backend]
    np.testing.assert_allclose(got, expected, atol=bound * np.abs(expected).max())
