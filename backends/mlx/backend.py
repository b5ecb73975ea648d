"""A model on MLX: runs in one forward, generations through the engine, both under the same hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence as SequenceOf
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument
from ...protos.model import ModelInfo
from ...protos.sites import Site
from ...protos.tensors import Array
from ..alone_engine import AloneEngine
from ..checkpoints.quantised.at_load import told_of, values_as_held
from ..deltas.weight_table import Linear, WeightTable
from ..hooks.backward import rules_of
from ..hooks.base import Engine
from ..hooks.bound import BoundBackward, BoundPlan
from ..hooks.captures import flush_reductions
from ..hooks.executor import Executor
from ..hooks.metrics import BoundMetric
from ..hooks.points import Points
from ..hooks.row_span import RowSpan
from ..hooks.rules import ACTIVATIONS
from ..hooks.run_parts import RunParts, joined
from ..hooks.sequence import Sequence, StepResult
from ..hooks.stepping import result_of
from ..hooks.sweeps import SharedPrefix, no_sweeps
from ..model.anatomy.derive import Anatomy
from ..model.chunk import with_chunk
from ..model.context import fitted
from ..model.families import kernel_of, run_only_sites
from ..model.footprint import free_bytes
from ..model.limits import Limits
from ..model.sites import ATTENTION_TAPS, Family, dims_of, site_infos
from ..model.versions import versions_of
from ..model.weights import CheckpointWeights
from .anatomy import anatomy_of
from .attention import Attention
from .cache import GrowingCache, Owner, RunCache, batches, run_caches, sequence_caches
from .deltas import MlxProducts, take_deltas
from .engine import MlxEngine
from .gradients import MlxBackward, MlxGradients
from .load import choose_device, load_model, windows_of
from .mends import body_of
from .norms import Norms
from .ops import MlxOps, dtype_name
from .own_cache import OwnCache
from .quantised import held
from .sweeps import MlxSweeps
from .taps import Taps

__all__ = ["MlxBackend"]

_LOGITS = Site("logits")


class MlxBackend:
    """See backends/hooks/base.py. MLX's streams belong to a thread: build it on the thread that uses it."""

    def __init__(
        self,
        folder: Path,
        *,
        model_id: str,
        model_hash: str,
        dtype: str,
        device: str,
        limits: Limits,
        quantize: str = "",
    ) -> None:
        self.device = choose_device(device)
        mx.set_default_device(self.device)
        loaded = load_model(folder, dtype, quantize)
        self.model: Any = loaded.model
        self.body = body_of(self.model)
        config = loaded.config
        self.compared = loaded.compared
        self.weights = CheckpointWeights(folder)
        self._at_load = loaded.at_load
        self.executor = Executor(MlxOps(), MlxProducts(), limits.variant_bytes)
        softcap = getattr(config, "attn_logit_softcapping", None) if loaded.compared else None
        self.attention = Attention(self.executor, windows_of(config, self.model), softcap=softcap)
        self.attention.replace_in(self.model)
        caches = run_caches(self.model, self.attention.layers)
        self.ours = all(isinstance(cache, RunCache) for cache in caches)
        """Every layer keeps keys and values, and we keep them."""
        found = anatomy_of(self.attention, self.model, self.body, config, self.executor.deltas)
        if found.head is None:
            raise InvalidArgument(f"mlx-lm's {config.model_type} makes its logits in a way that is not understood")
        self.head = found.head
        norms = Norms(self.model, self.executor.ops)
        self.taps = Taps(self.model, self.executor)
        self.weight_table = WeightTable()
        note, alone, refused = found.reason, "", dict[str, str]()
        self.derived: Anatomy | None = found.anatomy
        """Where its sites are; None where that was not found."""
        family, dims, self.activation = None, dims_of(config), ""
        if found.anatomy is not None:
            family, dims, refused = found.anatomy.family, found.anatomy.dims, found.anatomy.refused
            alone = "" if batches(caches) else "its layers keep what nobody has batched"
            self.activation = found.anatomy.activation if found.anatomy.activation in ACTIVATIONS else ""
        self.points = self.executor.points = self._look(family, dims.n_heads)
        self._gradients = MlxGradients(
            self.executor,
            self.taps,
            self.attention,
            norms,
            loaded.dtype,
            self.hidden,
            self._logits_rows,
            self._backward_of,
        )
        self._sweeps: MlxSweeps | None = None
        if found.anatomy is not None and found.anatomy.attention and self.ours:
            self._sweeps = MlxSweeps(self, self.executor, self.taps, self.attention, list(self.model.layers))
        limits, context_note = fitted(limits, config, [(loaded.max_positions, loaded.reason)])
        limits = with_chunk(limits, self)
        self.engine: Engine | None = None if note or alone else self._engine(limits)
        self.limits = limits
        self.info = ModelInfo(
            id=model_id,
            family=family.name if family else "unknown",
            architecture=config.model_type,
            backend="mlx",
            device="gpu" if self.device.type == mx.gpu else "cpu",
            dtype=dtype_name(loaded.dtype),
            attention=kernel_of(config, eager=self.attention.eager),
            model_hash=model_hash,
            n_layers=dims.n_layers,
            d_model=dims.d_model,
            n_heads=dims.n_heads,
            n_kv_heads=dims.n_kv_heads,
            d_head=dims.d_head,
            d_mlp=dims.d_mlp,
            vocab_size=dims.vocab,
            n_experts=dims.n_experts,
            context_length=min(limits.context_tokens, limits.cache_tokens),
            context_note=context_note,
            tower=self.weights.tower.wrapper if self.weights.tower else "",
            generate=not note,
            generate_note=note,
            n_slots=limits.n_slots,
            rules=rules_of(family, self.activation, norms=norms.known),
            sites=site_infos(family, dims, refused=refused, run_only=run_only_sites("mlx", config)),
            versions=versions_of("mlx", "mlx-lm", "transformers"),
            refused=refused,
            quantization=told_of("mlx", self.weights.scheme, loaded.at_load),
        )
        if alone:
            self.generate_alone(alone)

    def _engine(self, limits: Limits) -> MlxEngine:
        def caches(owner: Owner) -> list[Any]:
            return sequence_caches(self.model, self.attention.layers, owner)

        return MlxEngine(
            self.body, self.head, self.executor, self.attention, self.taps, limits, caches, padded=self.ours
        )

    @property
    def hook_s(self) -> float:
        """See Backend."""
        return self.executor.hook_s

    @staticmethod
    def use_threads(n: int) -> None:
        """See Backend. MLX computes on one thread a stream."""

    def _look(self, family: Family | None, n_heads: int) -> Points:
        # mlx-lm writes `h += x`, which rebinds the very object that a tap was given: what is kept must be another.
        return Points(family, "mlx", n_heads, self.taps.look(self._plain_forward), changeable=True)

    def generate_alone(self, why: str) -> bool:
        """See Backend."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None
        own = OwnCache(self.model, self.body, self.attention, self.taps, self.head)
        try:
            cost = own.cost()
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            fault = f"{why}, and a forward with the library's own cache fails: {type(error).__name__}: {error}"
            self.info = replace(self.info, generate=False, generate_note=f"{fault}; use runs")
            return False
        self.engine = AloneEngine(own, self.executor, self.limits, cost, free_bytes())
        # Its attention is not ours, so what is inside stays with runs.
        inside = "generation through mlx-lm's own caches does not pass our attention; use a run"
        sites = tuple(
            replace(s, generate=False, note=inside) if s.name in ATTENTION_TAPS else s for s in self.info.sites
        )
        self.info = replace(self.info, batching=why, sites=sites, generate=True, generate_note="")
        return True

    def keep_whole(self) -> None:
        """See Backend."""
        self._sweeps = None

    def take_deltas(self) -> dict[str, Linear]:
        """See Backend."""
        self.taps.attach(())
        self.taps.tapped.clear()  # it remembers classes
        found = take_deltas(self.model, self.head.module, self.points.seen, self.executor.deltas)
        with self.executor.deltas.look():
            self.hidden(mx.array([[1, 2, 3]]))
        return found

    def bind(self, plan: BoundPlan) -> None:
        """Move the plan's tensors to the device."""
        for bound in plan.hooks:
            self.executor.edits.prepare(bound)

    def run(self, sequences: SequenceOf[Sequence]) -> list[StepResult]:
        """One right-padded forward: causal attention keeps the padding out of every real row."""
        longest = max(len(s.tokens) for s in sequences)
        ids = np.zeros((len(sequences), longest), dtype=np.int64)
        slots: list[RowSpan] = []
        for i, sequence in enumerate(sequences):
            tokens = np.array(sequence.tokens, dtype=np.int64)
            ids[i, : len(tokens)] = tokens
            slots.append(RowSpan(sequence, i, 0, len(tokens), 0, tokens))
        self.executor.begin(slots, (len(sequences), longest))
        asked = self.executor.asked
        self.taps.attach(asked)
        self.attention.begin(asked)
        hidden = self.hidden(mx.array(ids))
        for slot in slots:
            if _LOGITS in slot.plan.sites and slot.error is None:
                self.tap_logits(slot, hidden)
        if not asked:
            mx.eval(hidden)  # nobody reads anything, but a forward was asked for
        captured = self.executor.collect()
        results: list[StepResult] = []
        for slot in slots:
            rows = captured.get(id(slot.sequence), []) + flush_reductions(slot.plan)
            results.append(result_of(slot, rows, None))
        return results

    def shared_prefix(self, base: Sequence) -> SharedPrefix:
        """See Backend."""
        return self._sweeper.shared_prefix(base)

    def sweep(self, variants: SequenceOf[Sequence], prefix: SharedPrefix | None) -> list[StepResult]:
        """See Backend."""
        return self._sweeper(variants, prefix)

    @property
    def _sweeper(self) -> MlxSweeps:
        if self._sweeps is None:
            raise no_sweeps(self.info)
        return self._sweeps

    @property
    def cuts_runs(self) -> bool:
        """Whether every layer's attention is ours, which adds earlier keys and values."""
        return self._sweeps is not None

    def run_part(self, sequence: Sequence, parts: RunParts, stop: int) -> StepResult:
        """See Backend."""
        start = parts.done
        tokens = np.array(sequence.tokens[start:stop], dtype=np.int64)
        slot = RowSpan(sequence, 0, 0, len(tokens), start, tokens, keys=(0, stop))
        self.executor.begin([slot], (1, len(tokens)))
        asked = self.executor.asked
        self.taps.attach(asked)
        self.attention.begin(asked)
        hidden = self.hidden(mx.array(tokens)[None], [GrowingCache(layer, parts) for layer in self.attention.layers])
        if _LOGITS in slot.plan.sites and slot.error is None:
            self.tap_logits(slot, hidden)
        mx.eval(hidden, list(parts.keys.values()), list(parts.values.values()))
        parts.rows += self.executor.collect().get(id(sequence), [])
        parts.done = stop
        if slot.error is not None or stop < len(sequence.tokens):
            return result_of(slot, [], None)
        return result_of(slot, joined(parts.rows, stop) + flush_reductions(slot.plan), None)

    def final_rows(self, ids: NDArray[np.int64]) -> Array:
        """See Backend."""
        self.executor.begin([], (ids.shape[0], ids.shape[1]))
        self.taps.attach(())
        return self.executor.ops.to_host([self._plain_forward(mx.array(ids))])[0]

    def gradients(self, sequences: SequenceOf[Sequence]) -> list[StepResult]:
        """See Backend."""
        return self._gradients(sequences)

    def _backward_of(
        self, how: BoundBackward, slots: list[RowSpan], metrics: list[BoundMetric] | None = None
    ) -> MlxBackward:
        return MlxBackward(self.executor.ops, how, slots, self.info, self.activation, metrics)

    def hidden(self, ids: mx.array, caches: SequenceOf[RunCache] | None = None) -> mx.array:
        """[batch, row] to final-norm rows; without history, unless caches bring some."""
        return self.body(ids, cache=list(caches or ()) or run_caches(self.model, self.attention.layers))

    def _plain_forward(self, ids: mx.array) -> mx.array:
        self.attention.begin(set())
        return self.hidden(ids)

    def logits(self, hidden: mx.array, columns: list[int] | None = None) -> mx.array:
        """Logits of final-norm rows, as the model gives them: of all tokens, or of the given ones."""
        return self.head(hidden, columns)

    def _logits_rows(self, slot: RowSpan, hidden: mx.array, positions: SequenceOf[int]) -> mx.array:
        """Rows of a slot's logits, after the plan's edits there."""
        at = mx.array(list(positions))
        if _LOGITS in slot.plan.sites:
            return self.tap_logits(slot, hidden)[0, at]
        with self.executor.deltas.head([(slot, positions)]):
            return self.logits(hidden[slot.batch, at][None])[0]

    def tap_logits(self, slot: RowSpan, hidden: mx.array) -> mx.array:
        """[1, row, vocab] after a slot's edits. One sequence at a time: a whole batch's logits would be the largest tensor of all."""
        with self.executor.deltas.head([(slot, slot.positions)]):
            logits = self.logits(hidden[slot.batch : slot.batch + 1, : slot.stop])
        part = RowSpan(slot.sequence, 0, 0, slot.stop, slot.position, slot.tokens, conditions=slot.conditions)
        logits = self.executor.tap(self.points.logits, logits, slots=[part], owner=slot)
        slot.error = slot.error or part.error
        return logits

    def weight_names(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes as in the checkpoint."""
        return self.weights.names()

    def weight(self, name: str) -> Array:
        """One weight as in the checkpoint, or as it was quantised at load."""
        value = self.weights.get(name)
        if self._at_load is None:
            return value
        return values_as_held(self._at_load, name, value, lambda tail: held(self.model, tail))

    def close(self) -> None:
        """Drop the model and its cache, and leave mlx-lm as it was."""
        if self.engine is not None:
            self.engine.close()
        self.taps.attach(set())
        self.attention.restore()
        self.engine = None
        self.model = None
        mx.clear_cache()
