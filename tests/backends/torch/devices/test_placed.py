"""Layers on devices of their own give what they give on one, to the bit: on two virtual devices, and waiting in main memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from transformers import AutoConfig, AutoModelForCausalLM, modeling_utils as _modeling_utils

from probewire.backends import load_backend
from probewire.backends.hooks.base import Backend
from probewire.backends.hooks.run_parts import RunParts
from probewire.backends.model.footprint import footprint
from probewire.backends.model.placement import LayerHome, Placement, Sizes
from probewire.backends.torch.devices.placed import PlacedLayers, loading_over
from probewire.clients import Client, Coordinate, Hook, capture, hook, steer
from probewire.protos.edits import Scale
from probewire.protos.errors import FailedPrecondition, InvalidArgument, Unsupported
from probewire.protos.metrics import Kl, Logit, LogProb
from probewire.protos.model import Input
from probewire.protos.spec import Condition, Plan
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from tests.backends.derived import SIZES, write
from tests.backends.torch.devices.virtual_devices import VirtualDevices
from tests.parity.beside import Beside, _worst
from tests.parity.harness import CHUNKED, TOLERANCE, assert_same, collect, every_site, generate, load, run, sequence
from tests.parity.opened import OTHER, RULES, TOKENS, gap
from tests.tiny_models import tiny_checkpoint

MODELING: Any = _modeling_utils
BACKEND = "probewire.backends.torch.backend"
LONG = list(range(40, 75))
TWO, WAITING, ALL = ("cpu:1", "cpu:2"), ("cpu:1", "cpu"), ("cpu:1", "cpu:2", "cpu")
"""Virtual devices; on the host's, layers wait."""
PAIRS = [("llama", ALL), ("gemma3_text", TWO), ("gpt_oss", WAITING)]
"""Plain; windows; experts, sinks, weights of the attention module's own."""


def _homes(devices: tuple[str, ...], n_layers: int) -> tuple[LayerHome, ...]:
    """As many layers for each device of a list, in order."""
    gpus = [device for device in devices if device != "cpu"]
    each = [LayerHome(gpu, gpu) for gpu in gpus] + [LayerHome(gpus[-1], "cpu")] * ("cpu" in devices)
    return tuple(each[i * len(each) // n_layers] for i in range(n_layers))


@contextmanager
def _on(devices: tuple[str, ...]) -> Generator[None]:
    """Models that are loaded inside lie on virtual devices."""

    def placed(_: Any, sizes: Sizes, __: Any) -> Placement:
        return Placement(devices, _homes(devices, len(sizes.layers)))

    with (
        mock.patch(f"{BACKEND}.choose_devices", return_value=devices),
        mock.patch("probewire.backends.torch.devices.placed.room_on", return_value=None),
        mock.patch("probewire.backends.torch.devices.placed.placed", placed),
        mock.patch("probewire.backends.torch.load.loading_over", return_value=nullcontext({})),  # it loads in threads
    ):
        yield


def load_on(devices: tuple[str, ...], folder: Path, **options: Any) -> Backend:
    """A backend over virtual devices, to be used inside `VirtualDevices`."""
    with _on(devices), VirtualDevices():
        return load("torch", folder, **options)


@pytest.fixture(scope="module", autouse=True)
def _one_product() -> Iterator[None]:
    """OneDNN computes none of them: it takes weights on virtual devices for the host's."""
    with mock.patch("probewire.backends.torch.linear._HAS_ONEDNN", False):
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Backend]]:
    """Families' checkpoints, and they loaded as ever."""
    folder, made = tmp_path_factory.mktemp("tiny"), dict[str, tuple[Path, Backend]]()

    def of(family: str) -> tuple[Path, Backend]:
        if family not in made:
            path = tiny_checkpoint(family, folder)
            made[family] = path, load("torch", path)
        return made[family]

    return of


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest, plain: Callable[[str], tuple[Path, Backend]]) -> tuple[Backend, Backend]:
    """A model on one device, and the same on several."""
    family, devices = request.param
    folder, one = plain(family)
    return one, load_on(devices, folder)


def test_devices_do_not_mix() -> None:
    with VirtualDevices():
        one, two = torch.ones(3, device="cpu:1"), torch.ones(3).to("cpu:2")
        with pytest.raises(RuntimeError, match="cpu:1 and cpu:2"):
            torch.add(one, two)
        with pytest.raises(RuntimeError, match="cpu and cpu:1"):
            torch.add(one, torch.ones(3))
        assert (one + two.to("cpu:1")).device == torch.device("cpu:1")
        two.copy_(one * 3)
        assert two.device == torch.device("cpu:2")
        assert two.tolist() == [3, 3, 3]


