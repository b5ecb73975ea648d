"""LoRA folders: merged they compute what base and adapter compute side by side, on both backends; what does not fit is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from probewire.backends import load_backend
from probewire.backends.checkpoints import convert_model, resolve_model
from probewire.backends.model.limits import Limits
from probewire.protos.errors import InvalidArgument, NotFound, ProbewireError, Unsupported
from probewire.protos.spec import Capture, Hook, Plan
from tests.parity.harness import TOLERANCE, run
from tests.tiny_models import tiny_checkpoint, write_tokenizer

LIMITS = Limits(n_slots=2, context_tokens=64, cache_tokens=256, chunk_tokens=8)
TOKENS = list(range(20, 40))
RANK, ALPHA = 4, 12

CASES: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "plain": ("llama", ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"), {}),
    "rslora": ("llama", ("self_attn.q_proj", "mlp.up_proj"), {"use_rslora": True}),
    "dora": ("llama", ("self_attn.q_proj", "mlp.up_proj"), {"use_dora": True}),
    "patterns": (
        "llama",
        ("self_attn.q_proj", "self_attn.o_proj"),
        {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"o_proj": 3}},
    ),
    "turned": ("gpt2", ("attn.c_attn", "mlp.c_proj"), {"fan_in_fan_out": True}),
    "turned dora": ("gpt2", ("attn.c_attn", "mlp.c_fc"), {"use_dora": True, "fan_in_fan_out": True}),
    "bias": ("gpt2", ("attn.c_attn",), {"bias": "lora_only"}),
    "lora bias": ("gpt2", ("attn.c_attn",), {"lora_bias": True}),
    "saved modules": ("llama", ("self_attn.q_proj",), {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "embedding": ("qwen2", ("self_attn.q_proj", "embed_tokens"), {}),
    "head of its own": ("qwen2", ("self_attn.q_proj", "lm_head"), {}),
    "saved head": ("qwen2", ("self_attn.q_proj",), {"modules_to_save": ["lm_head"]}),
}
"""Name -> family (qwen2's head is its embedding), modules, fields of the config."""


class Adapter:
    """An adapter drawn at random, in the folder that PEFT writes and as hooks that compute what PEFT documents."""

    def __init__(self, base: Path, folder: Path, targets: tuple[str, ...], **fields: Any) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
        self.model.eval()
        if self.model.config.tie_word_embeddings:  # an adapter of one of the two leaves the other alone
            self.model.lm_head.weight = torch.nn.Parameter(self.model.lm_head.weight.detach().clone())
        self.generator = torch.Generator().manual_seed(3)
        self.fields = fields
        self.tensors: dict[str, torch.Tensor] = {}
        modules = {name: module for name, module in self.model.named_modules() if name.endswith(targets)}
        for name, module in modules.items():
            if name.endswith("embed_tokens"):
                self._embedding(name, module)
            else:
                self._linear(name, module)
        for saved in fields.get("modules_to_save", ()):
            name, module = next((n, m) for n, m in self.model.named_modules() if n.endswith(saved))
            module.weight.data = self._random(*module.weight.shape)
            self.tensors[f"{name}.weight"] = module.weight.data
        folder.mkdir(parents=True)
        save_file(
            {f"base_model.model.{name}": t for name, t in self.tensors.items()}, folder / "adapter_model.safetensors"
        )
        written = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": RANK, "lora_alpha": ALPHA, **fields}
        (folder / "adapter_config.json").write_text(json.dumps(written))

    def logits(self) -> np.ndarray[Any, Any]:
        """[row, vocab] of the base with the adapter beside it."""
        with torch.no_grad():
            return self.model(torch.tensor([TOKENS]), use_cache=False).logits[0].numpy()

    def _random(self, *shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, generator=self.generator)

    def _scale(self, name: str) -> tuple[int, float]:
        ranks, alphas = self.fields.get("rank_pattern", {}), self.fields.get("alpha_pattern", {})
        rank = next((r for end, r in ranks.items() if name.endswith(end)), RANK)
        alpha = next((a for end, a in alphas.items() if name.endswith(end)), ALPHA)
        return rank, alpha / math.sqrt(rank) if self.fields.get("use_rslora") else alpha / rank

    def _linear(self, name: str, module: Any) -> None:
        turned = type(module).__name__ == "Conv1D"
        n_in, n_out = module.weight.shape if turned else module.weight.shape[::-1]
        rank, scale = self._scale(name)
        a, b = self._random(rank, n_in), self._random(n_out, rank)
        self.tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        offset: torch.Tensor | float = 0.0
        if self.fields.get("bias") == "lora_only":
            module.bias.data = self._random(n_out)
            self.tensors[f"{name}.base_layer.bias"] = module.bias.data
        if self.fields.get("lora_bias"):
            extra = self.tensors[f"{name}.lora_B.bias"] = self._random(n_out)
            offset = scale * extra
        length: torch.Tensor | None = None
        if self.fields.get("use_dora"):
            length = self.tensors[f"{name}.lora_magnitude_vector"] = 1 + self._random(n_out).abs()

        def hook(module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            delta = scale * functional.linear(functional.linear(inputs[0], a), b)
            if length is None:
                return output + delta + offset
            weight = module.weight.T if turned else module.weight
            whole = torch.stack([weight[o] + scale * (b[o] @ a) for o in range(n_out)])
            bias = 0.0 if module.bias is None else module.bias
            return (output - bias + delta) * (length / whole.norm(dim=1)) + bias

        module.register_forward_hook(hook)

    def _embedding(self, name: str, module: Any) -> None:
        n, d = module.weight.shape
        rank, scale = self._scale(name)
        a, b = self._random(rank, n), self._random(d, rank)
        self.tensors |= {f"{name}.lora_embedding_A": a, f"{name}.lora_embedding_B": b}
        self.tensors[f"{name}.base_layer.weight"] = module.weight.data.clone()
        module.register_forward_hook(lambda _, inputs, output: output + scale * (a.T[inputs[0]] @ b.T))


def logits(name: str, folder: Path) -> np.ndarray[Any, Any]:
    backend = load_backend(name, folder, model_id="tiny", limits=LIMITS, dtype="float32", device="cpu", check=False)
    try:
        return run(backend, TOKENS, Plan((Hook("logits", capture=Capture()),)))[0, "logits", ""].values
    finally:
        backend.close()


def base_of(family: str, folder: Path) -> Path:
    return tiny_checkpoint(family, folder, **({"n_layer": 2} if family == "gpt2" else {"num_hidden_layers": 2}))


@pytest.mark.parametrize("case", CASES)
def test_merged_is_side_by_side(
    case: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, cache: Path
) -> None:
    family, targets, fields = CASES[case]
    base = base_of(family, tmp_path_factory.mktemp("base"))
    adapter = Adapter(base, tmp_path / "adapter", targets, **fields)
    expected, folder = adapter.logits(), resolve_model(str(tmp_path / "adapter"), cache_dir=cache).folder
    own: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        found = own(torch.tensor([TOKENS]), use_cache=False).logits[0].numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    for name in ("torch", "mlx"):
        assert np.abs(logits(name, folder) - expected).max() <= TOLERANCE["float32"] * np.abs(expected).max()
    assert np.abs(logits("torch", base) - expected).max() > 0.05 * np.abs(expected).max()


def test_what_the_adapter_leaves_alone_stays_to_the_bit(plain: Path, tmp_path: Path, cache: Path) -> None:
    Adapter(plain, tmp_path / "adapter", ("layers.1.self_attn.q_proj",))
    folder = resolve_model(str(tmp_path / "adapter"), cache_dir=cache).folder
    before, after = load_file(plain / "model.safetensors"), load_file(folder / "model.safetensors")
    changed = [name for name, weight in before.items() if not torch.equal(weight, after[name])]
    assert changed == ["model.layers.1.self_attn.q_proj.weight"]
    assert before.keys() == after.keys()
    assert (folder / "tokenizer.json").read_bytes() == (plain / "tokenizer.json").read_bytes()


def test_an_adapter_of_a_packed_base_is_merged_into_what_that_means(plain: Path, tmp_path: Path, cache: Path) -> None:
    from tests.backends.checkpoints.conversion.kinds import KINDS, packer
    from tests.backends.checkpoints.conversion.packers import pack_folder

    meant = pack_folder(plain, tmp_path / "packed", KINDS["gptq 4 bits"][0], packer("gptq 4 bits"))
    Adapter(plain, tmp_path / "adapter", ("layers.1.self_attn.q_proj",))
    _edit(tmp_path / "adapter", base_model_name_or_path="../packed")
    folder = resolve_model(str(tmp_path / "adapter"), cache_dir=cache).folder
    backend = load_backend("torch", folder, model_id="tiny", limits=LIMITS, device="cpu", check=False)
    assert backend.info.origin == "adapter: adapter on packed"
    assert "converted from adapter: adapter on packed" in repr(backend.info)
    backend.close()
    after = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_array_equal(after[name].numpy(), meant[name])
    assert not np.array_equal(after[name.replace("0", "1", 1)].numpy(), meant[name.replace("0", "1", 1)])


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_vocabulary_that_grew(family: str, tmp_path: Path, cache: Path) -> None:
    """As PEFT writes it: embedding and head in whole, and beside them what they were before; qwen2's base has one for both."""
    base = base_of(family, tmp_path)
    Adapter(base, tmp_path / "adapter", ("q_proj",))
    new = {name: torch.randn(270, 64) for name in ("model.embed_tokens", "lm_head")}

    def grow(tensors: dict[str, torch.Tensor]) -> None:
        for name, weight in new.items():
            for part in ("", ".modules_to_save"):
                tensors[f"base_model.model.{name}{part}.weight"] = weight.clone()
            tensors[f"base_model.model.{name}.original_module.weight"] = torch.zeros(270, 64)

    _tensors(grow)(tmp_path / "adapter")
    folder = resolve_model(str(tmp_path / "adapter"), cache_dir=cache).folder
    weights = load_file(folder / "model.safetensors")
    assert all(torch.equal(weights[f"{name}.weight"], weight) for name, weight in new.items())
    for name in ("torch", "mlx"):
        assert logits(name, folder).shape == (len(TOKENS), 270)
    _tensors(lambda t: t.update({"base_model.model.lm_head.modules_to_save.weight": torch.ones(270, 64)}))(
        tmp_path / "adapter"
    )
    with pytest.raises(InvalidArgument, match=r"has two values for lm_head\.weight"):
        resolve_model(str(tmp_path / "adapter"), cache_dir=cache)


def test_the_adapters_own_tokenizer_counts(plain: Path, tmp_path: Path, cache: Path) -> None:
    Adapter(plain, tmp_path / "adapter", ("q_proj",))
    write_tokenizer(tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "tokenizer_config.json").read_text())
    (tmp_path / "adapter" / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 7}))
    folder = resolve_model(str(tmp_path / "adapter"), cache_dir=cache).folder
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 7


