"""The whole protocol on a planted model: the right latent scores 1, a wrong one 0, and every zero says why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.sae.latents.statistics import LatentCounts, compare
from probewire.analysis.sae.unlearning.forgetting import choose_latents, clamp_hook, forgetting
from probewire.analysis.sae.unlearning.mcq import answer, scored_texts
from probewire.analysis.sae.unlearning.questions import Question
from probewire.clients import Client, FailedPrecondition, InvalidArgument, capture, edit_latents
from probewire.server.worker.inprocess import InProcessService
from tests.analysis.sae.planted_letters import (
    FORGET,
    FORGET_TEXTS,
    LATENTS,
    LETTERS,
    RETAIN,
    RETAIN_TEXTS,
    SITE,
    plant,
    save_planted_sae,
    save_untrained_sae,
)
from tests.tiny_models import tiny_checkpoint


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("letters")
    made = plant(tiny_checkpoint("llama", folder), folder / "planted")
    with Client.inprocess(InProcessService.create(str(made), backend="torch", dtype="float32", device="cpu")) as client:
        yield client


@pytest.fixture
def sae(planted: Client, tmp_path: Path) -> Callable[..., Path]:
    def save(*live: str) -> Path:
        return save_planted_sae(planted, tmp_path / "-".join(live), live)

    return save


def run(client: Client, folder: Path | str, **options: Any) -> Any:
    given: dict[str, Any] = {
        "forget_texts": FORGET_TEXTS,
        "retain_texts": RETAIN_TEXTS,
        "forget_questions": FORGET,
        "retain_questions": RETAIN,
        "thresholds": (0.001, 0.01),
        "n_latents": (1, 2),
        "multipliers": (25, 100),
        "length": "none",
        "progress": False,
    }
    return forgetting(client, folder, **{**given, **options})


def test_the_right_latent_scores_one(planted: Client, sae: Callable[..., Path], tmp_path: Path) -> None:
    found = run(planted, sae("right"))
    assert found.score == 1.0
    assert found.reasons == ()
    assert (found.known["forget"].right, found.known["forget"].of) == (6, 6)
    assert [found.known[name].right for name in ("one", "two")] == [3, 3], "one of each pair"
    best = found.best
    assert (best.clamp.latents, best.clamp.multiplier) == ((0,), 25), "of equals, the mildest"
    assert (best.forget.right, best.forget.of, best.side_effects.right, best.side_effects.of) == (0, 6, 6, 6)
    assert found.fired_on_questions == {0: 18}, "an x in each of 6 questions' 3 choices"
    assert "score 1.000" in found.summary
    told = json.loads(found.save(tmp_path / "found.json").read_text())
    assert told["eval_type_id"] == "unlearning"
    assert told["eval_result_metrics"] == {"unlearning": {"unlearning_score": 1.0}}
    assert told["eval_config"]["intervention_method"] == "clamp_feature_activation"
    assert len(told["eval_result_details"]) == 8
    low, high = told["eval_result_details"][0]["forget"]["wilson"]
    assert (low, round(high, 3)) == (0.0, 0.390)
    assert found.table().count("\n") == 9
    assert "1 of 2" in found.table(), "one latent qualifies where two were asked for"


@pytest.mark.parametrize(
    ("live", "reason"),
    [
        ("harmless", "no answer changes"),
        ("elsewhere", "none fire on the questions"),
        ("costly", "side-effect gate"),
        ("everywhere", "no latent passes the threshold"),
    ],
)
def test_a_wrong_latent_scores_zero_and_says_why(
    planted: Client, sae: Callable[..., Path], live: str, reason: str
) -> None:
    found = run(planted, sae(live))
    assert found.score == 0.0
    assert found.reasons == (reason,)
    assert f"{reason}: " in found.summary
    assert reason in found.table()
    assert found.to_json()["zero_reasons"] == [reason]
    if live == "costly":
        assert min(r.forget.value for r in found.results) == 0, "it does forget"
        assert not any(result.passes for result in found.results)
    if live == "everywhere":
        assert all(result.forget is None for result in found.results)
        assert "not run" in found.table()


def test_random_latents_score_what_they_do(planted: Client, sae: Callable[..., Path]) -> None:
    """With n = 1 the right latent is chosen; its twin, where there is one, forgets as well, and the control says so."""
    found = run(planted, sae("right", *LETTERS), n_latents=(1,), multipliers=(100,))
    assert (found.score, found.control_scores) == (1.0, (0.0, 0.0, 0.0))
    assert all(result.forget.right == result.forget.of for draw in found.controls for result in draw), "they were run"
    assert found.summary.endswith("; random latents: 0.000, 0.000, 0.000")
    twins = run(planted, sae("right", "twin"), n_latents=(1,), multipliers=(100,), control_draws=1)
    assert [result.clamp.latents for result in twins.results] == [(0,), (0,)]
    assert (twins.score, twins.control_scores) == (1.0, (1.0,))
    told = twins.to_json()
    assert told["control_scores"] == [1.0]
    assert [detail["latents"] for detail in told["control_details"][0]] == [[LATENTS.index("twin")]] * 2
    assert (told["eval_config"]["control_draws"], told["eval_config"]["random_seed"]) == (1, 0)


def test_a_seed_draws_the_same_again(planted: Client, sae: Callable[..., Path]) -> None:
    folder = sae("right", *LETTERS)
    drawn = [
        [result.clamp for draw in run(planted, folder, multipliers=(100,), seed=seed).controls for result in draw]
        for seed in (3, 3, 4)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][:4] != drawn[0][4:8], "and each draw is another"


def test_equal_clamps_run_once(planted: Client, sae: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both thresholds choose the same latent, and each draw its twin: so two clamps a multiplier."""
    asked: list[Any] = []

    def counted(*args: Any, hooks: Any = (), **options: Any) -> Any:
        asked.append(hooks)
        return answer(*args, hooks=hooks, **options)

    module = import_module(
        "probewire.analysis.sae.unlearning.forgetting"
    )  # the package's own attribute is the function
    monkeypatch.setattr(module, "answer", counted)
    found = run(planted, sae("right", "twin"), n_latents=(1,))
    assert len([result for draw in found.controls for result in draw if result.forget]) == 3 * 4
    assert len(asked) == 2 * 2 * 3, "clamps × multipliers × sets of questions"


