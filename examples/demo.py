"""The main job, on every backend this machine has: serve the default model, generate while reading, then steer.

make demo            or            python examples/demo.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from probewire.clients import Client, Hook, capture, steer

if TYPE_CHECKING:
    from collections.abc import Generator

MODEL = "SmolLM2-135M-Instruct"
LAYER = 12
QUESTION = [{"role": "user", "content": "How was your day? Answer in one sentence."}]
LOVE, HATE = "I love this, it is wonderful and makes me happy", "I hate this, it is terrible and makes me sad"


def main() -> None:
    """Serve, then show each backend's answer, what was read on the way, and what steering does to it."""
    backends = [name for name in ("torch", "mlx") if find_spec(name) is not None]
    with serving(backends) as urls:
        finals: dict[str, np.ndarray] = {}
        for backend in backends:
            print(f"\n━━━ {backend} ━━━")
            with Client(urls["grpc"]) as client:
                finals[backend] = show(client, backend)
        if len(finals) > 1:
            one, other = finals.values()
            error = np.abs(one - other).max() / np.abs(one).max()
            print(f"\nThe two backends' residual streams agree to a relative error of {error:.1e}.")


def show(client: Client, model: str) -> np.ndarray:
    """Generate with captured activations, then steer. Returns the last layer's residual stream of the prompt."""
    plain = client.generate_with_activations(QUESTION, capture=["resid_post.*"], model=model, max_new_tokens=40)
    print(plain)
    residual = plain.stack("resid_post")  # [layer, pos, d_model]
    print(f"\nNorm of the residual stream at the last position, by layer (0 … {len(residual) - 1}):")
    print(bars(np.linalg.norm(residual[:, -1].astype(np.float32), axis=-1)))

    direction = difference(client, model)
    for alpha in (3.0, -3.0):
        hook = steer(f"resid_post.{LAYER}", direction, alpha=alpha, phase="generated")
        steered = client.generate(QUESTION, hooks=[hook], model=model, max_new_tokens=40)
        print(f"\nsteered, love − hate at layer {LAYER}, alpha {alpha:+.0f}:\n  {steered.text.strip()!r}")
    return residual[-1, : plain.usage.prompt_tokens].astype(np.float32)


def difference(client: Client, model: str) -> np.ndarray:
    """A steering vector: the difference of two prompts' mean activations."""
    means: list[np.ndarray] = []
    for prompt in (LOVE, HATE):
        read: Hook = capture(f"resid_post.{LAYER}", reduce="mean")
        means.append(client.run(prompt, hooks=[read], model=model)[f"resid_post.{LAYER}"][0])
    return means[0] - means[1]


def bars(values: np.ndarray) -> str:
    """One character a value."""
    levels = "▁▂▃▄▅▆▇█"
    scaled = np.log(values) - np.log(values.min())
    scaled = scaled / max(float(scaled.max()), 1e-9) * (len(levels) - 1)
    return "  " + "".join(levels[round(float(x))] for x in scaled) + f"   {values.min():.0f} … {values.max():.0f}"


@contextmanager
def serving(backends: list[str]) -> Generator[dict[str, str]]:
    """A server of its own on free ports, ended on the way out."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.json"
        command = [sys.executable, "-m", "probewire.cli", "serve", *(f"{name}={MODEL}@{name}" for name in backends)]
        server = subprocess.Popen(
            [*command, "--port", "0", "--grpc-port", "0", "--ready-file", str(ready), "--state", folder]
        )
        try:
            while not ready.exists():
                if server.poll() is not None:
                    sys.exit(f"the server ended with code {server.returncode}; its messages are above")
                time.sleep(0.2)
            yield json.loads(ready.read_text())
        finally:
            server.terminate()
            server.wait(timeout=30)


if __name__ == "__main__":
    main()