def test_the_hash_covers_base_and_adapter(plain: Path, tmp_path: Path, cache: Path) -> None:
    """An adapter of zeros merges to the base's own bytes, and is another model all the same."""
    for name in ("one", "two"):
        Adapter(plain, tmp_path / name, ("q_proj",))
        file = tmp_path / name / "adapter_model.safetensors"
        zeros = {key: torch.zeros_like(weight) for key, weight in load_file(file).items()}
        zeros |= {key: torch.ones_like(zeros[key]) for key in zeros if "lora_A" in key and name == "two"}
        save_file(zeros, file)
    found = [resolve_model(str(path), cache_dir=cache) for path in (plain, tmp_path / "one", tmp_path / "two")]
    weights = {(checkpoint.folder / "model.safetensors").read_bytes() for checkpoint in found[1:]}
    assert len(weights) == 1
    assert len({checkpoint.model_hash for checkpoint in found}) == 3
    again = convert_model(str(tmp_path / "one"), tmp_path / "out", cache_dir=cache)
    assert again.model_hash == found[1].model_hash, "wherever it lies"


def _edit(folder: Path, **fields: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return spoil


def _field(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: _edit(folder, **fields)


_Q = "base_model.model.model.layers.0.self_attn.q_proj"

MISFITS: dict[str, tuple[Callable[[Path], Any], type[ProbewireError], str]] = {
    "no base": (
        _field(base_model_name_or_path="./gone"),
        NotFound,
        r"needs its base './gone': there is no file or folder '\./gone'; check the path \(it was looked for in the adapter, beside",
    ),
    "no base named": (_field(base_model_name_or_path=None), InvalidArgument, "names no base .*--base"),
    "its own base": (_field(base_model_name_or_path="."), InvalidArgument, "would be its own base"),
    "other modules": (
        _tensors(lambda t: t.update({_Q.replace("q_proj", "query") + ".lora_A.weight": torch.zeros(4, 64)})),
        InvalidArgument,
        r"1 tensors that its base does not have, model.layers.0.self_attn.query.weight first",
    ),
    "more layers": (
        _tensors(lambda t: t.update({"base_model.model.model.layers.7.mlp.up_proj.lora_B.weight": torch.zeros(96, 4)})),
        InvalidArgument,
        "made for another base",
    ),
    "other widths": (
        _tensors(lambda t: t.update({f"{_Q}.lora_A.weight": torch.zeros(4, 32)})),
        InvalidArgument,
        r"A \[4, 32\]; .* make B \[64, 4\] and A \[4, 64\]",
    ),
    "another rank": (_field(r=8), InvalidArgument, r"r 8 of adapter_config.json make B \[64, 8\]"),
    "half": (
        _tensors(lambda t: t.pop(f"{_Q}.lora_B.weight")),
        InvalidArgument,
        "half of the factors .* lora_B is missing",
    ),
    "a resized vocabulary": (
        _tensors(lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(300, 64)})),
        InvalidArgument,
        r"lm_head.weight with shape \[300, 64\], its base with \[261, 64\]",
    ),
    "dora without lengths": (
        _field(use_dora=True),
        InvalidArgument,
        "says use_dora True, and .* has no magnitude vector",
    ),
    "not lora": (_field(peft_type="LOHA"), Unsupported, "kind LOHA; LORA can be merged"),
    "pissa": (
        _field(init_lora_weights="pissa"),
        Unsupported,
        "init_lora_weights 'pissa', which changes the base's own",
    ),
    "replicated layers": (_field(layer_replication=[[0, 2], [1, 2]]), Unsupported, "sets layer_replication"),
    "whatever comes next": (_field(use_next_idea=True), Unsupported, "sets use_next_idea, whose effect"),
    "no rank": (_field(r=None), InvalidArgument, "no usable r, lora_alpha or patterns"),
    "rank 0": (_field(r=0), InvalidArgument, "a rank below 1"),
    "no pattern": (_field(alpha_pattern={"(": 3}), InvalidArgument, "no usable r, lora_alpha or patterns"),
    "no tensors": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        InvalidArgument,
        "no adapter_model.safe",
    ),
    "cut short": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(
            (folder / "adapter_model.safetensors").read_bytes()[:-10]
        ),
        InvalidArgument,
        "is cut short",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_refused(name: str, plain: Path, tmp_path: Path, cache: Path) -> None:
    spoil, error, words = MISFITS[name]
    Adapter(plain, tmp_path / "adapter", ("q_proj",))
    spoil(tmp_path / "adapter")
    with pytest.raises(error, match=words) as caught:
        resolve_model(str(tmp_path / "adapter"), cache_dir=cache)
    assert "Error: " not in caught.value.message or words.startswith("cannot be")
    assert [path.name for path in cache.glob("converted/*") if path.suffix != ".lock"] == []