def test_without_control_draws_nothing_is_said(planted: Client, sae: Callable[..., Path]) -> None:
    found = run(planted, sae("right", *LETTERS), n_latents=(1,), multipliers=(25,), control_draws=0)
    assert (found.score, found.controls, found.control_scores) == (1.0, (), ())
    assert "random" not in found.table()


def test_an_untrained_sae_is_refused_and_as_a_control_named(planted: Client, tmp_path: Path) -> None:
    folder = save_untrained_sae(tmp_path / "untrained")
    with pytest.raises(FailedPrecondition, match="allow_untrained=True"):
        run(planted, folder)
    found = run(planted, folder, allow_untrained=True)
    assert found.reasons == ("untrained SAE", "no latent passes the threshold")
    assert "untrained SAE: " in found.summary
    assert not found.to_json()["trained"]


def test_the_latents_that_fire_most_on_the_forget_texts_are_chosen() -> None:
    first, second = LatentCounts.empty(5, blocks=1), LatentCounts.empty(5, blocks=1)
    first.tokens[0] = second.tokens[0] = 1000
    first.fired[0] = [500, 30, 40, 0, 40]
    second.fired[0] = [500, 0, 5, 0, 9]
    compared = compare(first, second)
    assert choose_latents(compared, 0.001, 10) == (1,)
    assert choose_latents(compared, 0.009, 10) == (2, 1), "a latent at the threshold is dropped"
    assert choose_latents(compared, 0.01, 10) == (2, 4, 1), "of equals, the first"
    assert choose_latents(compared, 0.01, 2) == (2, 4)
    assert choose_latents(compared, 1, 10) == (0, 2, 4, 1), "one that never fires on the forget texts is none"


def test_where_no_clamped_latent_fires_answers_are_bit_identical(planted: Client, sae: Callable[..., Path]) -> None:
    info = planted.load_sae(sae("right", "elsewhere"), name="quiet")
    base = answer(planted, FORGET, progress=False)
    quiet = clamp_hook(info, [LATENTS.index("elsewhere"), 6], 200)
    loud = clamp_hook(info, [LATENTS.index("right")], 200)
    own = edit_latents(SITE, "quiet", {LATENTS.index("right"): {"scale": 1.0}})
    for hook, same in ((quiet, True), (own, True), (loud, False)):
        scores = answer(planted, FORGET, hooks=[hook], progress=False)
        assert all((one == two).all() for one, two in zip(base, scores, strict=True)) == same
    planted.unload_sae("quiet")


