"""A LoRA adapter and its base, as the one model that they are together.

Merged as the adapter computes beside its base, not as a merge in place would: on a base whose output head is the embedding,
an adapter of one of the two changes that one alone, so the head becomes a matrix of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ....protos.errors import InvalidArgument, Unsupported
from ....protos.tensors import Array
from .bin import PickledTensors
from .lora import LoraConfig, added, with_lengths
from .source import FLOATS, FileTensors, Planned, Stored, Tensors, copied

__all__ = ["Merged", "adapter_weights", "merged"]

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))(?:\.default)?(?P<of>\.weight|\.bias)?"
)
_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")
_BEFORE_TRAINING = re.compile(r"(?P<module>.+)\.original_module\.(weight|bias)")
"""What PEFT keeps, and sometimes writes, beside a module that was trained in whole."""
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tokens_embed.weight")
_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Merged:
    """The tensors of base and adapter together."""

    plan: list[Planned]
    own_head: bool
    """The head is no longer the embedding."""
    vocab: int | None
    """Tokens, where the adapter was trained with more or fewer than its base has."""


def adapter_weights(folder: Path) -> Path:
    """The file of an adapter's tensors. Raises InvalidArgument where there is none."""
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise InvalidArgument(f"{folder} holds an adapter's config and no adapter_model.safetensors; fetch it too")


def merged(folder: Path, base: Tensors, *, keep: str, tied: bool, transposed: bool) -> Merged:
    """Tensors of the merged model. `keep`: dtype of all floats, "auto" for the base's own.

    `tied`: the base's config says that its head is the embedding; `transposed`: its matrices are [in, out].
    Raises InvalidArgument and Unsupported for an adapter that does not fit.
    """
    config, file = LoraConfig.read(folder), adapter_weights(folder)
    tensors: Tensors = FileTensors([file]) if file.suffix == ".safetensors" else PickledTensors([file])
    weights = _Names(base.stored, tied)
    factors, replaced = _sorted(tensors, weights, file)
    plan = {name: copied(base, name, keep) for name in base.stored}
    touched = {*replaced, *(name for module in factors for name in weights.of_module(module))}
    own_head = tied and bool(touched & {weights.embedding, _HEAD})
    if own_head and _HEAD not in plan:
        plan[_HEAD] = replace(copied(base, weights.embedding, keep), name=_HEAD)
    vocab = _vocab(plan, weights, {name: tensors.stored[source].shape for name, source in replaced.items()})
    for name, source in replaced.items():
        plan[name] = _replacement(plan, name, tensors, source, keep, vocab)
    for module, parts in factors.items():
        fitted = _Fitted(config, tensors, module, parts, transposed, file)
        for planned in fitted.planned(plan, weights):
            plan[planned.name] = planned
    return Merged(list(plan.values()), own_head, vocab)


class _Names:
    """The base's tensors under the names that an adapter knows them by."""

    def __init__(self, stored: Mapping[str, Stored], tied: bool) -> None:
        self.stored = stored
        found = [name for name in stored if name.endswith(_EMBEDDINGS)]
        self.embedding = found[0] if len(found) == 1 else ""
        self._tied = tied and bool(self.embedding)

    def find(self, name: str) -> str | None:
        """The base's name of a tensor: the same, or but for the wrapper's name in front (`transformer.`) on either side."""
        if name in self.stored:
            return name
        if name == _HEAD and self._tied:
            return _HEAD
        _, _, rest = name.partition(".")
        ends = [rest] if rest in self.stored else [known for known in self.stored if known.endswith(f".{name}")]
        return ends[0] if len(ends) == 1 else None

    def of_module(self, module: str) -> list[str]:
        """Its weight and bias, where the base has them."""
        names = (self.find(f"{module}.{part}") for part in ("weight", "bias"))
        return [name for name in names if name is not None]


def _sorted(tensors: Tensors, weights: _Names, file: Path) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Module -> part -> name in the file; and the base's tensors that others take the place of, by the base's name."""
    factors: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    lost: list[str] = []
    for name in tensors.stored:
        bare = _WRAPPERS.sub("", name.removeprefix(_PREFIX))
        factor = _FACTOR.fullmatch(bare)
        if factor is not None:
            part = factor["part"] + (".bias" if factor["of"] == ".bias" else "")
            factors.setdefault(factor["module"], {})[part] = name
        elif (own := weights.find(bare)) is not None:
            if own in replaced and not np.array_equal(tensors.get(name), tensors.get(replaced[own])):
                raise InvalidArgument(
                    f"{file} has two values for {own} ({replaced[own]}, {name}); save the adapter again"
                )
            replaced[own] = name
        elif (before := _BEFORE_TRAINING.fullmatch(bare)) is None or not _is_trained(tensors, before["module"]):
            lost.append(bare)
    lost += [f"{module}.weight" for module in factors if weights.find(f"{module}.weight") is None]
    if lost:
        raise InvalidArgument(
            f"{file} changes {len(lost)} tensors that its base does not have, {lost[0]} first; it was made for another base"
        )
    if not factors and not replaced:
        raise InvalidArgument(f"{file} holds no tensors; fetch it again")
    return factors, replaced


def _is_trained(tensors: Tensors, module: str) -> bool:
    """Whether the adapter has a whole module's weights after training."""
    return any(f"{_PREFIX}{module}{part}.weight" in tensors.stored for part in ("", ".modules_to_save"))


