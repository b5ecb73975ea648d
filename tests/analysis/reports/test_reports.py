"""Risk and validation on a tiny model: what does nothing, what does little and what breaks it; files, pages, exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.reports import risk as risk_module, validation as validation_module
from probewire.analysis.reports.harness import HarnessModel as ProbeModel
from probewire.analysis.reports.likelihoods import Piece, likelihoods
from probewire.analysis.reports.measures import divergence, kl_to_base
from probewire.analysis.reports.risk import RiskReport, assess
from probewire.analysis.reports.subject import Subject
from probewire.analysis.reports.suites import Measure
from probewire.analysis.reports.tried import tried
from probewire.analysis.reports.validation import ValidationReport, validate, validate_variant
from probewire.clients import Client, Delta, Hook, LowRank, Scale, Variant
from probewire.protos.errors import InvalidArgument
from probewire.server.worker.inprocess import InProcessService
from tests.analysis.pages import asks_the_network_for_nothing, data_of, in_a_browser, is_javascript, visited
from tests.tiny_models import tiny_checkpoint
from tests.tiny_tokenizers import CHATML, VOCAB_SIZE, tokenizer_folder

DOCUMENTS = [
    "The sum of two numbers is a number, whatever their order may be.",
    "A graph has nodes, and edges between them.",
]
GENERAL = [
    "The keys to the cabinet",
    "When Mary and John went to the store",
    "A small bird landed on the fence and",
] * 3


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tiny_checkpoint(
        "llama", tmp_path_factory.mktemp("one"), vocab_size=VOCAB_SIZE, max_position_embeddings=512
    )
    tokenizer_folder("byte_level", folder)
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    with Client.inprocess(InProcessService.create(str(folder), dtype="float32", device="cpu")) as client:
        yield client


@pytest.fixture(autouse=True)
def _own_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation_module, "documents", lambda n: DOCUMENTS)


def _variant(client: Client, strength: float) -> Variant:
    rng, info = np.random.default_rng(0), client.describe()
    made = Delta(rng.normal(size=(info.d_mlp, 2)) * strength, rng.normal(size=(2, info.d_model)))
    return Variant({"w_down.1": made}).named("small" if strength < 1 else "large")


def _assessed(client: Client, strength: float) -> RiskReport:
    return assess(client, _variant(client, strength), general=GENERAL, progress=False)


def test_a_touch_is_low_and_a_blow_is_critical(client: Client) -> None:
    low, critical = _assessed(client, 1e-4), _assessed(client, 10.0)
    assert (low.level, critical.level) == ("low", "critical")
    assert critical.set_by is not None
    assert {row.part for row in low.rows} == {"activation change", "general KL", "predicted drop"}
    told = critical.to_json()
    assert told["format"] == "probewire.risk"
    assert told["base"]["model_hash"] == client.describe().model_hash
    assert any("lower scale" in text for text in told["mitigations"])
    kls = [one["kl"] for one in told["dry_run"]["curve"]]
    assert kls[0] < kls[-1] == pytest.approx(told["dry_run"]["kl"]["value"], rel=0.5)
    assert low.to_json()["mitigations"] == []
    agreement = [
        one["agreement"] for one in low.to_json()["dry_run"]["probes"].values() if one.get("agreement") is not None
    ]
    assert min(agreement) > 0.98, "so small a change is its own first order"


def test_a_dry_run_is_nobody_elses_and_leaves_nothing(client: Client) -> None:
    """A delta at w_down is a product at mlp_out, exactly; the variant is gone afterwards, and after a failure."""
    variant = _variant(client, 0.3)
    delta = variant.deltas["w_down.1"]
    as_hook = kl_to_base(client, GENERAL[:3], hooks=[Hook("mlp_out.1", edit=LowRank(delta.a, delta.b))])
    with tried(client, variant) as subject:
        [info] = client.variants()
        assert not info.shared
        assert divergence(subject, GENERAL[:3]) == pytest.approx(as_hook, rel=1e-4)
        half = divergence(subject.scaled(0.5), GENERAL[:3])
        assert (half < as_hook).all()
        [own, base] = likelihoods([subject, subject.base], [Piece((5, 6, 7, 8), 1)])
        scored = ProbeModel(client, variant=f"{info.name}@{info.version}").score([((5,), (6, 7, 8))], progress=False)
        assert scored == [(own[0].total, own[0].greedy)]
        assert abs(own[0].total - base[0].total) > 1e-3
    assert client.variants() == []
    with pytest.raises(RuntimeError, match="meanwhile"), tried(client, variant):
        raise RuntimeError("meanwhile")
    assert client.variants() == []


def test_a_variant_is_validated_by_value_and_by_name(client: Client) -> None:
    client.load_variant(_variant(client, 0.3), name="kept", progress=False)
    named, own = (
        validate_variant(client, given, suites=("tasks",), n=8, progress=False)
        for given in ("kept", _variant(client, 0.3))
    )
    client.unload_variant("kept")
    assert [check.figure.value for check in named.checks] == [check.figure.value for check in own.checks]
    assert named.about["variant"] == {
        "name": "kept",
        "version": 1,
        "hash": _variant(client, 0.3).bound(client.describe()).hash,
    }


def test_prediction_alone_runs_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(risk_module, "tried", lambda *_, **__: pytest.fail("the variant was loaded"))
    found = assess(client, _variant(client, 0.01), general=GENERAL, dry_run=False, progress=False)
    assert "dry_run" not in found.sections
    assert any("dry run" in text for text in found.sections["not_tested"])


@pytest.fixture(scope="module")
def broken(client: Client) -> ValidationReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation_module, "documents", lambda n: DOCUMENTS)
        return validate(Subject.of(client, hooks=[Hook("resid_post.1", edit=Scale(-3.0))]), n=12, progress=False)


def test_what_does_nothing_fails_nothing(client: Client) -> None:
    """64 questions without a changed answer cannot certify two points: inconclusive, and it says how many would."""
    subject = Subject.of(client, hooks=[Hook("resid_post.1", edit=Scale(1.0))])
    found = validate(subject, n=12, bounds={"refusals": 0.02}, progress=False)
    assert found.verdict == "inconclusive"
    for check in found.checks:
        assert check.figure.value == pytest.approx(0, abs=1e-9)
        if check.suite in ("tasks", "safety"):
            assert (check.verdict, check.needed) == ("inconclusive", pytest.approx(189, abs=2))
    assert found.suites["general"] == "pass"
    names = {check.name for check in found.checks} | set(found.cannot_show_harm)
    assert {
        "KL to base",
        "perplexity of documentation",
        "repetition of answers",
        "refusals of harmless questions",
    } <= names
    assert {"capitals", "ioi"} & names


def test_what_breaks_the_model_fails(broken: ValidationReport) -> None:
    kl = next(check for check in broken.checks if check.name == "KL to base")
    assert (kl.verdict, broken.verdict) == ("fail", "fail")
    assert kl.p_adjusted is not None
    assert kl.p_adjusted <= 0.025


def test_what_it_is_for_is_a_check_too(client: Client) -> None:
    subject = Subject.of(client, hooks=[Hook("resid_post.1", edit=Scale(1.1))])
    gain = Measure("gain", "facts", lambda _: [[0.0, 0.1] * 10, [1.0, 1.2] * 10], 0.5, "lower", "nats")
    found = validate(subject, suites=("facts",), intended=[gain], progress=False)
    assert [(check.name, check.verdict) for check in found.checks] == [("gain", "pass")]
    missed = validate(subject, suites=("facts",), intended=[replace(gain, bound=2.0)], progress=False)
    assert missed.verdict == "fail"
    with pytest.raises(InvalidArgument, match="bounds"):
        validate(subject, bounds={"luck": 1.0})
    with pytest.raises(InvalidArgument, match="suites"):
        validate(subject, suites=("sins",))


def test_files_and_pages(client: Client, broken: ValidationReport, tmp_path: Path) -> None:
    _assessed(client, 0.3).save(tmp_path)
    broken.save(tmp_path)
    for kind in ("risk", "validation"):
        page = (tmp_path / f"{kind}.html").read_text()
        asks_the_network_for_nothing(page)
        is_javascript(page, tmp_path)
        assert data_of(page) == json.loads((tmp_path / f"{kind}.json").read_text())
    assert "Mary" in (tmp_path / "risk.html").read_text()
    _assessed(client, 0.3).save(tmp_path / "bare", texts=False)
    broken.save(tmp_path / "bare", texts=False)
    for path in (tmp_path / "bare").iterdir():
        assert "Mary" not in path.read_text()
        assert "process that no longer" not in path.read_text()


@in_a_browser
def test_a_browser_draws_all_of_it(client: Client, broken: ValidationReport, tmp_path: Path) -> None:
    broken.save(tmp_path)
    _assessed(client, 0.3).save(tmp_path)
    seen: dict[str, Any] = {}
    script = (
        "const out = document.createElement('pre'); out.id = 'out';"
        "const count = (what) => document.querySelectorAll(what).length;"
        "out.textContent = JSON.stringify({verdict: document.getElementById('verdict').textContent, rows: count('#table tr'),"
        " dots: count('#forest circle'), bars: count('#kl rect'), worst: count('#worst tr')}); document.body.append(out);"
    )
    for kind in ("risk", "validation"):
        path = tmp_path / f"{kind}.html"
        path.write_text(path.read_text().replace("</body>", f"<script>{script}</script></body>"))
        seen[kind] = visited(path.as_uri(), tmp_path)
    assert seen["validation"]["verdict"] == "fail"
    assert seen["validation"]["rows"] == 1 + len(broken.checks)
    assert seen["validation"]["dots"] >= 3
    assert seen["risk"]["bars"] == seen["validation"]["bars"] == 32
    assert seen["risk"]["worst"] == 6
