"""lm-evaluation-harness: its own tool over HTTP, our model in process, and its `hf` model on the checkpoint, item by item."""

from __future__ import annotations

from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.reports.harness import HarnessModel, ProbewireLM
from probewire.analysis.reports.harness_tasks import HARNESS_TASKS, write_harness_tasks
from probewire.analysis.tasks import accuracy, capitals, fit
from probewire.clients import Client, Scale, capture, hook
from probewire.protos.errors import InvalidArgument, NotFound
from tests.apis.serving import Served, serving
from tests.tiny_models import tiny_checkpoint
from tests.tiny_tokenizers import CHATML, VOCAB_SIZE, tokenizer_folder

lm_eval = pytest.importorskip("lm_eval", reason="make dev installs it")

pytestmark = [
    # The harness opens its task files and leaves them to the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
N = 12
TEXTS = ["The sum of two numbers is a number. It is the same in either order.", "A graph has nodes and edges. " * 30]
LONGEST = 96
"""Tokens of a window: the second text takes several."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with a tokenizer of its own that has an end and a beginning of text."""
    made = tiny_checkpoint(
        "llama", tmp_path_factory.mktemp("harness"), vocab_size=VOCAB_SIZE, max_position_embeddings=512
    )
    tokenizer_folder("byte_level", made)
    (made / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_harness_tasks(tmp_path_factory.mktemp("tasks"), n=N, texts=TEXTS)


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    with serving(folder, tmp_path_factory.mktemp("serve"), backends=("torch",)) as served:
        yield served


@pytest.fixture(scope="module")
def client(served: Served) -> Generator[Client]:
    with Client(f"grpc://{served.grpc}") as client:
        yield client


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """datasets keeps what it has read; not in the home folder of whoever runs the tests."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


def _evaluated(model: Any, tasks: Path, names: Any, args: Any = None, **more: Any) -> dict[str, Any]:
    simple_evaluate: Any = import_module("lm_eval.evaluator").simple_evaluate
    manager: Any = import_module("lm_eval.tasks").TaskManager(include_path=str(tasks), include_defaults=False)
    found = simple_evaluate(
        model, model_args=args, tasks=list(names), task_manager=manager, bootstrap_iters=0, log_samples=True, **more
    )
    assert found is not None
    return found


def _numbers(found: dict[str, Any], name: str) -> np.ndarray[Any, Any]:
    """[item, choice]: log-likelihoods, in the order of the items."""
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    values = [
        [one[0] for one in sample["filtered_resps"]] if name != "pw_documentation" else sample["filtered_resps"]
        for sample in samples
    ]
    return np.array(values, dtype=np.float64)


TASKS = tuple(name for name in HARNESS_TASKS if name != "pw_greater_than")
"""The tiny tokenizer joins years' digits, and a continuation must have a token of its own."""


def test_three_ways_to_the_same_log_likelihoods(folder: Path, tasks: Path, served: Served, client: Client) -> None:
    """Its unmodified tool against our server, our model over our client, its own model in its own code: 1e-4 an item."""
    remote = {
        "base_url": f"{served.http}/v1/completions",
        "model": "torch",
        "tokenizer_backend": "remote",
        "num_concurrent": 2,
        "max_length": LONGEST + 2,  # it takes one off twice
    }
    theirs = {"pretrained": str(folder), "device": "cpu", "dtype": "float32", "max_length": LONGEST}
    bare = {"add_bos_token": False}  # which the tool never adds to a text, and this tokenizer does
    ways = {
        "tool": _evaluated("local-completions", tasks, TASKS, remote, batch_size=4),
        "ours": _evaluated(ProbewireLM(client, max_length=LONGEST + 1, **bare), tasks, TASKS),
        "hf": _evaluated("hf", tasks, TASKS, theirs | bare, batch_size=4),
    }
    begun = [_evaluated(ProbewireLM(client), tasks, ["pw_ioi"]), _evaluated("hf", tasks, ["pw_ioi"], theirs)]
    assert np.abs(np.subtract(*(_numbers(result, "pw_ioi") for result in begun))).max() <= 1e-4
    assert np.abs(_numbers(begun[0], "pw_ioi") - _numbers(ways["ours"], "pw_ioi")).max() > 1e-2, "the beginning counts"
    for name in TASKS:
        found = {way: _numbers(result, name) for way, result in ways.items()}
        assert found["ours"].shape[0] == (len(TEXTS) if name == "pw_documentation" else N)
        for way in ("tool", "hf"):
            assert np.abs(found[way] - found["ours"]).max() <= 1e-4, (name, way)
        results = [result["results"][name] for result in ways.values()]
        metric = "byte_perplexity,none" if name == "pw_documentation" else "acc,none"
        assert [result[metric] for result in results] == pytest.approx([results[0][metric]] * 3, rel=1e-6)
    assert np.abs(_numbers(ways["ours"], "pw_capitals")).max() > 1, "numbers of a model, not zeros"


def test_greedy_is_what_the_model_would_say(client: Client) -> None:
    model = HarnessModel(client)
    made = client.generate("The capital of France is", max_new_tokens=3, ignore_eos=True).only
    said = [token.id for token in made.new]
    other = [said[0], said[1], (said[2] + 1) % VOCAB_SIZE]
    scores = model.score([(made.prompt_ids, said), (made.prompt_ids, other)], progress=False)
    assert [greedy for _, greedy in scores] == [True, False]
    assert scores[0][0] > scores[1][0]


def test_a_continuation_without_a_token_is_no_certainty(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="no token of its own"):
        HarnessModel(client).score([([5, 6], [7]), ([5, 6], [])], progress=False)


def test_hooks_and_sessions_are_measured(client: Client) -> None:
    hooks = [hook("resid_post.1", Scale(0.5))]
    pair = [(client.tokenize("The capital of France is").token_ids, client.tokenize(" Paris").token_ids)]
    [base], [edited] = (HarnessModel(client, hooks=given).score(pair, progress=False) for given in ((), hooks))
    assert abs(edited[0] - base[0]) > 1e-3
    with client.session(hooks) as live:
        [followed] = HarnessModel(client, session=live).score(pair, progress=False)
    assert followed == edited
    with pytest.raises(InvalidArgument, match="must edit"):
        HarnessModel(client, hooks=[capture("resid_post.1")])


def test_texts_that_are_generated(client: Client) -> None:
    """As `generate` writes them, up to a stop; what is not offered is named."""
    model = HarnessModel(client)
    whole = client.generate("When Mary and John", max_new_tokens=8).text
    kwargs = {"until": [], "max_gen_toks": 8, "do_sample": False}
    cut = {**kwargs, "until": [whole[3:5]]}
    texts = model.generate([("When Mary and John", kwargs), ("When Mary and John", cut)], progress=False)
    assert texts == [whole, whole[: whole.index(whole[3:5])]]
    with pytest.raises(InvalidArgument, match="num_beams"):
        model.generate([("x", {"num_beams": 4})], progress=False)


def test_chat_templates_and_special_tokens_are_the_servers(client: Client) -> None:
    lm = ProbewireLM(client)
    said = [{"role": "user", "content": "Hi"}]
    text = lm.apply_chat_template(said)
    assert text == client.tokenize([said[0]]).text
    begun = client.tokenizer_info().bos_token + text
    assert lm.tok_encode(text) == lm.tok_encode(begun), "a beginning once, as the harness has it"
    assert lm.chat_template(True) == client.tokenizer_info().chat_template
    assert lm.tok_encode("") == []
    with pytest.raises(InvalidArgument, match="prefill"):
        lm.apply_chat_template(said, add_generation_prompt=False)


def test_the_shipped_task_is_our_own(tasks: Path, client: Client) -> None:
    """The two choices' log-likelihoods differ as the logits that `accuracy` compares, where both are one token."""
    fitted = fit(capitals(N), client)
    assert len(fitted) >= 3
    scored = accuracy(client, fitted)
    samples = _evaluated(ProbewireLM(client), tasks, ["pw_capitals"])["samples"]["pw_capitals"]
    by_prompt = {(sample["doc"]["prompt"], *sorted(sample["doc"]["choices"])): sample for sample in samples}
    for example, difference in zip(fitted.examples, scored.clean, strict=True):
        mine = example.example
        sample = by_prompt[(mine.clean, *sorted([mine.correct[0], mine.wrong[0]]))]
        gold, other = (sample["filtered_resps"][i][0] for i in (sample["doc"]["gold"], 1 - sample["doc"]["gold"]))
        assert gold - other == pytest.approx(difference, abs=1e-4)
        assert sample["acc"] == float(difference > 0)


def test_tasks_are_written_alike_each_time(tmp_path: Path) -> None:
    one, two = (write_harness_tasks(tmp_path / name, ["pw_ioi"], n=5) for name in "ab")
    assert (one / "pw_ioi.jsonl").read_bytes() == (two / "pw_ioi.jsonl").read_bytes()
    with pytest.raises(NotFound, match="pw_capitals"):
        write_harness_tasks(tmp_path, ["pw_nothing"])
