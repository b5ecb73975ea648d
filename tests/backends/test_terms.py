"""Sites that are sums no module gives: what they read, what an edit does, and that no wrong one is offered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from probewire.backends import proof as proving
from probewire.backends.hooks.executor import Executor
from probewire.backends.hooks.points import Points
from probewire.backends.hooks.row_span import RowSpan
from probewire.backends.model.sites import Tap, Term
from probewire.backends.terms import Terms
from probewire.backends.torch.taps import first_of
from probewire.clients import Client, Delta, Variant, hook, steer
from probewire.protos.edits import Add, Scale
from probewire.protos.metrics import Logit
from probewire.protos.model import Input
from probewire.protos.spec import Capture, Hook, Plan, Where
from probewire.protos.tensors import Tensor
from probewire.protos.variants.manifest import Base, Manifest
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from tests.backends.derived import derived, write
from tests.backends.uneven import SUMMED
from tests.parity.harness import CHUNKED, assert_same, every_site, generate, load, run, sequence

shared: Any = import_module("transformers.models.granitemoeshared.modeling_granitemoeshared")
Sum = Callable[[Any, Any, Any, Any], Any]
"""What a layer makes of itself, its stream and two parts."""
TOKENS, OTHER, LAYER = list(range(10, 26)), list(range(30, 60)), 1
AT = [2, 5, -1]
PARTS = {"mlp_out": ("block_sparse_moe", "shared_mlp"), "attn_out": ("mamba", "self_attn")}
SCALES = {"mlp_out": (0.5, 0.5), "attn_out": (0.7, 0.9)}
AROUND = {"mlp_out": ("resid_mid", "resid_post"), "attn_out": ("resid_pre", "resid_mid")}
"""The stream that a site is added to, and what comes of it."""
CASES = [
    ("torch", "granitemoeshared", "mlp_out"),
    ("torch", "falcon_h1", "attn_out"),
    ("mlx", "granitemoehybrid", "mlp_out"),
]


class Case:
    """A model behind a client, and the site that no module of it gives."""

    def __init__(self, library: str, kind: str, site: str, folder: Path) -> None:
        self.library, self.kind, self.site, self.folder = library, kind, site, write(kind, folder, **SUMMED[kind])
        config = WorkerConfig(str(folder), "tiny", backend=library, dtype="float32", device="cpu", engine=CHUNKED)
        model = LocalModel(config, folder)
        self.backend: Any = model.backend
        self.client = Client.inprocess(InProcessService(model))
        self.before, self.after = AROUND[site]

    def at(self, name: str) -> str:
        return f"{name}.{LAYER}"


@pytest.fixture(scope="module", params=CASES, ids=["-".join(case[:2]) for case in CASES])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    library, kind, site = request.param
    made = Case(library, kind, site, tmp_path_factory.mktemp("summed"))
    yield made
    made.client.close()


def test_it_is_what_the_model_adds_to_the_bit(case: Case) -> None:
    """Of every layer, beside transformers' own modules too; and asking for it changes nothing."""
    sites = [f"{name}.*" for name in (case.site, case.before, case.after)]
    found = case.client.run(TOKENS, capture=[*sites, "logits"])
    plain = case.client.run(TOKENS, capture=[*sites[1:], "logits"])
    for layer in range(case.backend.info.n_layers):
        term, before, after = (found[f"{name}.{layer}"] for name in (case.site, case.before, case.after))
        assert np.array_equal(before + term, after)
        assert np.array_equal(after, plain[f"{case.after}.{layer}"])
    assert np.array_equal(found["logits"], plain["logits"])
    own = _modules(case, TOKENS)
    for layer in range(case.backend.info.n_layers):
        wanted = sum(c * own[layer, part] for part, c in zip(PARTS[case.site], SCALES[case.site], strict=True))
        error = np.abs(found[f"{case.site}.{layer}"] - wanted).max() / np.abs(wanted).max()
        assert error <= 1e-4