def _vocab(plan: Mapping[str, Planned], weights: _Names, replaced: Mapping[str, tuple[int, ...]]) -> int | None:
    """Rows of embedding and head where the adapter brings both anew, in another number than the base's; else None."""
    new = {replaced[name] for name in (weights.embedding, _HEAD) if name in plan and name in replaced}
    both = all(name in replaced for name in (weights.embedding, _HEAD) if name in plan)
    if not both or len(new) != 1 or weights.embedding not in replaced:
        return None
    (shape,), old = new, plan[weights.embedding].shape
    return shape[0] if len(shape) == 2 and shape[1] == old[1] and shape[0] != old[0] else None


def _replacement(
    plan: Mapping[str, Planned], name: str, tensors: Tensors, source: str, keep: str, vocab: int | None
) -> Planned:
    """A tensor of the adapter in the place of the base's (`modules_to_save`, biases)."""
    old, new = plan[name], tensors.stored[source]
    resized = vocab is not None and new.shape == (vocab, *old.shape[1:]) and name.endswith((*_EMBEDDINGS, _HEAD))
    if new.shape != old.shape and not resized:
        raise InvalidArgument(
            f"the adapter has {name} with shape {list(new.shape)}, its base with {list(old.shape)} (for a vocabulary that "
            "was resized, an adapter brings embedding and head, both of the new size); give the base that it was trained on"
        )
    kind = old.dtype if keep == "auto" else FLOATS[keep]
    return Planned(name, kind, new.shape, lambda: tensors.get(source))


@dataclass(frozen=True, slots=True)
class _Fitted:
    """The factors of one module, checked against the base."""

    config: LoraConfig
    tensors: Tensors
    module: str
    parts: Mapping[str, str]
    transposed: bool
    file: Path

    def planned(self, plan: Mapping[str, Planned], weights: _Names) -> list[Planned]:
        """The module's tensors with the factors in them."""
        name = weights.find(f"{self.module}.weight")
        assert name is not None
        old = plan[name]
        embedding = "lora_embedding_A" in self.parts
        if old.dtype not in FLOATS.values() or len(old.shape) != 2:
            raise Unsupported(
                f"{name} of the base is {old.dtype} of shape {list(old.shape)}; an adapter changes plain matrices"
            )
        made = [self._matrix(old, turned=embedding or (self.transposed and name != _HEAD))]
        bias = weights.find(f"{self.module}.bias")
        if "lora_B.bias" in self.parts:
            if bias is None:
                raise Unsupported(f"{self.file} adds a bias to {self.module}, whose base has none (lora_bias)")
            made.append(self._bias(plan[bias]))
        return made

    def _matrix(self, old: Planned, *, turned: bool) -> Planned:
        """`turned`: the base stores it [in, out]; an embedding is [token, d_model], its factors the other way round."""
        kind = "lora_embedding_" if "lora_embedding_A" in self.parts else "lora_"
        a, b = self._name(f"{kind}A"), self._name(f"{kind}B")
        self._check(a, b, old.shape[::-1] if turned else old.shape, old.name)
        lengths = self._lengths(kind, old.shape[1 if turned else 0])
        scale, get = self.config.scale(self.module), self.tensors.get

        def make() -> Array:
            weight = old.make()
            full = added(weight.T if turned else weight, get(a), get(b), scale)
            full = with_lengths(full, get(lengths)) if lengths else full
            return full.T if turned else full

        return Planned(old.name, old.dtype, old.shape, make)

    def _bias(self, old: Planned) -> Planned:
        name, scale = self.parts["lora_B.bias"], self.config.scale(self.module)
        if self.tensors.stored[name].shape != old.shape:
            raise InvalidArgument(
                f"{name} in {self.file} has another shape than {old.name} of the base, {list(old.shape)}"
            )
        return Planned(
            old.name, old.dtype, old.shape, lambda: old.make().astype("float32") + scale * self.tensors.get(name)
        )

    def _name(self, part: str) -> str:
        if part not in self.parts:
            raise InvalidArgument(
                f"{self.file} has half of the factors of {self.module}: {part} is missing; fetch it again"
            )
        return self.parts[part]

    def _check(self, a: str, b: str, shape: tuple[int, ...], name: str) -> None:
        found = (self.tensors.stored[b].shape, self.tensors.stored[a].shape)
        rank = self.config.rank(self.module)
        expected = ((shape[0], rank), (rank, shape[1]))
        if found != expected:
            raise InvalidArgument(
                f"the factors of {self.module} in {self.file} have shapes B {list(found[0])} and A {list(found[1])}; {name} of "
                f"the base and r {rank} of adapter_config.json make B {list(expected[0])} and A {list(expected[1])}"
            )

    def _lengths(self, kind: str, n_out: int) -> str:
        """The name of DoRA's magnitudes; empty without them."""
        name = self.parts.get("lora_magnitude_vector", "")
        if bool(name) != self.config.dora:
            raise InvalidArgument(
                f"adapter_config.json says use_dora {self.config.dora}, and {self.file} has "
                f"{'a' if name else 'no'} magnitude vector for {self.module}"
            )
        if name and kind != "lora_":
            raise Unsupported(f"{self.file} has DoRA on the embedding {self.module}; on linear layers it can be merged")
        if name and self.tensors.stored[name].shape not in ((n_out,), (n_out, 1), (1, n_out)):
            raise InvalidArgument(f"{name} in {self.file} does not have one length for each of {n_out} outputs")
        return name
