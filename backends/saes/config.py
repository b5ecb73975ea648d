"""What cfg.json of an SAE says of its numbers: sae-lens's fields, of every age, honoured as they stand or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ...protos.errors import InvalidArgument
from ...protos.tensors import FLOAT_DTYPES

__all__ = [
    "HONOURED",
    "METADATA",
    "OF_OLD",
    "WITHOUT_EFFECT",
    "as_of_version_6",
    "check_config",
    "dtype_of",
    "k_of",
    "metadata_of",
]

HONOURED = frozenset(
    [
        "architecture",
        "d_in",
        "d_sae",
        "dtype",
        "apply_b_dec_to_input",
        "normalize_activations",
        "reshape_activations",
        "metadata",
        "k",
        "rescale_acts_by_decoder_norm",
    ]
)
"""Fields that change an SAE's numbers, and do here."""
OF_OLD = frozenset(["activation_fn", "activation_fn_kwargs", "finetuning_scaling_factor"])
"""Those of versions before 6, which may only say what is done anyway."""
METADATA = frozenset(
    [
        "model_name",
        "hook_name",
        "model_class_name",
        "hook_head_index",
        "model_from_pretrained_kwargs",
        "prepend_bos",
        "exclude_special_tokens",
        "neuronpedia_id",
        "context_size",
        "seqpos_slice",
        "dataset_path",
        "sae_lens_version",
        "sae_lens_training_version",
        "hook_name_out",
        "hook_head_index_out",
        "hf_hook_name",
        "hf_hook_name_out",
    ]
)
"""What an SAE was trained on. The model's processing and a single head are checked; no other changes a number."""
WITHOUT_EFFECT = frozenset(
    [
        "device",
        "decoder_init_norm",
        "l1_coefficient",
        "l1_warm_up_steps",
        "lp_norm",
        "use_sparse_activations",
        "aux_loss_coefficient",
        "topk_threshold_lr",
        "jumprelu_init_threshold",
        "jumprelu_bandwidth",
        "jumprelu_sparsity_loss_mode",
        "jumprelu_tanh_scale",
        "jumprelu_ste_to_input",
        "l0_coefficient",
        "l0_warm_up_steps",
        "pre_act_loss_coefficient",
        "target_l0",
        "matryoshka_widths",
        "use_matryoshka_aux_loss",
    ]
)
"""Fields of training, and where sae-lens was to compute."""
_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_PROCESSING = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)
_NORMS = ("none", "layer_norm", "constant_norm_rescale")
_UNFINISHED = {
    "expected_average_only_in": "sae.fold_activation_norm_scaling_factor(x), x being scaling_factor in activation_scaler.json",
    "covariance_whitening": "sae.fold_activation_whitening(…) with the tensors of activation_whitening.safetensors",
}
"""Done to activations in training and folded into the weights at its end, which makes the config say "none"."""


