"""A model's layers on devices of their own: each computes where it lies, or where its weights are brought for a forward.

Everything that is no layer stays on the first device: token ids go in there, and final-norm rows come out there.
Hooks of modules see a tensor after it was moved to its layer, and weights that come and go while they are there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, modeling_utils

from ....protos.errors import InvalidArgument, Unsupported
from ...model.footprint import Footprint
from ...model.placement import LayerHome, Placement, Sizes, placed
from .choice import room_on

__all__ = ["PlacedLayers", "loading_over"]


def _layers_in(model: nn.Module, config: Any) -> tuple[str, nn.ModuleList]:
    """The path of a model's layers, and they. Raises InvalidArgument where no module lists them."""
    n_layers = config.get_text_config().num_hidden_layers
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise InvalidArgument(
            f"{config.model_type} has no one list of its layers, so they cannot be placed on several devices; use one"
        )
    return max(lists, key=lambda found: sum(weight.numel() for weight in found[1].parameters()))


@contextmanager
def loading_over(device_map: Mapping[str, torch.device] | None) -> Generator[dict[str, Any]]:
    """Arguments with which `from_pretrained` reads weights straight to where they lie.

    Moving what layers read is ours: accelerate's hooks would replace `forward` in every module, and leave weights that
    wait in no place where they can be read.
    """
    if device_map is None:
        yield {}
        return
    theirs: Any = modeling_utils
    kept = theirs.accelerate_dispatch
    theirs.accelerate_dispatch = lambda *_, **__: None
    try:
        yield {"device_map": dict(device_map)}
    finally:
        theirs.accelerate_dispatch = kept