def test_an_edit_moves_what_comes_of_it_by_exactly_that(case: Case) -> None:
    delta = np.random.default_rng(0).normal(size=64).astype(np.float32)
    names, read = [case.site, case.before, case.after], [case.at(name) for name in (case.site, case.before, case.after)]
    inputs = {"x": Input(token_ids=tuple(TOKENS)), "beside": Input(token_ids=tuple(OTHER))}
    edit = hook(case.at(case.site), Add(Tensor.of(delta)), positions=AT, inputs="x")
    plain, edited = (case.client.run(inputs, capture=[*read, "logits"], hooks=hooks) for hooks in ((), (edit,)))
    old, new = (one.inputs["x"].captures for one in (plain, edited))
    term, before, after = (case.at(name) for name in names)
    assert np.array_equal(new[before], old[before])
    assert np.array_equal(new[after], new[before] + new[term])
    rows = np.zeros(len(TOKENS), bool)
    rows[AT] = True
    assert np.array_equal(new[term][rows], old[term][rows] + delta)
    assert np.array_equal(new[after][~rows], old[after][~rows])
    assert np.abs(new["logits"] - old["logits"]).max() > 1e-3
    for name in (*read, "logits"):  # a neighbour does not notice
        assert np.array_equal(plain.inputs["beside"].captures[name], edited.inputs["beside"].captures[name])
    onto = hook(case.at(case.after), Add(Tensor.of(delta)), positions=AT)
    same = case.client.run(TOKENS, capture="logits", hooks=[onto])["logits"]
    alone = case.client.run(TOKENS, capture="logits", hooks=[replace(edit, inputs=None)])["logits"]
    assert np.abs(same - alone).max() <= 1e-4 * np.abs(same).max()


def test_without_it_the_stream_goes_on_as_it_was(case: Case) -> None:
    gone = case.client.run(
        TOKENS, capture=[case.at(case.before), case.at(case.after)], hooks=[hook(case.at(case.site), Scale(0.0))]
    )
    assert np.array_equal(gone[case.at(case.before)], gone[case.at(case.after)])


