"""Every way of packing that is read: what a config says of it, and who packs one matrix so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.backends.checkpoints.conversion.packers import Packed, awq, compressed, gptq, int_quantised, nvfp4

__all__ = ["KINDS", "packer"]


def _gptq(bits: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": 16, "desc_act": False, "sym": False, **more}


def _compressed(written: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"symmetric": True, "dynamic": False, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": written,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def _int(bits: int, **more: Any) -> dict[str, Any]:
    return _compressed("pack-quantized", type="int", num_bits=bits, **more)


_AWQ = {"quant_method": "awq", "bits": 4, "zero_point": True, "version": "gemm"}
_ASYMMETRIC = {"symmetric": False, "strategy": "group", "group_size": 16}
_NVFP4 = {"type": "float", "num_bits": 4, "strategy": "tensor_group", "group_size": 16}

KINDS: dict[str, tuple[dict[str, Any], Callable[..., Packed], dict[str, Any]]] = {
    "gptq 2 bits": (_gptq(2), gptq, {"bits": 2}),
    "gptq 3 bits": (_gptq(3), gptq, {"bits": 3}),
    "gptq 4 bits": (_gptq(4), gptq, {}),
    "gptq 8 bits": (_gptq(8), gptq, {"bits": 8}),
    "gptq 3 bits v2": (_gptq(3, checkpoint_format="gptq_v2"), gptq, {"bits": 3, "v2": True}),
    "gptq v2": (_gptq(4, checkpoint_format="gptq_v2"), gptq, {"v2": True}),
    "gptq activation order": (_gptq(4, desc_act=True), gptq, {"act_order": True}),
    "gptq symmetric, one group": (_gptq(4, group_size=-1, sym=True), gptq, {"group": -1, "sym": True}),
    "awq": ({**_AWQ, "group_size": 16}, awq, {}),
    "awq one group": ({**_AWQ, "group_size": -1}, awq, {"group": -1}),
    "int4 groups": (_int(4, strategy="group", group_size=16), compressed, {}),
    "int4 asymmetric": (_int(4, **_ASYMMETRIC), compressed, {"asymmetric": True}),
    "int4 activation order": (
        _int(4, strategy="group", group_size=16, actorder="group"),
        compressed,
        {"act_order": True},
    ),
    "int8 channels": (_int(8, strategy="channel"), compressed, {"bits": 8, "group": -1}),
    "int8 tensor": (_int(8, strategy="tensor"), compressed, {"bits": 8, "group": 0}),
    "int8 plain": (_compressed("int-quantized", type="int", num_bits=8, strategy="channel"), int_quantised, {}),
    "fp8 tensor": (
        _compressed("float-quantized", type="float", num_bits=8, strategy="tensor"),
        int_quantised,
        {"strategy": "tensor", "kind": "float"},
    ),
    "fp8 channels": (
        _compressed("float-quantized", type="float", num_bits=8, strategy="channel"),
        int_quantised,
        {"kind": "float"},
    ),
    "fp8 blocks": (
        _compressed("float-quantized", type="float", num_bits=8, strategy="block", block_structure=[16, 16]),
        int_quantised,
        {"strategy": "block", "kind": "float"},
    ),
    "nvfp4": (_compressed("nvfp4-pack-quantized", **_NVFP4), nvfp4, {}),
}
"""Name -> quantization_config, packer of one matrix, its arguments."""


def packer(name: str, seed: int = 0) -> Callable[[int, int], Packed]:
    """The packer of a kind, which draws other numbers at each call."""
    rng, (_, pack, arguments) = np.random.default_rng(seed), KINDS[name]
    return lambda n_out, n_in: pack(rng, n_out, n_in, **arguments)
