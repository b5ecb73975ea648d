"""`probewire sae`: from texts to a store, from a store or a server to SAEs, and what it says when it cannot."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.cli.__main__ import main
from probewire.cli.sae import (
    collect as sae_collect,
    command as sae,
    dashboard as sae_dashboard,
    eval as sae_eval,
    forget as sae_forget,
    train as sae_train,
)
from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

SITE = "resid_post.1"
SHAPE = ("--arch", "topk", "--d-sae", "32", "--k", "4", "--batch-size", "16", "--lr", "0.003")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = np.random.default_rng(0).choice(["the", "cat", "sat", "on", "a", "mat", "and", "ran"], size=(24, 30))
    path = tmp_path_factory.mktemp("texts") / "all.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(line)}) + "\n" for line in words.tolist()))
    return path


@pytest.fixture(autouse=True)
def _served(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever --url says, the tiny model in this process answers."""

    def connected(*_: Any, **__: Any) -> Client:
        service = InProcessService.create(str(checkpoint), backend="torch", dtype="float32", device="cpu")
        return Client.inprocess(service)

    for module in (sae_collect, sae_dashboard, sae_eval, sae_forget, sae_train):
        monkeypatch.setattr(module, "connected", connected)


@pytest.fixture(scope="module")
def store(checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from probewire.analysis.sae.data.collect import collect

    folder = tmp_path_factory.mktemp("data") / "store"
    service = InProcessService.create(str(checkpoint), backend="torch", dtype="float32", device="cpu")
    with Client.inprocess(service) as client:
        collect(client, texts, SITE, folder, context=16, progress=False)
    return folder


def weights(folder: Path) -> bytes:
    return (folder / "sae_weights.safetensors").read_bytes()


def test_every_action_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sae", "--help"])
    out = capsys.readouterr().out
    assert all(name in out for name in sae.ACTIONS)
    for action in sae.ACTIONS:
        with pytest.raises(SystemExit) as exit_:
            main(["sae", action, "--help"])
        assert exit_.value.code == 0
        assert "--" in capsys.readouterr().out


def test_half_an_option_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sae", "train", "--store", "x", "--out", "y", "--step", "3"])
    assert "--steps" in capsys.readouterr().err


def test_collecting_says_what_was_left_out(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "sae",
        "collect",
        "--site",
        SITE,
        "--texts",
        str(texts),
        "--out",
        str(tmp_path / "acts"),
        "--context",
        "16",
    ]
    assert main([*command, "--tokens", "100"]) == 0
    out = capsys.readouterr().out
    assert "100 rows of resid_post.1" in out
    assert "left out: " in out
    assert main([*command, "--tokens", "100"]) == 0, "a finished store is only shown"
    assert capsys.readouterr().out == out


def test_held_out_texts_are_the_others(texts: Path, tmp_path: Path) -> None:
    from probewire.analysis.sae.data.store import ActivationStore

    counts: list[int] = []
    for options in ((), ("--hold-out", "0.3"), ("--held-out", "0.3")):
        out = tmp_path / f"acts{len(counts)}"
        command = ["sae", "collect", "--site", SITE, "--texts", str(texts), "--out", str(out), *options]
        assert main(command) == 0
        counts.append(ActivationStore.open(out).n_tokens)
    assert counts[0] == counts[1] + counts[2]
    assert min(counts) > 0


def test_an_sae_is_trained_on_a_store(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sae"
    command = ["sae", "train", "--store", str(store), "--out", str(out), *SHAPE, "--steps", "30", "--seed", "3"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "explained variance" in said
    assert "topk" in said
    run = json.loads((out / "run.json").read_text())
    assert (run["status"], run["steps"], run["seed"], run["config"]["lr"]) == ("finished", 30, 3, 0.003)
    assert run["data"]["site"] == SITE
    assert run["data"]["kind"] == "store"
    assert json.loads((out / "cfg.json").read_text())["metadata"]["hook_name"] == SITE
    before = weights(out)
    assert main(command) == 0
    assert capsys.readouterr().out == said, "a finished run is only shown"
    assert weights(out) == before


def test_epochs_are_of_the_store(store: Path, tmp_path: Path) -> None:
    from probewire.analysis.sae.data.store import ActivationStore

    n = ActivationStore.open(store).n_tokens
    assert main(["sae", "train", "--store", str(store), "--out", str(tmp_path / "sae"), *SHAPE, "--epochs", "0.5"]) == 0
    run = json.loads((tmp_path / "sae" / "run.json").read_text())
    assert run["steps"] == -(-n // 32)


@pytest.mark.slow
def test_several_are_what_each_is_alone(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["sae", "train", "--store", str(store), *SHAPE, "--steps", "20"]
    assert main([*base, "--out", str(tmp_path / "both"), "--seed", "0", "1"]) == 0
    assert {"seed0", "seed1"} <= set(capsys.readouterr().out.split())
    assert main([*base, "--out", str(tmp_path / "one"), "--seed", "1"]) == 0
    assert weights(tmp_path / "both" / "seed1") == weights(tmp_path / "one")


def test_configs_of_a_file_differ_in_what_they_say(store: Path, tmp_path: Path) -> None:
    named = {
        "wide": {"d_sae": 64},
        "jump": {"architecture": "jumprelu", "k": None, "l0_coefficient": 0.1, "options": {"jumprelu_bandwidth": 0.2}},
    }
    (tmp_path / "configs.json").write_text(json.dumps(named))
    base = ["sae", "train", "--store", str(store), *SHAPE, "--steps", "10", "--option", "decoder_init_norm=0.5"]
    assert main([*base, "--out", str(tmp_path / "saes"), "--configs", str(tmp_path / "configs.json")]) == 0
    configs = {name: json.loads((tmp_path / "saes" / name / "run.json").read_text())["config"] for name in named}
    assert (configs["wide"]["d_sae"], configs["wide"]["k"], configs["jump"]["d_sae"]) == (64, 4, 32)
    assert configs["wide"]["options"] == {"decoder_init_norm": 0.5}
    assert configs["jump"]["options"] == {"jumprelu_bandwidth": 0.2}


def test_an_sae_is_trained_straight_from_the_server(texts: Path, tmp_path: Path) -> None:
    live = ["--live", "--site", SITE, "--texts", str(texts), "--context", "16"]
    command = ["sae", "train", *live, "--out", str(tmp_path / "sae"), *SHAPE, "--steps", "10"]
    assert main(command) == 0
    run = json.loads((tmp_path / "sae" / "run.json").read_text())
    assert (run["data"]["kind"], run["data"]["site"], run["steps"]) == ("live", SITE, 10)


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "mine"
    assert main(["sae", "train", "--store", str(store), "--out", str(out), *SHAPE, "--steps", "60"]) == 0
    return out


def test_scores_stand_beside_an_untrained_sae(
    trained: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["sae", "eval", str(trained), "--texts", str(texts), "--context", "16", "--contexts", "6"]
    assert main([*command, "--out", str(tmp_path / "scores")]) == 0
    out = capsys.readouterr().out
    assert "mine" in out
    assert "untrained (control)" in out
    found = json.loads((tmp_path / "scores" / "scorecard.json").read_text())
    assert set(found["saes"]) == {"mine", "untrained"}
    assert found["about"]["site"] == SITE
    assert found["about"]["texts"].startswith("6 contexts, ")


def test_what_was_never_trained_is_not_scored(
    trained: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from probewire.analysis.sae.model.loaded import load
    from probewire.analysis.sae.model.untrained import untrained_like

    never = untrained_like(load(trained), tmp_path / "never")
    assert main(["sae", "eval", str(never), "--texts", str(texts), "--context", "16"]) == 2
    assert "trained" in capsys.readouterr().err


def test_a_sweep_compares_seeds(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sae", "sweep", "--store", str(store), "--d-sae", "16", "--k", "2", "4", "--epochs", "1"]
    command += ["--batch-size", "32", "--seed", "0", "1", "2", "3", "--out", str(tmp_path / "sweep")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "PWMCC" in out
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [(row["k"], row["d_sae"], row["seeds"]) for row in found] == [(2, 16, [0, 1, 2, 3]), (4, 16, [0, 1, 2, 3])]
    assert (tmp_path / "sweep" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert main(command) == 0
    assert capsys.readouterr().out == out, "what is finished is not trained again"


@pytest.mark.slow
def test_adaptive_l0_comes_to_a_conclusion(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "sae",
        "sweep",
        "--store",
        str(store),
        "--d-sae",
        "16",
        "--k",
        "2",
        "4",
        "--epochs",
        "2",
        "--fixed-k",
        "4",
    ]
    command += [
        "--batch-size",
        "32",
        "--lr",
        "0.01",
        "--floor",
        "0",
        "--final-epochs",
        "2",
        "--final-seed",
        "9",
        "8",
        "7",
        "6",
    ]
    assert main([*command, "--out", str(tmp_path / "sweep")]) == 0
    assert "adaptive > fixed: " in capsys.readouterr().out
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["chosen_k"] in (2, 4)


def test_sweeps_of_nothing_are_refused(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["sae", "sweep", "--store", str(store), "--out", str(tmp_path / "sweep")]
    for options, said in (
        (["--d-sae", "16"], "give --k, or --fixed-k"),
        (["--d-sae", "16", "32", "--fixed-k", "4"], "compares at one --d-sae"),
        (["--d-sae", "16", "--k", "17"], "k must be in 1 … d_sae = 16"),
        (["--d-sae", "16", "--k", "4", "--rows", "0"], "--rows is 1 or more"),
    ):
        assert main([*base, *options]) == 2
        assert said in capsys.readouterr().err


def test_a_dashboard_is_a_page(trained: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    command = ["sae", "dashboard", str(trained), "--texts", str(texts), "--out", str(page), "--context", "16"]
    assert main([*command, "--latents", "0", "3", "--title", "Latents of mine", "--steer", "1"]) == 2
    assert "--steer N and --prompt TEXT go together" in capsys.readouterr().err
    assert main([*command[:-4], "--out", str(tmp_path), "--context", "16"]) == 2
    assert "is a folder; give the page's file" in capsys.readouterr().err
    assert main([*command, "--latents", "0", "3", "--title", "Latents of mine"]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert "Latents of mine" in page.read_text()


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each with every answer, so that the model knows a third of them, whatever it is."""
    path = tmp_path_factory.mktemp("questions") / "pets.jsonl"
    choices = ["cat", "mat", "ran"]
    asked = [{"question": f"the {word}?", "choices": choices, "answer": a} for word in ("cat", "mat") for a in choices]
    path.write_text("".join(json.dumps(line) + "\n" for line in asked))
    return path


def forget_command(trained: Path, texts: Path, questions: Path, *options: str) -> list[str]:
    """Equal texts on both sides: every latent that fires passes threshold 1, and none a small one."""
    command = ["sae", "forget", str(trained), "--forget-texts", str(texts), "--retain-texts", str(texts)]
    command += ["--forget-questions", str(questions), "--context", "16", "--latents", "2", "4", "--multipliers", "5"]
    return [*command, "--retain-questions", *(options or (str(questions), f"more={questions}"))]


def test_forgetting_is_a_table_and_files(
    trained: Path, texts: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "found"
    command = [*forget_command(trained, texts, questions), "--out", str(out)]
    assert main([*command, "--thresholds", "1", "--control-draws", "2", "--seed", "5"]) == 0
    said = capsys.readouterr().out
    assert "forgetting score " in said
    assert "; random latents: " in said
    found = json.loads((out / "forgetting.json").read_text())
    assert found["known_questions"].keys() == {"forget", "pets", "more"}
    assert [found["known_questions"][name]["right"] for name in ("forget", "pets", "more")] == [2, 2, 2]
    assert [detail["n_features"] for detail in found["eval_result_details"]] == [2, 4]
    assert [len(detail["latents"]) for draw in found["control_details"] for detail in draw] == [2, 4, 2, 4]
    assert (found["eval_config"]["random_seed"], found["eval_config"]["retain_thresholds"]) == (5, [1.0])
    assert (out / "forgetting.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "cats.jsonl").write_text('{"body": "the cat sat on the mat"}\n')
    command = [*forget_command(trained, tmp_path / "cats.jsonl", questions), "--out", str(out), "--field", "body"]
    assert main([*command, "--thresholds", "1e-9", "--control-draws", "0"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("no configuration could be run, so there is no forgetting.png\n")
    assert "random" not in said
    assert not (out / "forgetting.png").exists(), "that of another run"


def test_forgetting_refuses_what_cannot_be(
    trained: Path, texts: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = f"{questions.parent}/../{questions.parent.name}/{questions.name}"
    command = forget_command(trained, texts, questions)
    for refused, said in (
        (forget_command(trained, texts, questions, str(questions), same), "are called 'pets'; write NAME="),
        (forget_command(trained, texts, questions, f"={questions}"), "write JSONL or NAME=JSONL"),
        (forget_command(trained, texts, questions, f"forget={questions}"), "the name of the forget set"),
        (forget_command(trained, texts, questions, "/a=b/nowhere.jsonl"), "there is no file /a=b/nowhere.jsonl"),
        (forget_command(trained, tmp_path / "none.jsonl", questions), "no file or folder"),
        (forget_command(tmp_path / "sae", texts, questions), "no loaded SAE"),
        ([*command, "--control-draws", "-1"], "control_draws is a whole number of 0 or more"),
        ([*command, "--field", "body"], "body"),
        ([*command, "--gate", "2"], "gate is a share"),
        ([*command, "--out", str(questions)], "cannot be made a folder"),
    ):
        assert main(refused) == 2
        error = capsys.readouterr().err
        assert error.startswith("probewire: ")
        assert said in error
        assert error.count("\n") == 1


def test_forgetting_has_the_defaults_of_the_function() -> None:
    from probewire.analysis.sae.unlearning.forgetting import forgetting

    parser = argparse.ArgumentParser()
    sae_forget.add_arguments(parser)
    needed = ["sae", "--forget-texts", "x", "--retain-texts", "x", "--forget-questions", "x", "--retain-questions", "x"]
    given = vars(parser.parse_args(needed))
    given["n_latents"] = given.pop("latents")
    defaults = {name: parameter.default for name, parameter in inspect.signature(forgetting).parameters.items()}
    shared = given.keys() & {name for name, value in defaults.items() if value is not inspect.Parameter.empty}
    assert len(shared) == 13
    assert {name: given[name] for name in shared} == {name: defaults[name] for name in shared}


def _refused(*options: str) -> Callable[[Path, Path], list[str]]:
    def command(store: Path, out: Path) -> list[str]:
        return ["sae", "train", "--out", str(out), *(str(store) if option == "STORE" else option for option in options)]

    return command


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (_refused("--store", "STORE", *SHAPE[:4], "--k", "33", "--steps", "5"), "k must be in 1 … d_sae = 32, got 33"),
        (_refused("--store", "STORE", "--k", "3", "--steps", "5"), "give --d-sae"),
        (_refused("--store", "STORE", *SHAPE, "--steps", "5", "--option", "nonsense"), "write NAME=VALUE"),
        (_refused("--store", "STORE", *SHAPE, "--steps", "5", "--option", "x=1"), "options x are not for topk"),
        (_refused("--store", "STORE", *SHAPE, "--steps", "5", "--seed", "1", "1"), "each only once"),
        (_refused("--store", "STORE", *SHAPE, "--steps", "5", "--site", SITE), "--site and --texts are for --live"),
        (_refused("--store", "STORE", *SHAPE, "--steps", "5", "--configs", "/nowhere.json"), "cannot read --configs"),
        (_refused("--store", "/nowhere", *SHAPE, "--steps", "5"), "/nowhere is no activation store"),
        (_refused("--live", *SHAPE, "--steps", "5"), "--live needs --site and --texts"),
        (_refused("--live", "--site", SITE, "--texts", "x", *SHAPE, "--epochs", "1"), "give --steps"),
        (
            _refused("--live", "--site", SITE, "--texts", "/nowhere.jsonl", *SHAPE, "--steps", "5"),
            "no file or folder '/nowhere.jsonl'",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    command: Callable[[Path, Path], list[str]],
    said: str,
    store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command(store, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert error.startswith("probewire: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "cfg.json").exists()