def test_a_parts_own_edit_is_seen_in_it(case: Case) -> None:
    path = f"{case.backend.points.family.layer_path(case.library, LAYER)}.{PARTS[case.site][0]}"
    site = case.at(case.site)
    off = hook(f"module:{path}:output", Scale(0.0))
    found = case.client.run(TOKENS, capture=[site, case.at(case.after), case.at(case.before)], hooks=[off])
    wanted = SCALES[case.site][1] * _modules(case, TOKENS)[LAYER, PARTS[case.site][1]]
    assert np.abs(found[site] - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert np.array_equal(found[case.at(case.before)] + found[site], found[case.at(case.after)])


def test_gradients(case: Case) -> None:
    """That of the sum is that of what comes of it, and both are slopes; nothing else changes by asking for it."""
    sites = [case.at(case.site), case.at(case.after), "embed"]
    found = case.client.gradients(TOKENS, Logit(7), at=sites, capture=[case.at(case.site), "logits"])
    site, after = (found.gradients[name] for name in sites[:2])
    assert np.abs(site - after).max() <= 1e-5 * np.abs(after).max()
    assert np.array_equal(found["logits"], case.client.run(TOKENS, capture="logits")["logits"])
    less = case.client.gradients(TOKENS, Logit(7), at=["embed"]).gradients["embed"]
    assert np.abs(found.gradients["embed"] - less).max() <= 1e-5 * np.abs(less).max()
    direction = np.random.default_rng(1).normal(size=64).astype(np.float32)
    step, ends = 1e-2, list[float]()
    for sign in (step, -step):
        edit = steer(sites[0], sign * direction, positions=[5])
        ends.append(float(case.client.run(TOKENS, capture="logits", hooks=[edit])["logits"][-1, 7]))
    slope = (ends[0] - ends[1]) / (2 * step)
    assert slope == pytest.approx(float(site[5] @ direction), rel=2e-2, abs=2e-3)
    edited = case.client.gradients(TOKENS, Logit(7), at=sites[:2], hooks=[hook(sites[0], Scale(-1.5))])
    site, after = (edited.gradients[name] for name in sites[:2])
    assert np.abs(site + after / 1.5).max() > 0  # of the edited value, whichever it was scaled by
    assert np.abs(site - after).max() <= 1e-5 * np.abs(after).max()


def test_a_generation_reads_and_edits_it_as_a_run_does(case: Case) -> None:
    backend: Any = load(case.library, case.folder)  # the case's own belongs to its worker's thread
    edit = Hook(f"{case.site}.*", edit=Scale(0.5), where=Where(phase="all"))
    plan = Plan((edit, *every_site(backend, "generate").hooks))
    prompts = [
        sequence(backend, tokens, plan, mode="generate", max_new=3, name=f"{len(tokens)}") for tokens in (TOKENS, OTHER)
    ]
    for prompt, found in zip((TOKENS, OTHER), generate(backend, prompts), strict=True):
        forced = run(backend, found.tokens[:-1], plan, prompt_length=len(prompt))
        assert_same(found.captured, forced, 2e-4)
    backend.close()


def test_a_sweep_measures_what_runs_do(case: Case) -> None:
    if "sweeps" in case.client.describe().refused:
        pytest.skip("its layers keep what a sweep's plans cannot share")
    vector = np.random.default_rng(3).normal(size=64).astype(np.float32)
    plans = [[steer(f"{case.site}.{layer}", vector, positions=[at])] for layer in (0, 2) for at in (3, -1)]
    found = case.client.sweep(TOKENS, Logit(5), plans, progress=False).measured
    for plan, measured in zip(plans, np.ravel(next(iter(found.values()))), strict=True):
        alone = case.client.run(TOKENS, capture="logits", hooks=plan)["logits"][-1, 5]
        assert measured == pytest.approx(float(alone), abs=1e-4)


def test_a_variant_is_under_it(case: Case) -> None:
    """A delta at a weight inside one part: as if the part gave so much more."""
    base = f"{case.backend.points.family.layer_path(case.library, LAYER)}.{PARTS[case.site][1]}."
    path, weight = next(item for item in case.backend.weight_table.modules.items() if item[0].startswith(base))
    offered = weight.info
    rng = np.random.default_rng(2)
    delta = Delta(
        rng.normal(size=(offered.d_in, 1)).astype(np.float32), rng.normal(size=(1, offered.d_out)).astype(np.float32)
    )
    case.client.load_variant(
        Variant({f"module:{path}": delta}, manifest=Manifest(base=Base.of(case.client.describe()))), name="v"
    )
    try:
        read = [case.at(one) for one in (case.site, case.before, case.after)]
        plain, changed = (case.client.run(TOKENS, capture=read, variant=name) for name in ("", "v"))
        assert np.abs(changed[read[0]] - plain[read[0]]).max() > 1e-3
        assert np.array_equal(changed[read[1]], plain[read[1]])
        assert np.array_equal(changed[read[1]] + changed[read[0]], changed[read[2]])
    finally:
        case.client.unload_variant("v")


def _modules(case: Case, tokens: list[int]) -> dict[tuple[int, str], Any]:
    """(layer, part) → what transformers' module gives, with its own attention."""
    auto: Any = import_module("transformers").AutoModelForCausalLM
    model = auto.from_pretrained(case.folder, attn_implementation="eager", dtype=torch.float32).eval()
    found = dict[tuple[int, str], Any]()

    def note(key: tuple[int, str]) -> Any:
        def after(_: Any, __: Any, output: Any) -> None:
            value: Any = first_of(output)
            found[key] = value.detach().reshape(len(tokens), -1).numpy().copy()

        return after

    for path, module in model.named_modules():
        layer, _, below = path.partition("layers.")[2].partition(".")
        if "layers." in path and below in PARTS[case.site]:
            module.register_forward_hook(note((int(layer), below)))
    with torch.no_grad():
        model(torch.tensor([tokens]), use_cache=False)
    return found


# ---- nothing wrong is offered ----------------------------------------------------------------------------------------


def _wrong(term: Term, fault: str) -> Term:
    (first, a), (second, b) = term.parts
    return {
        "a wrong scale": replace(term, scale=term.scale * 0.9),
        "another part's scale": replace(term, parts=((first, a * 1.2), (second, b))),
        "a part dropped": replace(term, parts=((first, a),)),
        "the other dropped": replace(term, parts=((second, b),)),
        "one twice": replace(term, parts=((first, a), (first, b))),
        "a third": replace(term, parts=(*term.parts, ("input_layernorm", 1.0))),
        "another stream": replace(term, stream=Tap("input_layernorm", "output")),
    }[fault]


FAULTS = (
    "a wrong scale",
    "another part's scale",
    "a part dropped",
    "the other dropped",
    "one twice",
    "a third",
    "another stream",
)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, case: Case) -> None:
    backend, family = case.backend, case.backend.derived.family
    tap = family.taps[case.site]
    wrong = replace(family, taps={**family.taps, case.site: replace(tap, term=_wrong(tap.term, fault))})
    own = backend.points
    blocks = tuple(replace(block, taps=wrong.taps) for block in backend.derived.blocks)
    assert case.site in _proven(backend, wrong, blocks).faults
    assert backend.points is own