class PlacedLayers:
    """The layers of one model: planned before it is loaded, and settled once it is."""

    def __init__(self, devices: tuple[str, ...], footprint: Footprint) -> None:
        self.devices, self.footprint = devices, footprint
        self.first = torch.device(devices[0])
        self.sizes: Sizes
        self.placement: Placement
        """Both set by `device_map`."""
        self._moved: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}
        """What all layers are given alike, such as a mask, by what it was: moved once a forward and a device."""
        self._here: dict[int, torch.Tensor] = {}
        """Weights that were brought for a layer that computes just now: where they lie → the one that waits."""

    def device_map(self, config: Any, *, quantised: bool = False) -> dict[str, torch.device]:
        """Where each layer of a model of this config goes, as transformers takes it.

        Raises InvalidArgument for a model without a list of layers, Unsupported for quantised weights, FailedPrecondition
        for one that does not fit.
        """
        if quantised:
            raise Unsupported(
                f"{config.model_type} with quantised weights lies on one device, and {','.join(self.devices)} was asked for; "
                "use one, or a checkpoint of plain weights"
            )
        with torch.device("meta"):
            shapes: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        path, layers = _layers_in(shapes, config)
        total = sum(weight.numel() for weight in shapes.parameters())
        counts = [sum(weight.numel() for weight in layer.parameters()) for layer in layers]
        sizes = tuple(round(self.footprint.weights * n / total) for n in counts)
        rest = max(self.footprint.weights - sum(sizes), 0)
        room = {device: room_on(device) for device in self.devices}
        kinds = len(set(getattr(config.get_text_config(), "layer_types", None) or [""]))  # each has pages of its own
        self.sizes = Sizes(sizes, rest, kinds * self.footprint.cache // len(layers))
        self.placement = placed(self.devices, self.sizes, room)
        # Every layer by name: transformers takes "layers.1" for the beginning of "layers.11" where that is not named.
        where = {f"{path}.{i}": torch.device(home.held) for i, home in enumerate(self.placement.homes)}
        return {"": self.first, **where}

    def settle(self, model: Any, body: nn.Module) -> None:
        """Let the layers compute where they are to; what is not there yet is moved. `body`: what is called for a forward."""
        _, layers = _layers_in(model, model.config)
        homes: dict[int, LayerHome] = {
            id(module): home
            for layer, home in zip(layers, self.placement.homes, strict=True)
            for module in layer.modules()
        }
        moved: dict[tuple[int, torch.device], nn.Parameter] = {}  # weights that several modules share stay shared
        for module in model.modules():
            home = homes.get(id(module), LayerHome(str(self.first), str(self.first)))
            _put(module, torch.device(home.held), torch.device(home.device), moved)
        for layer, home in zip(layers, self.placement.homes, strict=True):
            self._attach(layer, home)
        layers[-1].register_forward_hook(self._to_first)
        body.register_forward_hook(self._forget, always_call=True)

    @property
    def where(self) -> tuple[torch.device, ...]:
        """Where each layer computes."""
        return tuple(torch.device(home.device) for home in self.placement.homes)

    def try_out(self, forward: Callable[[torch.Tensor], Any], kind: str) -> None:
        """One small forward over token ids [batch, row].

        Raises InvalidArgument where the model's own code mixes what lies on several devices.
        """
        try:
            with torch.no_grad():
                forward(torch.ones(1, 3, dtype=torch.long, device=self.first))
        except RuntimeError as error:
            raise InvalidArgument(
                f"{kind} cannot be placed over {','.join(self.devices)}: {error}; use one device"
            ) from error

    @contextmanager
    def waiting_weights_saved(self) -> Generator[None]:
        """A forward whose backward pass brings the weights that wait again, instead of holding all of them."""
        if not any(home.waits for home in self.placement.homes):
            yield
            return

        def pack(tensor: torch.Tensor) -> Any:
            weight = self._here.get(_place(tensor)) if self._here else None
            if weight is None:
                return tensor
            return _Waiting(weight, tensor.device, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

        def unpack(saved: Any) -> torch.Tensor:
            return saved.brought() if isinstance(saved, _Waiting) else saved

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield

    def _attach(self, layer: nn.Module, home: LayerHome) -> None:
        device = torch.device(home.device)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if "forward" in vars(module):  # it passes on what it is given
                return None
            if home.waits:
                self._bring(module, device)
            first, *rest = args or (None,)
            given = (self._to(first, device), *self._shared(tuple(rest), device)) if args else ()
            return given, {
                name: self._to(value, device) if name == "hidden_states" else self._shared(value, device)
                for name, value in kwargs.items()
            }

        layer.register_forward_pre_hook(before, with_kwargs=True)
        if home.waits:
            held = [
                (module, name, weight)
                for module in layer.modules()
                for name, weight in module.named_parameters(recurse=False)
            ]
            layer.register_forward_hook(lambda *_: self._let_go(held), always_call=True)

    def _bring(self, layer: nn.Module, device: torch.device) -> None:
        for module in layer.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                if weight.device != device:
                    here = nn.Parameter(weight.detach().to(device, non_blocking=True), requires_grad=False)
                    self._here[_place(here)] = weight
                    setattr(module, name, here)

    def _let_go(self, held: list[tuple[nn.Module, str, nn.Parameter]]) -> None:
        for module, name, weight in held:
            setattr(module, name, weight)
        self._here.clear()

    def _to_first(self, _: nn.Module, __: Any, output: Any) -> Any:
        return _each(output, lambda tensor: tensor.to(self.first))

    def _to(self, value: Any, device: torch.device) -> Any:
        return _each(value, lambda tensor: tensor.to(device))

    def _shared(self, value: Any, device: torch.device) -> Any:
        return _each(value, lambda tensor: self._once(tensor, device))

    def _once(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        if tensor.device == device:
            return tensor
        key = id(tensor), device
        if key not in self._moved:
            self._moved[key] = tensor, tensor.to(device)
        return self._moved[key][1]

    def _forget(self, *_: Any) -> None:
        self._moved.clear()


class _Waiting:
    """A weight, or a view of it, as a backward pass will read it."""

    def __init__(
        self, weight: torch.Tensor, device: torch.device, size: torch.Size, stride: tuple[int, ...], offset: int
    ) -> None:
        self.weight, self.device, self.view = weight, device, (size, stride, offset)

    def brought(self) -> torch.Tensor:
        return self.weight.detach().to(self.device).as_strided(*self.view)


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _put(
    module: nn.Module,
    held: torch.device,
    buffers: torch.device,
    moved: dict[tuple[int, torch.device], nn.Parameter],
) -> None:
    """A module's own weights and buffers to where they lie, those of its children not."""
    for name, weight in list(module.named_parameters(recurse=False)):
        if weight.device != held:
            if (id(weight), held) not in moved:
                moved[id(weight), held] = nn.Parameter(weight.detach().to(held), requires_grad=False)
            setattr(module, name, moved[id(weight), held])
    for name, buffer in list(module.named_buffers(recurse=False)):
        setattr(module, name, buffer.to(buffers))


def _each(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A tensor changed, or all those in tuples, lists and dicts; the same object where nothing in it is."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if type(value) is dict:
        items = cast("dict[Any, Any]", value)
        new = {key: _each(one, change) for key, one in items.items()}
        return items if all(new[key] is one for key, one in items.items()) else new
    if type(value) in (tuple, list):
        parts = cast("list[Any]", value)
        changed = [_each(one, change) for one in parts]
        return parts if all(a is b for a, b in zip(changed, parts, strict=True)) else type(parts)(changed)
    return value