def test_describe_says_where(pair: tuple[Backend, Backend]) -> None:
    one, several = pair
    model: Any = several
    assert one.info.placement == ""
    assert several.info.device in ("cpu:1,cpu:2", "cpu:1,cpu", "cpu:1,cpu:2,cpu")
    assert several.info.placement.startswith("layer")
    assert ("wait in main memory" in several.info.placement) == several.info.device.endswith(",cpu")
    assert several.info.generate, several.info.generate_note
    assert several.info.sites == one.info.sites
    assert "placed" in repr(several.info)
    lie = {str(weight.device) for weight in model.model.parameters()}
    assert lie == set(several.info.device.split(","))


def test_keys_and_values_lie_with_their_layers(pair: tuple[Backend, Backend]) -> None:
    backend: Any = pair[1]
    engine, placed = backend.engine, backend.placed
    bytes_of = dict[str, int]()
    for allocator in engine.processor.cache.cache_allocators.values():
        for layer, views in allocator._kv_token_views.items():
            for view in views:
                assert str(view.device) == placed.placement.homes[layer].device
                bytes_of[str(layer)] = bytes_of.get(str(layer), 0) + view.nbytes
    assert engine.processor.cache.cache_tensor.device.type == "meta"
    assert max(bytes_of.values()) <= 1.1 * placed.sizes.cache, "as much as was set aside for each, and the trash pages"


def test_every_site_in_a_run(pair: tuple[Backend, Backend]) -> None:
    one, several = pair
    edit = Hook("resid_post.0", edit=steer("resid_post.0", np.ones(64, np.float32), 0.5).edit)
    plan = Plan((edit, *every_site(one).hooks))
    with VirtualDevices():
        assert_same(run(several, LONG, plan), run(one, LONG, plan), 0)
        parts, made = RunParts(), sequence(several, LONG, plan)
        cut = [several.run_part(made, parts, stop) for stop in (9, 10, len(LONG))][-1]
        assert cut.error is None
        assert_same(collect(cut.rows), run(one, LONG, plan), TOLERANCE["float32"])  # parts are other products


def test_generations_in_one_batch(pair: tuple[Backend, Backend]) -> None:
    one, several = pair
    plan = every_site(one, "generate")
    prompts = [TOKENS, LONG, [9] * 12]
    with VirtualDevices():
        found, wanted = (
            generate(
                backend,
                [sequence(backend, p, plan, mode="generate", max_new=12, name=f"s{i}") for i, p in enumerate(prompts)],
            )
            for backend in (several, one)
        )
    for here, there in zip(found, wanted, strict=True):
        assert here.tokens == there.tokens
        assert_same(here.captured, there.captured, 0)


@pytest.mark.parametrize("seed", range(6))
def test_any_plan(pair: tuple[Backend, Backend], seed: int) -> None:
    """Raw and named sites, every edit, conditions that read another layer, latents, reductions."""
    one, several = (Beside(backend) for backend in pair)
    with VirtualDevices():
        requests = one._requests(seed, "run")
        assert _worst(one._ran(requests), several._ran(requests), requests)[0] == 0
        if seed < 3:
            requests = one._requests(seed, "generate")
            assert _worst(one._generated(requests), several._generated(requests), requests)[0] == 0


def test_a_condition_of_one_device_gates_an_edit_of_another(pair: tuple[Backend, Backend]) -> None:
    one, several = pair
    site = f"resid_mid.{one.info.n_layers - 1}"
    when = Condition(0.1, site="resid_mid.0", unit=3)
    plan = Plan((hook(site, Scale(-2.0), when=when), capture("logits")))
    latched = Plan((hook(site, Scale(-2.0), when=replace(when, latch="mean")), capture("logits")))
    with VirtualDevices():
        assert_same(run(several, TOKENS, plan), run(one, TOKENS, plan), 0)
        [found], [wanted] = (
            generate(b, [sequence(b, TOKENS, latched, mode="generate", max_new=6)]) for b in (several, one)
        )
        assert_same(found.captured, wanted.captured, 0)


def test_a_forward_that_ends_early_leaves_nothing_behind(pair: tuple[Backend, Backend]) -> None:
    one, several = pair
    plan = Plan((capture("resid_post.0"),))
    with VirtualDevices():
        assert_same(run(several, TOKENS, plan), run(one, TOKENS, plan), 0)
    backend: Any = several
    placed = backend.placed
    assert not placed._moved, "an idle model holds nobody's masks"
    assert not placed._here
    for layer, home in zip(backend.layers, placed.placement.homes, strict=True):
        assert {str(weight.device) for weight in layer.parameters()} == {home.held}


# ---- what is prepared by the server: gradients and sweeps --------------------------------------------------------------


def _config(folder: Path) -> WorkerConfig:
    return WorkerConfig(str(folder), "tiny", backend="torch", dtype="float32", device="cpu", engine=CHUNKED)