def test_exchanged_parts_are_the_same_sum(case: Case) -> None:
    family = case.backend.derived.family
    tap = family.taps[case.site]
    turned = replace(tap, term=replace(tap.term, parts=tap.term.parts[::-1]))
    same = replace(family, taps={**family.taps, case.site: turned})
    assert _proven(case.backend, same, case.backend.derived.blocks).faults == {}


def _proven(backend: Any, family: Any, blocks: Any) -> proving.Proof:
    own, library = backend.points, backend.info.backend
    remembered = "_points" if library == "torch" else "points"
    backend.points = backend.executor.points = Points(
        family, library, own.n_heads, own.seen, changeable=library == "mlx"
    )
    getattr(backend.attention, remembered).clear()
    try:
        return proving.prove(backend, blocks)
    finally:
        backend.points = backend.executor.points = own
        getattr(backend.attention, remembered).clear()


def _layer(make: Sum) -> Any:
    """A layer of granitemoeshared whose last sum is made in another way."""

    def forward(self: Any, hidden_states: Any, **kwargs: Any) -> Any:
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        middle = hidden_states + attended * self.residual_multiplier
        read = self.post_attention_layernorm(middle)
        moe = self.block_sparse_moe(read)
        return make(self, middle, moe[0] if isinstance(moe, tuple) else moe, self.shared_mlp(read))

    return mock.patch.object(shared.GraniteMoeSharedDecoderLayer, "forward", forward)


OTHERWISE: dict[str, Sum] = {
    "in another order": lambda layer, x, a, b: (x + a * 0.5) + b * 0.5,
    "by a number that no config says": lambda layer, x, a, b: x + (a + b) * 0.31,
    "one by such a number": lambda layer, x, a, b: x + (a + b * 0.31),
    "and a third": lambda layer, x, a, b: x + (a + b + layer.input_layernorm.weight) * 0.5,
    "through a function": lambda layer, x, a, b: x + torch.tanh(a + b) * 0.5,
    "almost": lambda layer, x, a, b: x + (a + b) * (0.5 + 1e-6),
}


@pytest.mark.parametrize("how", OTHERWISE)
def test_a_layer_that_sums_otherwise_is_not_offered(how: str, tmp_path: Path) -> None:
    folder = write("granitemoeshared", tmp_path, **SUMMED["granitemoeshared"])
    with _layer(OTHERWISE[how]):
        backend = derived(folder)
    info = backend.info
    assert info.site("mlp_out") is None
    assert "no sum of two, gives all" in info.refused["mlp_out"]
    assert info.site("attn_out") is not None
    backend.close()


