"""PEFT's adapters, written and read, against PEFT's own model: same logits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from probewire.protos.edits import Scale
from probewire.protos.errors import FailedPrecondition, InvalidArgument
from probewire.protos.hooks import Hook
from probewire.protos.model_info import ModelInfo, WeightInfo
from probewire.protos.spec import Plan
from probewire.protos.variants.delta import Delta
from probewire.protos.variants.manifest import Base, Manifest
from probewire.protos.variants.variant import Variant
from tests.tiny_models import tiny_checkpoint

pytestmark = [
    # PEFT asks transformers by an old name
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # the trap that the tests of embeddings are about: nobody merges here
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    # biases of adapters at modules without one are what is tested
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
    # PEFT takes lora_B.bias, which has one axis, for a part of a sharded model
    pytest.mark.filterwarnings("ignore:Adapter 'default'.*have invalid shape"),
    # gpt2's body is stored turned and its head is not; PEFT sees to each and says so
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
]

IDS = torch.tensor([[5, 17, 200, 31, 8]])
MODULES = {"w_q": "self_attn.q_proj", "w_k": "self_attn.k_proj", "w_v": "self_attn.v_proj", "w_o": "self_attn.o_proj",
           "w_gate": "mlp.gate_proj", "w_up": "mlp.up_proj", "w_down": "mlp.down_proj"}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied, so that the embedding and the head are one matrix with two names."""
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"), tie_word_embeddings=True)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("gpt2", tmp_path_factory.mktemp("gpt2"))


