"""Every causal architecture that the installed transformers can build small: what probewire offers of it, proven in this run.

    python benchmarks/families.py [--backend mlx] [KIND …]      # a table in Markdown; `make families`

Each is made with random weights (4 layers, d_model 64), loaded on a backend, and its logits are held against transformers' own
attention, alone and beside a longer sequence. Nothing in the table is taken from a list; on MLX, architectures that mlx-lm has
no code for are left out.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from probewire.backends import load_backend
from probewire.backends.hooks.plan import bind
from probewire.backends.hooks.sequence import Sequence
from probewire.backends.model.limits import Limits
from probewire.protos.errors import ProbewireError
from probewire.protos.model import ModelInfo
from probewire.protos.spec import Capture, Hook, Plan

torch: Any = import_module("torch")  # in part not annotated, as transformers
transformers: Any = import_module("transformers")
KINDS: Any = import_module("transformers.models.auto.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LIMITS = Limits(n_slots=2, context_tokens=64, cache_tokens=256, chunk_tokens=8)
VOCAB, LAYERS, PATIENCE_S = 260, 4, 20
MOST_OF_A_REASON = 110
TOLERANCE = 1e-4
"""Relative, float32."""
TOKENS, LONGER = list(range(10, 26)), list(range(30, 60))

_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "d_ff"), 96),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), LAYERS
    ),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_query_groups"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("head_dim", "v_head_dim"), 16),
    "rotary_dim": 8,
    "sliding_window": 8,
    "state_size": 8,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(
        ("mamba_d_head", "mamba_head_dim", "mamba_headdim", "linear_key_head_dim", "linear_value_head_dim"), 16
    ),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("linear_num_value_heads", "linear_num_key_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 4),
    "mamba_d_ssm": 128,
    "linear_head_dim": 16,
}
"""Sizes by the names that configs have for them."""
_OWN: dict[str, dict[str, Any]] = {
    "gpt_neox": {"intermediate_size": 256},  # four times the width, as mlx-lm has built in
    "gemma3_text": {"num_hidden_layers": 6},  # a whole period of its layers' kinds
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "deepseek_v2": {"topk_method": "greedy", "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "head_dim": 8},
    "deepseek_v3": {"num_key_value_heads": 4, "head_dim": 8},
    "falcon": {"head_dim": None},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "granitemoe_swa": {"shared_intermediate_size": 32},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 32},
    "granitemoeshared": {"shared_intermediate_size": 32},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "mamba_ngroups": 1,
        "num_key_value_heads": 4,
        "attention_head_dim": 32,
    },
}
"""What four layers need to have some of each kind, or to be made at all; None: leave out."""


def main(arguments: list[str]) -> int:
    """Print a row each, then the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("torch", "mlx"), default="torch")
    parser.add_argument("kinds", nargs="*", metavar="KIND")
    options = parser.parse_args(arguments)
    kinds: list[str] = options.kinds
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    print(
        "| architecture | sites | residual sum | attention | generation | gradients by rule | logits, alone / beside | load, CPU s |"
    )
    print("| --- | ---: | --- | --- | --- | --- | --- | ---: |")
    made = full = streams = generating = alone = wrong = 0
    for kind in kinds or sorted(KINDS):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                with _at_most(PATIENCE_S):
                    expected = _write(kind, Path(scratch))
            except Exception:  # noqa: BLE001, S112 - a class that does not build from these sizes is not in the table
                continue
            made += 1
            try:
                with _at_most(PATIENCE_S):
                    info, errors, seconds = _tried(Path(scratch), expected, options.backend)
            except ProbewireError as error:
                if "has no code for" in error.message and options.backend == "mlx":  # mlx-lm has no code for it
                    made -= 1
                    continue
                told = " ".join(error.message.replace(f"the checkpoint in {scratch} is ", "").split())
                print(f"| {kind} | refused: {told[:90]} | | | | | | |", flush=True)
                continue
            except Exception as error:  # noqa: BLE001 - the table says so
                print(
                    f"| {kind} | FAILED: {type(error).__name__}: {' '.join(str(error).split())[:80]} | | | | | | |",
                    flush=True,
                )
                wrong += 1
                continue
            names = {site.name for site in info.sites}
            summed = {"attn_out", "mlp_out"} <= names
            bad = max(errors) > TOLERANCE
            full += summed and "attn_probs" in names and info.generate and not info.batching
            streams += "resid_post" in names
            generating += info.generate and not info.batching
            alone += info.generate and bool(info.batching)
            wrong += bad
            why = "✓" if not info.batching else f"alone: {info.batching}"
            why = " ".join((why if info.generate else info.generate_note).split())[:MOST_OF_A_REASON]
            told = f"{errors[0]:.0e} / {errors[1]:.0e}{' WRONG' if bad else ''}"
            print(
                f"| {kind} | {len(names)} | {'✓' if summed else '–'} | {'✓' if 'attn_probs' in names else '–'} | {why} | "
                f"{' '.join(info.rules) or '–'} | {told} | {seconds:.1f} |",
                flush=True,
            )
    print(
        f"\n{made} built; {streams} with a proven residual stream; {generating} generate in batches, {alone} one sequence "
        f"after another ({made - generating - alone} do not); {full} in full "
        f"(both contributions, attention and generation); {wrong} wrong."
    )
    return 1 if wrong else 0


def _write(kind: str, folder: Path) -> Any:
    """Make it, and give its own logits [row, vocab]."""
    own = transformers.AutoConfig.for_model(kind)
    fields = {name: value for name, value in _SIZES.items() if getattr(own, name, None) is not None}
    if "kv_lora_rank" in fields:  # its latent attention has as many of either
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    fields = {name: value for name, value in (fields | _OWN.get(kind, {})).items() if value is not None}
    tokens = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = transformers.AutoConfig.for_model(kind, **tokens, **fields)
    with torch.device("meta"):  # sizes that have other names here could ask for all the memory there is
        sketch = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    if sum(weight.numel() for weight in sketch.parameters()) > 20_000_000:
        raise ValueError("not small")
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(folder)
    own: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        return own(torch.tensor([TOKENS]), use_cache=False).logits[0].numpy()


def _tried(folder: Path, expected: Any, name: str) -> tuple[ModelInfo, tuple[float, float], float]:
    """What is offered; how far the last row's logits are from transformers' own, alone and beside a longer one; the load's CPU s."""
    start_s = time.process_time()
    backend = load_backend(name, folder, model_id="tiny", limits=LIMITS, dtype="float32", device="cpu")
    seconds = time.process_time() - start_s
    try:
        if backend.info.site("logits") is None:
            return backend.info, (0.0, 0.0), seconds
        plan = Plan((Hook("logits", capture=Capture()),))
        errors: list[float] = []
        for prompts in ([TOKENS], [LONGER, TOKENS]):
            sequences = [_sequence(backend, tokens, plan) for tokens in prompts]
            found = backend.run(sequences)[-1].rows[0].values[0]
            errors.append(float(np.abs(found - expected).max() / np.abs(expected).max()))
        return backend.info, (errors[0], errors[1]), seconds
    finally:
        backend.close()


def _sequence(backend: Any, tokens: list[int], plan: Plan) -> Sequence:
    n = len(tokens)
    bound = bind(plan, backend, mode="run", input_name="input", tokens=tokens, prompt_length=n, n_rows=n)
    backend.bind(bound)
    return Sequence(str(n), list(tokens), n, bound)


@contextmanager
def _at_most(seconds: int) -> Generator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s of CPU")

    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of CPU: a busy machine makes nothing fail
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