@pytest.mark.parametrize("how", ["x + (a + b) · c", "x + (a · c + b · c)"])
def test_the_sum_itself_written_anew_is_offered(how: str, tmp_path: Path) -> None:
    ways: dict[str, Sum] = {
        "x + (a + b) · c": lambda layer, x, a, b: x + (a + b) * 0.5,
        "x + (a · c + b · c)": lambda layer, x, a, b: x + (a * 0.5 + b),
    }
    folder = write("granitemoeshared", tmp_path, **SUMMED["granitemoeshared"])
    with _layer(ways[how]):
        backend = derived(folder)
    assert backend.info.site("mlp_out") is not None
    assert "mlp_out" not in backend.info.refused
    backend.close()


def test_one_layer_that_sums_otherwise_has_no_such_site(tmp_path: Path) -> None:
    folder = write("granitemoeshared", tmp_path, **SUMMED["granitemoeshared"])
    own = shared.GraniteMoeSharedDecoderLayer.__init__

    def numbered(self: Any, config: Any, layer_idx: int) -> None:
        own(self, config, layer_idx)
        self.number = layer_idx

    def summed(layer: Any, x: Any, a: Any, b: Any) -> Any:
        return x + (a + b) * (0.31 if layer.number == 2 else 0.5)

    with mock.patch.object(shared.GraniteMoeSharedDecoderLayer, "__init__", numbered), _layer(summed):
        backend = derived(folder)
    site = backend.info.site("mlp_out")
    assert site is not None
    assert site.layers == (0, 1, 3)
    backend.close()


@pytest.mark.parametrize("kind", ["granitemoe_swa", "granitemoehybrid"])
def test_others_that_have_it(kind: str, tmp_path: Path) -> None:
    backend = derived(write(kind, tmp_path, **SUMMED[kind]))
    assert backend.info.site("mlp_out") is not None, backend.info.refused
    assert backend.info.refused.keys() <= {"mlp_act", "sweeps"}
    backend.close()


@pytest.mark.parametrize(
    ("library", "kind"), [("torch", "granitemoeshared"), ("mlx", "granitemoehybrid")], ids=["torch", "mlx"]
)
def test_sixteen_bits(library: str, kind: str, tmp_path: Path) -> None:
    """There the model's own order of roundings is the only one that is equal."""
    backend = derived(write(kind, tmp_path, **SUMMED[kind]), "bfloat16", library)
    assert backend.info.site("mlp_out") is not None, backend.info.refused
    names = ("resid_mid", "mlp_out", "resid_post")
    found = run(backend, TOKENS, Plan(tuple(Hook(f"{name}.1", capture=Capture(dtype="float32")) for name in names)))
    middle, term, post = (torch.tensor(found[i, f"{name}.1", ""].values).bfloat16() for i, name in enumerate(names))
    assert torch.equal(middle + term, post)
    backend.close()


def test_parts_that_did_not_come_fail_who_asked_and_change_nothing(tmp_path: Path) -> None:
    backend: Any = derived(write("granitemoeshared", tmp_path, **SUMMED["granitemoeshared"]))
    executor: Executor = backend.executor
    asked, other = (sequence(backend, TOKENS, Plan((Hook(site, capture=Capture()),))) for site in ("mlp_out.1", "q.1"))
    slots = [RowSpan(one, index, 0, len(TOKENS), 0) for index, one in enumerate((asked, other))]
    executor.begin(slots, (2, len(TOKENS)))
    total = torch.zeros(2, len(TOKENS), 64)
    point = next(iter(asked.plan.at))
    terms: Terms = executor.terms
    terms.keep([(point, 0), (point, -1)], torch.ones(2, len(TOKENS), 64))
    assert terms.put(point, total) is total
    assert "its parts did not come" in str(slots[0].error)
    assert slots[1].error is None
    executor.end()
    backend.close()