def as_of_version_6(config: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The config as versions of sae-lens from 6 on say it. Raises InvalidArgument for fields that none of them has."""
    named = {_RENAMED.get(key, key): value for key, value in config.items()}
    if not _is_old(named):
        known = HONOURED | OF_OLD | METADATA | WITHOUT_EFFECT
        if unknown := sorted(key for key in named if key not in known):
            raise InvalidArgument(
                f"{what} has fields in its config that this server does not know ({', '.join(unknown)}), so its latents "
                "might be others; if they change nothing, take them out of cfg.json (notes belong into metadata)"
            )
        return named
    named.setdefault("architecture", "standard")
    kwargs = named.get("activation_fn_kwargs")
    if named.get("activation_fn") == "topk" and isinstance(kwargs, dict):
        named |= {"architecture": "topk", "k": cast("dict[str, Any]", kwargs).get("k")}
    if isinstance(named.get("normalize_activations"), bool):
        named["normalize_activations"] = "expected_average_only_in" if named["normalize_activations"] else "none"
    if "hook_z" in str(named.get("hook_name", "")):
        named["reshape_activations"] = named.get("reshape_activations") or "hook_z"
    named["metadata"] = {key: value for key, value in named.items() if key in METADATA} | metadata_of(named)
    return named


def metadata_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the config says of where the SAE was trained."""
    found: Any = config.get("metadata")
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _is_old(config: Mapping[str, Any]) -> bool:
    version = config.get("sae_lens_version") or metadata_of(config).get("sae_lens_version")
    major = version.partition(".")[0] if isinstance(version, str) else ""
    return not major.isdecimal() or int(major) < 6


def check_config(config: Mapping[str, Any], architecture: str, what: str) -> None:
    """Raise InvalidArgument for what a config asks of an SAE's numbers and is not done here."""
    for name in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
        if not isinstance(config.get(name, False), bool):
            raise InvalidArgument(f"{what}: {name} {config[name]!r}; allowed: true, false")
    if architecture != "topk" and config.get("rescale_acts_by_decoder_norm"):
        raise InvalidArgument(
            f"{what} is {architecture} and says rescale_acts_by_decoder_norm, which only topk SAEs do; save it with sae-lens's "
            "save_inference_model, which folds the norms in"
        )
    _check_activation(config, architecture, what)
    _check_normalisation(config, what)
    _check_training(config, what)


def _check_activation(config: Mapping[str, Any], architecture: str, what: str) -> None:
    name: Any = config.get("activation_fn") or "relu"
    kwargs: Any = config.get("activation_fn_kwargs") or {}
    if name != "relu" and (name, architecture) != ("topk", "topk"):
        raise InvalidArgument(
            f"{what}: activation_fn {name!r}; allowed: relu, and topk with its k among activation_fn_kwargs"
        )
    other = [key for key in cast("dict[str, Any]", kwargs) if key != "k"] if isinstance(kwargs, dict) else [str(kwargs)]
    if other:
        raise InvalidArgument(f"{what}: activation_fn_kwargs {', '.join(other)}; allowed: k")


def _check_normalisation(config: Mapping[str, Any], what: str) -> None:
    found = config.get("normalize_activations") or "none"
    if isinstance(found, str) and (fix := _UNFINISHED.get(found)):
        raise InvalidArgument(
            f"{what} is not finished: it reads activations that training had scaled ({found}), and its weights do not hold "
            f"the scale; load it with sae-lens, call {fix}, and save it again"
        )
    if found not in _NORMS:
        raise InvalidArgument(f"{what}: normalize_activations {found!r}; allowed: {', '.join(_NORMS)}")


def _check_training(config: Mapping[str, Any], what: str) -> None:
    """sae-lens notes how the model was loaded that an SAE was trained on; ours is the checkpoint as it is."""
    metadata = metadata_of(config)
    options: Any = metadata.get("model_from_pretrained_kwargs")
    if isinstance(options, dict) and (changed := [k for k in _PROCESSING if cast("dict[str, Any]", options).get(k)]):
        raise InvalidArgument(
            f"{what} was trained on a model whose weights TransformerLens had processed ({', '.join(changed)}); this server "
            "runs the checkpoint as it is, on which its latents would be others"
        )
    if metadata.get("hook_head_index") is not None:
        raise InvalidArgument(
            f"{what} reads head {metadata['hook_head_index']!r} alone (hook_head_index); an SAE here reads whole rows"
        )


def dtype_of(config: Mapping[str, Any], saved: str, what: str) -> str:
    """The dtype that the SAE works in: the config's, into which sae-lens casts the file's own (`saved`)."""
    told = config.get("dtype") or saved
    name = told.removeprefix("torch.") if isinstance(told, str) else told
    if name not in FLOAT_DTYPES:
        raise InvalidArgument(f"{what}: its config says dtype {told!r}; allowed: {', '.join(FLOAT_DTYPES)}")
    return name


def k_of(config: Mapping[str, Any], d_sae: int, what: str) -> int:
    """How many latents of a topk SAE fire at most."""
    k = config.get("k")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= d_sae:
        raise InvalidArgument(f"{what}: k of a topk SAE must be in 1 … {d_sae}, its config says {k!r}")
    return k