@pytest.mark.parametrize(
    ("named", "place"),
    [
        ("inner", "adapter/inner"),
        ("org/base", "org/base"),
        ("base", "base"),
        ("adapter", "adapter/adapter"),
        ("base", "cwd/base"),
    ],
)
def test_a_base_is_looked_for_in_the_adapter_beside_it_and_here(
    named: str, place: str, plain: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Adapter(plain, tmp_path / "adapter", ("q_proj",))
    _edit(tmp_path / "adapter", base_model_name_or_path=named)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    shutil.copytree(plain, tmp_path / place)
    folder = resolve_model(str(tmp_path / "adapter"), cache_dir=cache).folder
    record = json.loads((folder / "probewire.json").read_text())
    assert [source["name"] for source in record["sources"]] == ["adapter", Path(place).name]


def test_an_adapter_that_is_called_as_its_base_is_not_its_own(
    plain: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hub_folder(name: str, *_: object) -> Path:
        assert name == "gpt2"
        return plain

    monkeypatch.setattr("probewire.backends.checkpoints.checkpoint.hub_folder", hub_folder)
    Adapter(plain, tmp_path / "gpt2", ("q_proj",))
    _edit(tmp_path / "gpt2", base_model_name_or_path="gpt2")
    assert resolve_model(str(tmp_path / "gpt2"), cache_dir=cache).folder.is_dir()


def test_a_base_that_is_given_is_looked_for_here_alone(
    plain: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Adapter(plain, tmp_path / "adapter", ("q_proj",))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    shutil.copytree(plain, tmp_path / "base")
    with pytest.raises(NotFound, match=r"there is no file or folder '\./base'; .*looked for in the working folder"):
        convert_model(str(tmp_path / "adapter"), base="./base", cache_dir=cache)
    assert convert_model(str(tmp_path / "adapter"), base="../base", cache_dir=cache).folder.is_dir()


def test_a_base_that_stays_quantised_is_refused(plain: Path, tmp_path: Path, cache: Path) -> None:
    shutil.copytree(plain, tmp_path / "base")
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    Adapter(plain, tmp_path / "adapter", ("q_proj",))
    _edit(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    with pytest.raises(
        Unsupported, match=r"is quantised \(bitsandbytes\), and an adapter is merged into plain weights"
    ):
        resolve_model(str(tmp_path / "adapter"), cache_dir=cache)
    found = convert_model(str(tmp_path / "adapter"), base=str(plain), cache_dir=cache)
    assert (found.folder / "model.safetensors").is_file()


def test_an_adapter_beside_a_whole_model_is_refused(plain: Path, tmp_path: Path, cache: Path) -> None:
    shutil.copytree(plain, tmp_path / "both")
    (tmp_path / "both" / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidArgument, match="a whole model and an adapter"):
        resolve_model(str(tmp_path / "both"), cache_dir=cache)


def test_a_pickled_adapter(plain: Path, tmp_path: Path, cache: Path) -> None:
    adapter = Adapter(plain, tmp_path / "adapter", ("q_proj",))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    found = logits("torch", resolve_model(str(tmp_path / "adapter"), cache_dir=cache).folder)
    assert np.abs(found - adapter.logits()).max() <= 1e-4 * np.abs(found).max()