def on_its_thread(config: WorkerConfig, folder: Path, devices: tuple[str, ...]) -> Client:
    """A model over virtual devices, served."""

    def loaded(*args: Any, **kwargs: Any) -> Backend:
        VirtualDevices().__enter__()  # for the thread, which ends with the model
        return load_backend(*args, **kwargs)

    with _on(devices), mock.patch("probewire.server.worker.model.load_backend", loaded):
        return Client.inprocess(InProcessService(LocalModel(config, folder)))


@pytest.fixture(scope="module", params=[("llama", ALL), ("gemma2", WAITING)])
def clients(
    request: pytest.FixtureRequest, plain: Callable[[str], tuple[Path, Backend]]
) -> Iterator[tuple[Client, Client]]:
    """The same two models, each on its own thread."""
    family, devices = request.param
    folder, _ = plain(family)
    config = _config(folder)
    one = Client.inprocess(InProcessService(LocalModel(config, folder)))
    several = on_its_thread(config, folder, devices)
    assert several.describe().device == ",".join(devices)
    yield one, several
    one.close()
    several.close()


METRICS: Any = [
    Logit(7),
    LogProb(3, -4),
    Kl("other", 9, 4),
    Coordinate("mlp_act.0", 9, 40),
    Coordinate("resid_post.2", 13, direction=np.linspace(-1, 1, 64, dtype=np.float32)),
]


def _inputs() -> dict[str, Any]:
    return {"x": Input(token_ids=tuple(TOKENS)), "other": Input(token_ids=tuple(OTHER), source_only=True)}


@pytest.mark.parametrize("rules", [(), RULES])
@pytest.mark.parametrize("direct", [False, True])
def test_gradients(clients: tuple[Client, Client], rules: tuple[str, ...], direct: bool) -> None:
    one, several = clients
    at = [site.name + (".*" if site.layers is not None else "") for site in one.describe().sites if site.gradients]
    if "ah" in rules:
        at = [site for site in at if site.split(".")[0] not in ("q", "k", "attn_scores", "attn_probs")]
    for metric in METRICS[:2] + METRICS[3:]:
        found, wanted = (c.gradients(TOKENS, metric, at=at, rules=rules, direct=direct) for c in (several, one))
        assert found.metric == wanted.metric
        for site in wanted.gradients.sites:
            assert_array_equal(found.gradients[site], wanted.gradients[site], err_msg=f"{metric} by {site}")


def test_several_targets_of_one_forward(
    clients: tuple[Client, Client], plain: Callable[[str], tuple[Path, Backend]]
) -> None:
    """Against one virtual device: over a batch of gradients torch takes other products for its own tensors, and
    (to the bit in gradients alone, above) for weights that come back for a backward pass."""
    _, several = clients
    exact = TOLERANCE["float32"] if several.describe().architecture == "gemma2" else 0.0
    folder, _ = plain(several.describe().architecture)
    asked = [
        *METRICS[:2],
        Coordinate("mlp_act.0", 9, 40),
        Coordinate("mlp_act.2", 9, 4),
        Coordinate("resid_mid.1", 6, 3),
    ]
    targets = {str(i): metric for i, metric in enumerate(asked)}
    # A busy machine would cut them into slices of time, and so into batches of other sizes, whose products are others.
    whole = mock.patch("probewire.server.worker.pace.Pace.rows", return_value=10**6)
    with whole, on_its_thread(_config(folder), folder, ("cpu:1", "cpu:1")) as one:
        for direct in (False, True):
            found, wanted = (
                c.gradients(dict.fromkeys(targets, TOKENS), targets, at=["embed", "mlp_act.*"], direct=direct)
                for c in (several, one)
            )
            for name in targets:
                here, there = found.inputs[name], wanted.inputs[name]
                assert here.metric == there.metric
                for site in there.gradients.sites:
                    assert gap(here.gradients[site], there.gradients[site]) <= exact, (name, site)


def test_sweeps(clients: tuple[Client, Client]) -> None:
    plans = [
        [hook(f"{site}.{layer}", Scale(-1.5), positions=[position])]
        for site in ("resid_pre", "z", "mlp_out", "resid_post")
        for layer in (0, 1, 2)
        for position in (2, 9)
    ]
    one, several = clients
    found, wanted = (c.sweep(_inputs(), METRICS[:3], plans, progress=False).measured["x"] for c in (several, one))
    assert_array_equal(found, wanted)


# ---- loading, and what cannot be placed -------------------------------------------------------------------------------------------


def test_a_derived_table(tmp_path: Path) -> None:
    folder = write("olmo2", tmp_path / "olmo2", **{**SIZES, "num_hidden_layers": 2})
    one, several = load("torch", folder), load_on(TWO, folder)
    assert several.info.sites == one.info.sites
    assert several.info.proof
    with VirtualDevices():
        assert_same(run(several, TOKENS, every_site(one)), run(one, TOKENS, every_site(one)), 0)


