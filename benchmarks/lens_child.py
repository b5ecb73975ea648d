"""TransformerLens as its own users take it: the resid_pre patching grid, in an environment of its own.

A child process: python lens_child.py FOLDER. Asked {"clean", "corrupt": [id, …], "correct", "wrong": id}, it patches
every layer and position with `transformer_lens.patching` and answers {"seconds", "grid": [[…]]}.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from typing import Any

from child import answer_lines


def main() -> None:
    """Load the folder given, then answer."""
    torch: Any = import_module("torch")
    bridge_module: Any = import_module("transformer_lens.model_bridge")
    patching: Any = import_module("transformer_lens.patching")
    torch.set_grad_enabled(False)
    bridge = bridge_module.TransformerBridge.boot_transformers(sys.argv[1], dtype=torch.float32)

    def grid(asked: dict[str, Any]) -> dict[str, Any]:
        clean, corrupt = (torch.tensor([asked[name]]) for name in ("clean", "corrupt"))

        def metric(logits: Any) -> Any:
            return logits[0, -1, asked["correct"]] - logits[0, -1, asked["wrong"]]

        start = time.perf_counter()
        _, cache = bridge.run_with_cache(clean)
        found = patching.get_act_patch_resid_pre(bridge, corrupt, cache, metric)
        return {"seconds": time.perf_counter() - start, "grid": found.tolist()}

    answer_lines(grid, {"layers": bridge.cfg.n_layers})


if __name__ == "__main__":
    main()
