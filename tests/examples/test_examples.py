"""Each example runs end to end against the default model, and draws its plot."""

from __future__ import annotations

import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)  # seconds; a busy machine makes a model on the CPU very slow

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One server for the slow ones."""
    serving = runpy.run_path(str(EXAMPLES / "serving.py"))  # by its path: other tests have a module of that name
    with serving["server"]() as address:
        yield address


@pytest.mark.slow
def test_an_example_starts_a_server_of_its_own_and_stops_it() -> None:
    said = run("logit_lens")
    assert "starting a server" in said
    assert said.splitlines()[-3].startswith("layer 27")
    assert "Paris" in said.splitlines()[-3]


@pytest.mark.slow
def test_capture_in_chat(url: str) -> None:
    assert "resid_post.0…29" in run("capture_in_chat", url)


@pytest.mark.slow
def test_sae_latents(url: str) -> None:
    said = run("sae_latents", url)
    assert "rows left out: {'first_positions'" in said
    assert "Spearman" in said


@pytest.mark.slow
def test_steering_vector(url: str) -> None:
    doses = [line for line in run("steering_vector", url).splitlines() if line[:2] in ("-2", "+0", "+2")]
    assert len(set(doses)) == 3


@pytest.mark.slow
def test_steer_where(url: str) -> None:
    said = run("steer_where", url)
    assert "last_3" in said
    assert "random below" in said


@pytest.mark.slow
def test_patch_one_site(url: str) -> None:
    said = run("patch_one_site", url)
    assert "clean +" in said
    assert "corrupt -" in said
    assert "at ' Mary' restores most: 10" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lens", "its parts sum to +6.120"),
        ("head_roles", "induction        18.6"),
        ("patching", "23.3: +"),
        ("attribution", "strongest edges by EAP-IG"),
        ("neuron_graph", "for Neuronpedia's viewer"),
        ("ablation", "where the two disagree most"),
        ("localise_feature", "random directions"),
        ("circuit", "saved: "),
        ("tune_circuit", "64 of 1536 columns changed"),
        ("growth", "fewer than three models"),
        ("entangled", "deviations above matched neurons"),
        ("compose_circuits", "heads alone"),
        ("five_tasks", "copying: "),
        ("dual_sae", "separated: explained variance"),
    ],
)
def test_analyses(url: str, name: str, says: str) -> None:
    assert says in run(name, url)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("circuit_qa", "level 2 (functional)"),
        ("edit_circuit", "a random circuit"),
        ("safety", "removed "),
        ("sae_stability", "random directions: PWMCC"),
        ("standing_steering", "informal: 6 of 6 answers are the base's to the token"),
        ("transfer", "condition by rotation"),
        ("tune_steered", "predicted: the association goes"),
    ],
)
def test_studies(url: str, name: str, says: str) -> None:
    assert says in run(name, url, draws=False)


@pytest.mark.slow
def test_rest_capture() -> None:
    serving = runpy.run_path(str(EXAMPLES / "serving.py"))
    with serving["addresses"]() as found:
        said = run("rest_capture", found["http"], draws=False)
    assert "attn_probs.5: float32" in said
    assert said.count("→") == 12, "an event a token"


def run(name: str, url: str | None = None, *, draws: bool = True) -> str:
    """What an example prints; its plot, where it draws one, must be new and a picture."""
    began = time.time()
    options = [] if url is None else ["--url", url]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
        cwd=EXAMPLES.parent.parent,  # never the root: from there `import cli` would find ours
    )
    assert done.returncode == 0, done.stderr
    if not draws:
        return done.stdout
    plot = EXAMPLES / "output" / f"{name}.png"
    assert plot.stat().st_mtime >= began - 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    return done.stdout


@pytest.mark.slow
def test_edit_fact(url: str) -> None:
    said = run("edit_fact", url, draws=False)
    assert "efficacy            1/1" in said
    assert "edited    ' Rome" in said


@pytest.mark.slow
def test_circuit_library(url: str) -> None:
    said = run("circuit_library", url, draws=False)
    assert "Hit(ioi-heads 1" in said
    assert "3 heads read each key and value" in said
    assert "page: " in said


@pytest.mark.slow
def test_validate_variant(url: str) -> None:
    said = run("validate_variant", url, draws=False)
    assert "RiskReport(low" in said
    assert "ValidationReport(" in said
    assert "fail: " not in said