def test_a_clamp_sets_what_fires_and_nothing_else(planted: Client, sae: Callable[..., Path]) -> None:
    """By hand: h − (f + m)·d where f > 0, and the first token as it was, though x is there too."""
    info = planted.load_sae(sae("right"), name="by-hand")
    (ids,) = [planted.tokenize("axcx").token_ids]
    prompt = [ids[2], *ids[1:]]
    assert prompt[0] == ids[4], "it begins with x"
    rows = planted.run(prompt, capture=SITE)[SITE]
    clamped = planted.run(prompt, hooks=[clamp_hook(info, [0], 25)], capture=SITE)[SITE]
    expected = rows.copy()
    f = np.maximum(rows[:, 0] - 1.0, 0)
    fires = (f > 0) & (np.arange(len(rows)) > 0)
    assert fires.tolist() == [False, False, True, False, True]
    expected[fires, 0] -= f[fires] + 25
    assert clamped == pytest.approx(expected, abs=1e-5)
    assert (clamped[~fires] == rows[~fires]).all()
    latents = planted.run(prompt, capture=[capture(SITE, latents="by-hand", latent_ids=[0])])[SITE]
    assert latents[:, 0] == pytest.approx(f, abs=1e-5)
    planted.unload_sae("by-hand")


def test_a_loaded_sae_by_its_name(planted: Client, sae: Callable[..., Path]) -> None:
    planted.load_sae(sae("right"), name="mine")
    assert run(planted, "mine", n_latents=(1,), multipliers=(50,)).score == 1.0
    assert [info.name for info in planted.saes()] == ["mine"], "and it stays loaded"
    planted.unload_sae("mine")


def test_files(planted: Client, sae: Callable[..., Path], tmp_path: Path) -> None:
    """Texts and questions from the disk give what the same in memory give."""
    for name, texts in (("forget", FORGET_TEXTS), ("retain", RETAIN_TEXTS)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    for name, asked in (("questions", FORGET), *RETAIN.items()):
        lines = [json.dumps({"question": q.question, "choices": q.choices, "answer": q.answer}) for q in asked]
        (tmp_path / f"{name}-q.jsonl").write_text("\n".join(lines))
    found = run(
        planted,
        sae("right"),
        forget_texts=tmp_path / "forget.jsonl",
        retain_texts=tmp_path / "retain.jsonl",
        forget_questions=tmp_path / "questions-q.jsonl",
        retain_questions={name: str(tmp_path / f"{name}-q.jsonl") for name in RETAIN},
    )
    whole = run(planted, sae("right", "harmless"))
    assert found.score == whole.score == 1.0
    assert found.known == whole.known
    assert (found.comparison.first.fired[:, 0] == whole.comparison.first.fired[:, 0]).all()


def test_letters(planted: Client, sae: Callable[..., Path]) -> None:
    """With lettered choices the model of letters knows nothing in every order, so there is nothing to forget."""
    with pytest.raises(FailedPrecondition, match="answers none of the 6 forget questions"):
        run(planted, sae("right"), form="letter")


def test_questions_that_the_model_does_not_know_are_left_out(planted: Client, sae: Callable[..., Path]) -> None:
    wrong = [Question(q.question, q.choices, 1) for q in FORGET]
    found = run(planted, sae("right"), forget_questions=[*FORGET, *wrong], multipliers=(25,))
    assert (found.known["forget"].right, found.known["forget"].of) == (6, 12)
    assert all(result.forget.of == 6 for result in found.results)
    with pytest.raises(FailedPrecondition, match="nothing to forget"):
        run(planted, sae("harmless"), forget_questions=wrong)
    unknown = {"set": [Question("ag?", ("zzzzzz", "ba"), 0)]}
    with pytest.raises(FailedPrecondition, match="side effects"):
        run(planted, sae("elsewhere"), retain_questions=unknown)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"thresholds": ()}, "thresholds must be above 0"),
        ({"thresholds": (0,)}, "thresholds must be above 0"),
        ({"n_latents": (0,)}, "n_latents must be 1 or more"),
        ({"multipliers": (-5,)}, "multipliers must be finite, 0 or more"),
        ({"gate": 0}, "gate is a share"),
        ({"control_draws": -1}, "control_draws is a whole number of 0 or more; got -1"),
        ({"control_draws": 1.5}, "control_draws is a whole number"),
        ({"seed": -1}, "seed is a whole number of 0 or more; got -1"),
        ({"seed": "x"}, "seed is a whole number"),
        ({"retain_questions": {"forget": FORGET}}, "the name of the forget set"),
        ({"forget_texts": []}, "no documents"),
        ({"forget_questions": []}, "at least one Question"),
        ({"retain_questions": {"one": [("q", "a")]}}, "at least one Question"),
        ({"retain_texts": ["ab", " "]}, "is empty"),
    ],
)
def test_refusals(planted: Client, sae: Callable[..., Path], options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        run(planted, sae("right"), **options)
    assert planted.saes() == [], "the SAE is gone again"


def test_what_is_read_of_a_question() -> None:
    assert scored_texts(FORGET[0], "text")[1] == "Question: ae?\nAnswer: xu"
    assert scored_texts(FORGET[0], "letter") == ["Question: ae?\nA. xt\nB. xu\nC. xv\nAnswer:"]
