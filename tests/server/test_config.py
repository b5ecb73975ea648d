"""What an operator sets: checked on construction, and the backend that is chosen."""

from __future__ import annotations

import platform
from dataclasses import fields
from typing import Any

import pytest

from probewire.protos.errors import FailedPrecondition, InvalidArgument
from probewire.protos.wire.codec import from_json, to_json
from probewire.server import config as module
from probewire.server.config import GatewayConfig, RequestLimits, Supervision, WorkerConfig, choose_backend


@pytest.mark.parametrize("name", [field.name for field in fields(RequestLimits)])
@pytest.mark.parametrize("value", [0, -1])
def test_every_limit_is_one_or_more(name: str, value: int) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(InvalidArgument) as caught:
        RequestLimits(**options)
    assert caught.value.message == f"{name} must be 1 or more, got {value}"
    assert RequestLimits(**dict.fromkeys(options, 1))


def test_a_worker_is_told_its_config_as_json() -> None:
    config = WorkerConfig("org/name", "m", limits=RequestLimits(max_saes=3), threads=0, sae_folders=("/a", "/b"))
    assert from_json(WorkerConfig, to_json(config)) == config
    assert from_json(WorkerConfig, to_json(WorkerConfig("", ""))).threads is None, "which is not 0"


def test_hosts_and_origins_are_kept_in_one_spelling() -> None:
    config = GatewayConfig(allowed_hosts=("Box.Lab.", "::1"), allowed_origins=("HTTPS://Tool.Lab:443",))
    assert config.allowed_hosts == ("box.lab", "::1")
    assert config.allowed_origins == ("https://tool.lab",)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"allowed_hosts": ("box.lab:8000",)}, "'box.lab:8000' has a port"),
        ({"allowed_hosts": ("http://box.lab",)}, "is no host"),
        ({"allowed_origins": ("tool.lab",)}, "is no page's origin"),
        ({"allowed_origins": ("null",)}, "is no page's origin"),
        ({"allowed_origins": ("https://tool.lab", "*")}, "is no page's origin"),
        ({"trusted_proxies": ("box.lab",)}, "box.lab"),
        ({"trusted_proxies": ("10.0.0.0/33",)}, "10.0.0.0/33"),
    ],
)
def test_what_names_no_host_page_or_proxy_is_refused_at_the_start(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        GatewayConfig(**options)
    assert told in caught.value.message


def test_the_gateways_limits_are_its_workers() -> None:
    limits = RequestLimits(max_queued=7)
    assert GatewayConfig(worker=WorkerConfig("", "", limits=limits)).limits is limits


def test_a_probe_is_fresh_for_two_intervals_and_the_time_of_one() -> None:
    assert Supervision(probe_interval_s=5.0, probe_timeout_s=2.0).fresh_s == 12.0


def installed(monkeypatch: pytest.MonkeyPatch, *names: str, system: str = "Linux", machine: str = "x86_64") -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: object() if name in names else None)
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)


@pytest.mark.parametrize(
    ("there", "system", "machine", "chosen"),
    [
        (("torch", "mlx"), "Linux", "x86_64", "torch"),
        (("torch", "mlx"), "Darwin", "arm64", "mlx"),
        (("torch", "mlx"), "Darwin", "x86_64", "torch"),
        (("torch", "mlx"), "Linux", "arm64", "torch"),
        (("torch",), "Darwin", "arm64", "torch"),
        (("mlx",), "Linux", "x86_64", "mlx"),
    ],
)
def test_auto_is_what_the_machine_is_best_at_and_has(
    monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], system: str, machine: str, chosen: str
) -> None:
    installed(monkeypatch, *there, system=system, machine=machine)
    assert choose_backend("auto") == chosen


def test_a_backend_that_is_named_is_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "torch", "mlx")
    assert [choose_backend(name) for name in ("torch", "mlx")] == ["torch", "mlx"]


def test_a_backend_that_is_not_there_is_refused_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "torch")
    with pytest.raises(FailedPrecondition) as caught:
        choose_backend("mlx")
    assert caught.value.message == "backend 'mlx' is not installed here; pip install 'probewire[mlx]'"
    installed(monkeypatch)
    with pytest.raises(FailedPrecondition) as caught:
        choose_backend("auto")
    assert caught.value.message.endswith("pip install 'probewire[torch]' or pip install 'probewire[mlx]'")


@pytest.mark.parametrize("name", ["", "jax", "Torch"])
def test_a_backend_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        choose_backend(name)
    assert caught.value.message == f"unknown backend {name!r}; allowed: auto, torch, mlx"
