"""GGUF to Hugging Face names, rows and config, on a file whose weights are known."""

import numpy as np
import pytest

from probewire.backends.checkpoints.gguf_model import GgufModel
from probewire.backends.checkpoints.progress import Progress
from probewire.protos.errors import FailedPrecondition


@pytest.fixture
def model(tiny_gguf, tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_gguf.data)
    return GgufModel(path)


def test_every_weight_returns_as_it_was(model, tiny_gguf):
    seen: list[Progress] = []
    tensors = model.tensors(seen.append)
    assert tensors.keys() == tiny_gguf.weights.keys()
    for name, weight in tiny_gguf.weights.items():
        assert tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensors[name], weight, err_msg=name)
    total = sum(weight.nbytes for weight in tensors.values())
    assert seen[-1] == Progress("dequantise", total, total)


def test_config(model):
    config = model.config()
    assert config["rope_theta"] == 50000.0
    assert config["rope_parameters"] == {"rope_theta": 50000.0, "rope_type": "default"}
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is True
    assert config["torch_dtype"] == "float32"
    assert (config["hidden_size"], config["head_dim"], config["num_key_value_heads"]) == (32, 8, 2)
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)


def test_missing_metadata_is_named(model):
    with pytest.raises(FailedPrecondition, match=r"no llama\.expert_count"):
        model.metadata("llama.expert_count")