def test_stacked_caches_lie_with_their_layers(tmp_path: Path) -> None:
    """Of a model that the library's batches refuse."""
    folder = write("stablelm", tmp_path, **{**SIZES, "num_key_value_heads": 2, "num_hidden_layers": 2})
    one = load("torch", folder)
    with mock.patch(f"{BACKEND}.room_over", return_value=None):
        several = load_on(TWO, folder)
    assert several.info.batching == "", several.info.batching
    plan = every_site(several, "generate")
    with VirtualDevices():
        found, wanted = (
            generate(
                backend,
                [sequence(backend, p, plan, mode="generate", name=f"s{i}") for i, p in enumerate((TOKENS, LONG, [9]))],
            )
            for backend in (several, one)
        )
    for here, there in zip(found, wanted, strict=True):
        assert here.tokens == there.tokens
        assert_same(here.captured, there.captured, TOLERANCE["float32"])
    one.close()
    several.close()


def test_bfloat16(tmp_path: Path) -> None:
    folder = tiny_checkpoint("llama", tmp_path, num_hidden_layers=2)
    one, several = load("torch", folder, dtype="bfloat16"), load_on(TWO, folder, dtype="bfloat16")
    with VirtualDevices():
        assert_same(run(several, TOKENS, every_site(one)), run(one, TOKENS, every_site(one)), 0)


def test_weights_are_read_to_where_they_lie(plain: Callable[[str], tuple[Path, Backend]]) -> None:
    """By transformers, as far as a machine without a GPU shows it; nothing of accelerate's is left in the model."""
    folder, loaded = plain("gemma3_text")
    one: Any = loaded
    layers = PlacedLayers(TWO, footprint(folder, "float32", CHUNKED))
    with _on(TWO):
        found = layers.device_map(AutoConfig.from_pretrained(folder))
    assert found[""] == torch.device("cpu:1")
    assert [str(device) for name, device in sorted(found.items()) if name] == ["cpu:1", "cpu:1", "cpu:2", "cpu:2"]
    known = MODELING.accelerate_dispatch
    with loading_over({**dict.fromkeys(found, torch.device("cpu")), "model.layers.3": torch.device("meta")}) as over:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, **over)
    assert MODELING.accelerate_dispatch is known
    wanted = {**dict(one.model.named_parameters()), **dict(one.model.named_buffers())}
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        assert ("layers.3." in name) == (value.device.type == "meta"), name
        assert value.device.type == "meta" or torch.equal(value, wanted[name]), name
    assert not any(hasattr(module, "_hf_hook") for module in model.modules())


def test_a_model_that_mixes_what_lies_apart_is_refused(plain: Callable[[str], tuple[Path, Backend]]) -> None:
    folder, _ = plain("llama")
    with (
        mock.patch("probewire.backends.torch.devices.placed.PlacedLayers._attach"),
        pytest.raises(InvalidArgument, match=r"llama cannot be placed over cpu:1,cpu:2: .*use one device"),
    ):
        load_on(TWO, folder)


def test_quantised_weights_stay_on_one(plain: Callable[[str], tuple[Path, Backend]]) -> None:
    folder, _ = plain("llama")
    config = AutoConfig.from_pretrained(folder)
    with pytest.raises(
        Unsupported,
        match="lies on one device, and cpu:1,cpu:2 was asked for; use one, or a checkpoint of plain weights",
    ):
        PlacedLayers(TWO, footprint(folder, "float32", CHUNKED)).device_map(config, quantised=True)


def test_one_that_fits_nowhere_is_refused(plain: Callable[[str], tuple[Path, Backend]]) -> None:
    folder, _ = plain("llama")
    with (
        mock.patch(f"{BACKEND}.choose_devices", return_value=TWO),
        mock.patch("probewire.backends.torch.devices.placed.room_on", return_value=1000),
        pytest.raises(FailedPrecondition, match=r"free are: cpu:1 0\.00 GiB, cpu:2 0\.00 GiB"),
    ):
        load("torch", folder)


def test_lists_are_read_where_a_device_is(plain: Callable[[str], tuple[Path, Backend]]) -> None:
    folder, _ = plain("llama")
    for device, error, told in (
        ("cuda:0,cuda:1", FailedPrecondition, "no usable CUDA"),
        ("cuda:0,tpu", InvalidArgument, "unknown device 'tpu'"),
        ("cuda:0,cuda:0", InvalidArgument, "stands twice"),
        ("nonsense", InvalidArgument, "unknown device 'nonsense'"),
    ):
        with pytest.raises(error, match=told):
            load_backend("torch", folder, model_id="tiny", limits=CHUNKED, device=device)
