"""A model on PyTorch: runs in one forward, generations through the engine, both under the same hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence as SequenceOf
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...protos.model import ModelInfo
from ...protos.sites import Site
from ...protos.tensors import Array
from ..batch_engine import BatchEngine
from ..checkpoints.quantised.at_load import told_of, values_as_held
from ..deltas.weight_table import Linear, WeightTable
from ..hooks.backward import StopForward, rules_of
from ..hooks.base import Engine
from ..hooks.bound import BoundBackward, BoundPlan
from ..hooks.captures import flush_reductions
from ..hooks.executor import Executor
from ..hooks.metrics import BoundMetric
from ..hooks.points import Points, Seen
from ..hooks.row_span import RowSpan
from ..hooks.rules import ACTIVATIONS
from ..hooks.run_parts import RunParts, joined
from ..hooks.sequence import Sequence, StepResult
from ..hooks.stepping import result_of
from ..hooks.sweeps import SharedPrefix, no_sweeps
from ..model.anatomy.derive import Anatomy
from ..model.chunk import with_chunk
from ..model.context import fitted
from ..model.families import batching_note, kernel_of, masked_sites, run_only_sites
from ..model.footprint import footprint
from ..model.limits import Limits
from ..model.sites import Family, dims_of, site_infos, without_gradients
from ..model.tolerances import ENGINE_TOLERANCE
from ..model.versions import versions_of
from ..model.weights import CheckpointWeights
from .anatomy import Head, anatomy_of
from .attention import Attention
from .deltas import TorchProducts, take_deltas
from .devices.choice import choose_device, choose_devices, room_on, room_over
from .devices.placed import PlacedLayers
from .devices.spread_cache import spread_fault
from .engine import TorchEngine
from .gradients import TorchBackward, TorchGradients
from .load import body_of, load_model
from .norms import Norms
from .ops import TorchOps
from .own_cache import OwnCache
from .quantised import held
from .sweeps import TorchSweeps
from .taps import Taps

__all__ = ["TorchBackend"]

_LOGITS = Site("logits")


class TorchBackend:
    """See backends/hooks/base.py."""

    compared = True
    """It is transformers' own."""

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
        need = footprint(folder, dtype, limits, "torch", quantize)
        devices = choose_devices(device, need.total)
        self.device = choose_device(devices[0])
        self.placed = PlacedLayers(devices, need) if len(devices) > 1 else None
        """Its layers, where they lie on several devices; what is no layer is on `device`."""
        loaded = load_model(folder, dtype, self.device, cache_bytes=need.cache, quantize=quantize, placed=self.placed)
        self.model: Any = loaded.model
        self.body: Any = body_of(self.model)
        self.weights = CheckpointWeights(folder)
        self._at_load = loaded.at_load
        config = self.model.config.get_text_config()
        self.executor = Executor(TorchOps(self.device), TorchProducts(), limits.variant_bytes)
        self.taps = Taps(self.model, self.executor)
        self.attention = attention = Attention.over(self.model, self.executor)
        if self.placed is not None:
            self.placed.try_out(self.hidden, config.model_type)
        norms = Norms(self.model, self.executor.ops)
        found = anatomy_of(self.model, self.attention, self.hidden, config, self.device)
        self.weight_table = WeightTable()
        softcap, scale = found.head or (None, 1.0)
        self.head = Head(self.model.get_output_embeddings(), self.executor.deltas, softcap, scale)
        refused = {"logits": found.headless} if found.headless else {}
        note = batching_note(found.anatomy, config)
        """Why sequences cannot share a forward."""
        self.derived: Anatomy | None = found.anatomy
        """Where its sites are; None where that was not found."""
        family, dims, self.activation = None, dims_of(config), ""
        if found.anatomy is not None:
            family, dims = found.anatomy.family, found.anatomy.dims
            refused = {**found.anatomy.refused, **masked_sites(config)}
            self.activation = found.anatomy.activation if found.anatomy.activation in ACTIVATIONS else ""
        self._gradients = TorchGradients(
            self.executor, self.taps, norms, self.hidden, self._logits_rows, self._backward_of
        )
        self._sweeps: TorchSweeps | None = None
        self.points = self.executor.points = self._look(family, dims.n_heads)
        self.layers: list[Any] = []
        """None where it is not known where they are."""
        if family is not None:
            self.layers = [self.taps.modules[family.layer_path("torch", i)] for i in range(dims.n_layers)]
            if found.anatomy is not None and found.anatomy.attention:
                self._sweeps = TorchSweeps(self, self.executor, self.taps, attention, self.layers)
        limits, context_note = fitted(limits, config)
        limits = with_chunk(limits, self)
        self.engine: Engine | None = None
        note = note or ("" if self.placed is None else spread_fault())
        if not note:
            where = () if self.placed is None else self.placed.where
            self.engine = TorchEngine(self.model, self.executor, self.taps, attention, limits, self.logits, where)
        self.limits = limits
        headless = f"{refused['logits']}; use runs" if "logits" in refused else ""
        self.info = ModelInfo(
            id=model_id,
            family=family.name if family else "unknown",
            architecture=config.model_type,
            backend="torch",
            device=",".join(devices),
            placement="" if self.placed is None else str(self.placed.placement),
            dtype=str(self.model.dtype).removeprefix("torch."),
            attention=kernel_of(config, eager=found.attention == "eager" or attention.capped),
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
            generate=not headless,
            generate_note=headless,
            n_slots=limits.n_slots,
            rules=rules_of(family, self.activation, norms=norms.known),
            sites=site_infos(
                family, dims, refused=refused, run_only=run_only_sites("torch", config), head=not headless
            ),
            versions=versions_of("torch", "transformers"),
            refused=refused,
            quantization=told_of("torch", self.weights.scheme, loaded.at_load),
        )
        if loaded.kept:
            self.info = without_gradients(self.info, loaded.kept)
        if note and not headless:
            self.generate_alone(note)

    def generate_alone(self, why: str) -> bool:
        """See Backend."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None
        free = room_on(str(self.device)) if self.placed is None else room_over(self.placed.where)
        try:
            own = OwnCache(self.model, self.attention, self.taps, self.logits, self.device)
            cost = own.cost()
            faults = own.raw_faults(self.hidden, ENGINE_TOLERANCE[self.info.dtype])
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            fault = f"{why}, and a forward with the library's own cache fails: {type(error).__name__}: {error}"
            self.info = replace(self.info, generate=False, generate_note=f"{fault}; use runs")
            return False
        self.points.run_only = faults
        self.engine = BatchEngine(own, self.executor, self.limits, cost, free)
        # Each has its own cache, in which a window's keys are in order.
        sites = tuple(replace(site, generate=site.run, note="") for site in self.info.sites)
        self.info = replace(self.info, batching=why, sites=sites, generate=True, generate_note="")
        return True

    def take_deltas(self) -> dict[str, Linear]:
        """See Backend."""
        found = take_deltas(self.model, self.points.seen, self.executor.deltas)
        with torch.no_grad(), self.executor.deltas.look():
            self.hidden(torch.tensor([[1, 2, 3]], device=self.device))
        return found

    @property
    def hook_s(self) -> float:
        """See Backend."""
        return self.executor.hook_s

    @staticmethod
    def use_threads(n: int) -> None:
        """See Backend. OpenMP keeps the number by thread: to be called by the model's own."""
        torch.set_num_threads(n)

    def _look(self, family: Family | None, n_heads: int) -> Points:
        seen, fault = dict[tuple[str, str], Seen](), ""
        try:
            seen = self.taps.look(self.hidden, self.device)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            fault = f"a forward with its own code fails: {type(error).__name__}: {error}"
        return Points(family, "torch", n_heads, seen, fault=fault)

    def bind(self, plan: BoundPlan) -> None:
        """Move the plan's tensors to the device; where layers have their own, to each as it is reached."""
        for bound in plan.hooks:
            self.executor.edits.prepare(bound, later=self.placed is not None)

    @torch.inference_mode()
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
        self.taps.attach(self.executor.asked)
        hidden = self._as_far_as_asked(slots, torch.from_numpy(ids).to(self.device))
        for slot in slots:
            if _LOGITS in slot.plan.sites and slot.error is None:
                self.tap_logits(slot, hidden)
        captured = self.executor.collect()
        results: list[StepResult] = []
        for slot in slots:
            rows = captured.get(id(slot.sequence), []) + flush_reductions(slot.plan)
            results.append(result_of(slot, rows, None))
        return results

    def keep_whole(self) -> None:
        """See Backend."""
        self._sweeps = None

    @property
    def cuts_runs(self) -> bool:
        """Whether attention is ours, which adds earlier keys and values."""
        return self._sweeps is not None

    def _as_far_as_asked(self, slots: list[RowSpan], ids: torch.Tensor, positions: torch.Tensor | None = None) -> Any:
        """Final-norm rows; None when the forward ended before, as nobody asks for anything of its last layers."""
        last = [slot.plan.last_layer for slot in slots]
        known = [layer for layer in last if layer is not None]
        # One more than the last: some sites are taken at the layer behind them.
        after = max(known) + 2 if len(known) == len(last) else len(self.layers)
        if after >= len(self.layers):
            return self.hidden(ids, positions)
        handle = self.layers[after].register_forward_pre_hook(_enough, prepend=True)  # before its weights are brought
        try:
            return self.hidden(ids, positions)
        except StopForward:
            return None
        finally:
            handle.remove()

    @torch.inference_mode()
    def run_part(self, sequence: Sequence, parts: RunParts, stop: int) -> StepResult:
        """See Backend."""
        start = parts.done
        tokens = np.array(sequence.tokens[start:stop], dtype=np.int64)
        slot = RowSpan(sequence, 0, 0, len(tokens), start, tokens, keys=(0, stop))
        self.executor.begin([slot], (1, len(tokens)))
        self.taps.attach(self.executor.asked)
        with self.attention.growing(parts):
            ids = torch.from_numpy(tokens)[None].to(self.device)
            positions = torch.arange(start, stop, device=self.device)[None]
            hidden = self._as_far_as_asked([slot], ids, positions)
        return self._part_of(slot, hidden, parts, stop)

    def _part_of(self, slot: RowSpan, hidden: torch.Tensor, parts: RunParts, stop: int) -> StepResult:
        if _LOGITS in slot.plan.sites and slot.error is None:
            self.tap_logits(slot, hidden)
        parts.rows += self.executor.collect().get(id(slot.sequence), [])
        parts.done = stop
        if slot.error is not None or stop < len(slot.sequence.tokens):
            return result_of(slot, [], None)
        return result_of(slot, joined(parts.rows, stop) + flush_reductions(slot.plan), None)

    @torch.inference_mode()
    def final_rows(self, ids: NDArray[np.int64]) -> Array:
        """See Backend."""
        self.executor.begin([], (ids.shape[0], ids.shape[1]))
        self.taps.attach(())
        return self.executor.ops.to_host([self.hidden(torch.from_numpy(ids).to(self.device))])[0]

    def gradients(self, sequences: SequenceOf[Sequence]) -> list[StepResult]:
        """See Backend."""
        with nullcontext() if self.placed is None else self.placed.waiting_weights_saved():
            return self._gradients(sequences, self.device)

    def _backward_of(
        self, how: BoundBackward, slots: list[RowSpan], metrics: list[BoundMetric] | None = None
    ) -> TorchBackward:
        return TorchBackward(self.executor.ops, how, slots, self.info, self.activation, metrics)

    @torch.inference_mode()
    def shared_prefix(self, base: Sequence) -> SharedPrefix:
        """See Backend."""
        return self._sweeper.shared_prefix(base)

    @torch.inference_mode()
    def sweep(self, variants: SequenceOf[Sequence], prefix: SharedPrefix | None) -> list[StepResult]:
        """See Backend."""
        return self._sweeper(variants, prefix)

    @property
    def _sweeper(self) -> TorchSweeps:
        if self._sweeps is None:
            raise no_sweeps(self.info)
        return self._sweeps

    def hidden(self, ids: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """[batch, row] token ids to final-norm rows. `positions` [1, row]: of rows that do not begin at 0."""
        where = {} if positions is None else {"position_ids": positions}
        return self.body(ids, use_cache=False, **where)[0]

    def logits(self, hidden: torch.Tensor, columns: list[int] | None = None) -> torch.Tensor:
        """Logits of final-norm rows, as the model gives them: of all tokens, or of the given ones."""
        return self.head(hidden, columns)

    def _logits_rows(self, slot: RowSpan, hidden: torch.Tensor, positions: SequenceOf[int]) -> torch.Tensor:
        """Rows of a slot's logits, after the plan's edits there."""
        if _LOGITS in slot.plan.sites:
            return self.tap_logits(slot, hidden)[0, list(positions)]
        with self.executor.deltas.head([(slot, positions)]):
            return self.logits(hidden[slot.batch, list(positions)])

    def tap_logits(self, slot: RowSpan, hidden: torch.Tensor) -> torch.Tensor:
        """[1, row, vocab] after a slot's edits: one sequence at a time, a whole batch's would be the largest tensor of all."""
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
        """Drop the model and its cache."""
        if self.engine is not None:
            self.engine.close()
        self.taps.attach(set())
        self.engine = None
        self.model = self.body = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _enough(*_: Any) -> None:
    raise StopForward