def model_of(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def info_of(folder: Path) -> ModelInfo:
    """The table of weights as a server gives it."""
    model = model_of(folder)
    weights: list[WeightInfo] = []
    if model.config.model_type == "gpt2":
        for layer in range(model.config.n_layer):
            path = f"transformer.h.{layer}"
            weights += [WeightInfo(f"{name}.{layer}", f"{path}.attn.c_attn", 64, 64) for name in ("w_q", "w_k", "w_v")]
            weights += [WeightInfo(f"w_o.{layer}", f"{path}.attn.c_proj", 64, 64)]
            weights += [WeightInfo(f"w_up.{layer}", f"{path}.mlp.c_fc", 64, 256)]
            weights += [WeightInfo(f"w_down.{layer}", f"{path}.mlp.c_proj", 256, 64)]
        weights += [WeightInfo("w_embed", "transformer.wte", 261, 64), WeightInfo("w_unembed", "lm_head", 64, 261)]
    else:
        for layer in range(model.config.num_hidden_layers):
            for name, path in MODULES.items():
                whole = f"model.layers.{layer}.{path}"
                module = model.get_submodule(whole)
                weights.append(WeightInfo(f"{name}.{layer}", whole, module.in_features, module.out_features))
        weights += [WeightInfo("w_embed", "model.embed_tokens", 261, 64), WeightInfo("w_unembed", "lm_head", 64, 261)]
    return ModelInfo(
        id="tiny", family=model.config.model_type, architecture=model.config.model_type, backend="torch", device="cpu",
        dtype="float32", attention="eager", model_hash="ab" * 32, n_layers=3, d_model=64, n_heads=4, n_kv_heads=2, d_head=16,
        d_mlp=96, vocab_size=261, weights=tuple(weights),
    )  # fmt: skip


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(IDS).logits.numpy()


def changed(folder: Path, variant: Variant) -> Any:
    """Logits of the base with each delta added by hand where the module computes."""
    model = model_of(folder)
    table = {weight.name: weight for weight in info_of(folder).weights}
    for name, delta in variant.deltas.items():
        path = table[name].path if name in table else name.removeprefix("module:")
        module = model.get_submodule(path)
        same = [one for one in table.values() if one.path == path]
        start = sum(one.d_out for one in same[: same.index(table[name])]) if name in table else 0
        module.register_forward_hook(_adding(delta, start, lookup=name == "w_embed"))
    return logits(model)


def _adding(delta: Delta, start: int, *, lookup: bool) -> Any:
    a, b = torch.tensor(delta.a), torch.tensor(delta.b)
    bias = 0 if delta.bias is None else torch.tensor(delta.bias)

    def hook(_module: Any, args: Any, output: Any) -> Any:
        output = output.clone()
        output[..., start : start + delta.d_out] += (a[args[0]] if lookup else args[0] @ a) @ b + bias
        return output

    return hook


def trained(folder: Path, **config: Any) -> Any:
    """PEFT's model with an adapter whose every number is drawn, as if it were trained."""
    torch.manual_seed(3)
    adapted = peft.get_peft_model(model_of(folder), peft.LoraConfig(task_type="CAUSAL_LM", lora_alpha=6, **config))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return adapted.eval()


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "patterns": {
        "r": 4,
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        "rank_pattern": {"model.layers.1.self_attn.q_proj": 2, "down_proj": 3, r"layers\.[02]\.self_attn\.k_proj": 5},
        "alpha_pattern": {"layers.2.self_attn.q_proj": 9, "k_proj": 2.5},
    },
    "rslora": {"r": 4, "use_rslora": True, "target_modules": ["o_proj", "up_proj"], "rank_pattern": {"up_proj": 9}},
    "biases": {"r": 2, "lora_bias": True, "target_modules": ["gate_proj", "o_proj"]},
    "embeddings": {"r": 2, "target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "some layers": {"r": 2, "target_modules": ["q_proj"], "layers_to_transform": [1]},
    "expression": {"r": 2, "target_modules": r".*\.(1|2)\.mlp\.(up|down)_proj"},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_adapter_of_peft_is_read(llama: Path, tmp_path: Path, kind: str) -> None:
    adapted = trained(llama, **CONFIGS[kind])
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    variant = Variant.load(tmp_path)
    assert all(name.startswith("module:") or name == "w_embed" for name in variant.deltas)
    bound = variant.bound(info_of(llama))
    assert not any(name.startswith("module:") for name in bound.deltas)
    expected, got = logits(adapted), changed(llama, bound)
    assert np.abs(expected - logits(model_of(llama))).max() > 0.1
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_a_merged_projection_stays_whole(gpt2: Path, tmp_path: Path) -> None:
    adapted = trained(gpt2, r=3, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    adapted.save_pretrained(tmp_path)
    bound = Variant.load(tmp_path).bound(info_of(gpt2))
    assert {name.partition(".")[0] for name in bound.deltas} == {"module:transformer", "w_up"}
    expected = logits(adapted)
    np.testing.assert_allclose(changed(gpt2, bound), expected, atol=1e-5 * np.abs(expected).max())


def ours(folder: Path, *, bias: bool = False, embeddings: bool = False) -> Variant:
    """Ranks that differ from weight to weight."""
    rng, info = np.random.default_rng(7), info_of(folder)
    deltas: dict[str, Delta] = {}
    for index, weight in enumerate(info.weights):
        if weight.name in ("w_embed", "w_unembed") and not embeddings:
            continue
        rank = 1 + index % 3
        own = rng.normal(size=weight.d_out) * 0.1 if bias and index % 2 else None
        deltas[weight.name] = Delta(
            rng.normal(size=(weight.d_in, rank)) * 0.1, rng.normal(size=(rank, weight.d_out)) * 0.1, own
        )
    return Variant(deltas, manifest=Manifest(name="made", base=Base.of(info)))


@pytest.mark.parametrize("how", [{}, {"bias": True}, {"embeddings": True}])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_folder_of_ours_is_an_adapter_of_peft(
    family: str, how: dict[str, bool], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base: Path = request.getfixturevalue(family)
    variant = ours(base, **how)
    folder = variant.save(tmp_path / "v")
    assert json.loads((folder / "variant.json").read_text())["complete_in_peft"]
    expected = changed(base, variant)
    adapted = peft.PeftModel.from_pretrained(model_of(base), folder).eval()
    np.testing.assert_allclose(logits(adapted), expected, atol=1e-5 * np.abs(expected).max())
    assert Variant.load(folder) == variant
    # by PEFT's own files alone: the same change
    alone = Variant.load(variant.export(tmp_path / "peft", "peft")).bound(info_of(base))
    np.testing.assert_allclose(changed(base, alone), expected, atol=1e-5 * np.abs(expected).max())


def test_peft_has_no_adapter_for_biases_beside_an_embedding(llama: Path, tmp_path: Path) -> None:
    variant = ours(llama, bias=True, embeddings=True)
    folder = variant.save(tmp_path / "v")
    assert not (folder / "adapter_config.json").exists()
    assert Variant.load(folder) == variant
    with pytest.raises(InvalidArgument, match="save two"):
        variant.export(tmp_path / "peft", "peft")


def test_export_needs_paths_and_no_hooks(llama: Path, tmp_path: Path) -> None:
    loose = Variant({"w_q.0": Delta([[1.0]], [[1.0]])})
    with pytest.raises(InvalidArgument, match="bind it first"):
        loose.export(tmp_path / "x")
    hooked = Variant(ours(llama).deltas, Plan((Hook("mlp_out.1", Scale(0.5)),)), ours(llama).manifest)
    with pytest.raises(InvalidArgument, match="drop_hooks"):
        hooked.export(tmp_path / "x")
    folder = hooked.export(tmp_path / "x", drop_hooks=True)
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert not json.loads((hooked.save(tmp_path / "y") / "variant.json").read_text())["complete_in_peft"]
    with pytest.raises(InvalidArgument, match="allowed: peft, mlx-lm"):
        hooked.export(tmp_path / "z", "gguf", drop_hooks=True)


class TestBinding:
    def test_another_model_is_refused_unless_rebased(self, llama: Path) -> None:
        variant, info = ours(llama), info_of(llama)
        assert variant.bound(info).hash == variant.hash
        other = Variant(variant.deltas, manifest=Manifest(base=Base(id="old", model_hash="cd" * 32)))
        with pytest.raises(FailedPrecondition, match=r"cdcdcdcdcdcdcdcd… \(old\), and tiny is abababababababab"):
            other.bound(info)
        rebased = other.bound(info, rebase=True)
        assert rebased.hash == variant.hash
        assert rebased.manifest.made_of[-1]["rebased_from"] == "cd" * 32

    def test_shapes_and_modules_are_those_of_the_model(self, llama: Path) -> None:
        info = info_of(llama)
        for name, d_in, d_out in (("w_q.0", 63, 64), ("w_down.2", 64, 96)):
            with pytest.raises(InvalidArgument, match=f"the delta at {name} is of"):
                Variant({name: Delta(np.ones((d_in, 1)), np.ones((1, d_out)))}).bound(info)
        one = Delta(np.ones((64, 1)), np.ones((1, 64)))
        unknown = Variant({"module:model.layers.0.self_attn.q_prj": one})
        assert set(unknown.bound(info).deltas) == set(unknown.deltas)  # whether there is one, its own table says
        with pytest.raises(InvalidArgument, match=r"no delta at w_q\.7; the nearest are w_q"):
            Variant({"w_q.7": one}).bound(info)

    def test_other_libraries_name_the_body_differently(self, gpt2: Path) -> None:
        one = Delta(np.ones((64, 1)), np.ones((1, 64)))
        bound = Variant({"module:model.h.1.attn.c_proj": one}).bound(info_of(gpt2))
        assert set(bound.deltas) == {"w_o.1"}
        wide = Variant({"module:model.h.1.attn.c_attn": Delta(np.ones((64, 1)), np.ones((1, 192)))})
        assert set(wide.bound(info_of(gpt2)).deltas) == {"module:transformer.h.1.attn.c_attn"}

    def test_a_tied_head_has_a_name_of_its_own(self, llama: Path, tmp_path: Path) -> None:
        """mlx-lm has no module for it: the table names the embedding's twice."""
        info = info_of(llama)
        tied = tuple(
            replace(one, path="model.embed_tokens") if one.name == "w_unembed" else one for one in info.weights
        )
        variant = Variant(
            ours(llama, embeddings=True).deltas, manifest=Manifest(base=Base.of(replace(info, weights=tied)))
        )
        alone = Variant.load(variant.export(tmp_path / "peft")).bound(info)
        assert dict(alone.deltas) == dict(variant.deltas)
        assert dict(Variant.load(variant.save(tmp_path / "own")).deltas) == dict(variant.deltas)

    def test_parts_that_lie_otherwise_are_not_exported(self, gpt2: Path, tmp_path: Path) -> None:
        """GPT-NeoX gives q, k and v head by head."""
        info = replace(info_of(gpt2), architecture="gpt_neox")
        variant = Variant(ours(gpt2).deltas, manifest=Manifest(base=Base.of(info)))
        with pytest.raises(InvalidArgument, match="does not say where its weights lie"):
            variant.export(tmp_path / "peft")
        assert Variant.load(variant.save(tmp_path / "own")) == variant


@pytest.fixture
def adapter(llama: Path, tmp_path: Path) -> Path:
    trained(llama, r=4, target_modules=["q_proj"]).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def with_config(folder: Path, **changes: Any) -> Path:
    told = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(told | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"use_dora": True}, "use_dora.*save_as_lora"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"peft_type": "MISS"}, "of the kind 'MISS'"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "belongs to a base"),
        ({"init_lora_weights": 1}, "belongs to a base"),
        ({"bias": "all"}, "bias 'all'"),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "whole matrices.*merge_and_unload"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "experts"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [3]}, r"phase='generated'"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"brand_new": {"x": 1}}, "sets brand_new, whose effect is not known"),
        ({"r": 0}, "no usable r"),
        ({"r": True}, "no usable r"),
        ({"r": 3}, "its config says rank 3"),
        ({"lora_alpha": "x"}, "no usable r"),
        ({"lora_alpha": 1e400}, "is no JSON"),
        ({"rank_pattern": [1]}, "no usable r"),
        ({"rank_pattern": {"(a+)+b": 2}}, "is not followed here"),
        ({"rank_pattern": {"(": 2}}, "no regular expression"),
        ({"rank_pattern": {"a" * 301: 2}}, "is not followed here"),
        ({"target_modules": ["k_proj"]}, "does not name"),
        ({"target_modules": 3}, "target_modules is a list"),
        ({"lora_bias": True}, r"no lora_B\.bias"),
    ],
)
def test_what_is_no_additive_low_rank_is_refused(adapter: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        Variant.load(with_config(adapter, **changes))


def test_pickles_are_never_opened(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(InvalidArgument, match=r"adapter_model\.bin, a pickle, which is never opened"):
        Variant.load(adapter)


def test_whole_matrices_beside_the_factors_are_refused(llama: Path, tmp_path: Path) -> None:
    adapted = trained(llama, r=2, target_modules=["embed_tokens"])
    adapted.save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(InvalidArgument, match="save_embedding_layers=False"):
        Variant.load(tmp_path)


def test_a_factor_alone_is_refused(adapter: Path) -> None:
    from safetensors.numpy import load_file, save_file

    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[next(name for name in tensors if "lora_B" in name)]
    save_file(tensors, file)
    with pytest.raises(InvalidArgument, match=r"only lora_A\.weight of model\.layers\.0"):
        Variant.load(adapter)
