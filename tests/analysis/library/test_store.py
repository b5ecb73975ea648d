"""The library: what it keeps, what it refuses, two who write at once, and what it finds."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from probewire.analysis.circuits import Circuit, Unit
from probewire.analysis.library import CircuitLibrary
from probewire.clients import FailedPrecondition, InvalidArgument, NotFound
from probewire.protos.errors import Unavailable
from tests.analysis.library.conftest import NAMES, NUMBERS, made
from tests.analysis.pages import acted, asks_the_network_for_nothing, data_of, in_a_browser, is_javascript


def filled(folder: Path) -> CircuitLibrary:
    library = CircuitLibrary(folder)
    library.add(NAMES)
    library.add(NUMBERS)
    library.add(made("ioi-heads", 1, 5, 10, 11, version="1.10", category="syntax/names", description="With one more."))
    library.add(made("ioi-heads", 1, 11, version="1.9", category="syntax/names"))
    return library


def test_what_is_added_comes_back_from_the_folder(folder: Path) -> None:
    filled(folder)
    library = CircuitLibrary(folder)
    assert library.versions("ioi-heads") == ("1", "1.9", "1.10")
    assert library.get("ioi-heads").card.version == "1.10"
    assert library.get("ioi-heads", "1").to_json() == NAMES.to_json()
    assert library.get(NUMBERS.id).card.name == "greater-than"
    assert (folder / "syntax/names/ioi-heads/1.10.json").is_file()
    assert "| 1.10 | 4 of 12 |" in (folder / "syntax/names/ioi-heads/README.md").read_text()
    assert not list(folder.rglob("*.part"))
    with pytest.raises(NotFound, match=r"versions 1, 1\.9, 1\.10"):
        library.get("ioi-heads", "2")
    with pytest.raises(NotFound, match="greater-than, ioi-heads"):
        library.get("nothing")


def test_what_is_refused(folder: Path) -> None:
    library = filled(folder)
    assert library.add(NAMES).name == "1.json", "the same again changes nothing"
    for circuit, match in (
        (made("", 1), "has a name"),
        (made("x", 1, hash_=""), "which model it is of"),
        (made("other", 2, 5), "in this library already, as 'greater-than'"),
        (made("greater-than", 3, category="arithmetic"), r"with_card\(version='2'\)"),
        (made("greater-than", 3, version="2"), "is in the category 'arithmetic'"),
    ):
        with pytest.raises(InvalidArgument, match=match):
            library.add(circuit)
    assert len(library.circuits()) == 4
    (folder / "arithmetic/greater-than/1.json").write_text("{}")
    with pytest.raises(InvalidArgument, match=r"greater-than/1\.json: not a circuit of ours"):
        library.circuits()
    with pytest.raises(InvalidArgument, match=r"holds other things and no library\.json"):
        CircuitLibrary(folder / "arithmetic")
    (folder / "library.json").write_text(json.dumps({"format": "x", "version": 1}))
    with pytest.raises(InvalidArgument, match="no library of ours"):
        CircuitLibrary(folder)


def test_many_who_add_at_once(folder: Path) -> None:
    CircuitLibrary(folder)
    circuits = [made(f"c{index}", index) for index in range(12)]
    rivals = [made("race", 0, index) for index in range(1, 7)]
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(lambda circuit: _added(folder, circuit), circuits))
        kept = list(pool.map(lambda circuit: _added(folder, circuit), rivals))
    assert {one.card.name for one in CircuitLibrary(folder).circuits()} == {*(f"c{i}" for i in range(12)), "race"}
    assert sum(kept) == 1, "of six circuits under one name and version, one is kept"


def _added(folder: Path, circuit: Circuit) -> bool:
    try:
        CircuitLibrary(folder).add(circuit)
    except InvalidArgument:
        return False
    return True


def test_a_lock_that_somebody_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr("probewire.analysis.library.store.LOCK_WAIT_S", 0.1)
    library = CircuitLibrary(folder)
    with FileLock(folder / ".lock"), pytest.raises(FailedPrecondition, match="held the library's lock"):
        library.add(NAMES)


def test_words_are_found_and_every_hit_says_why(folder: Path) -> None:
    library = filled(folder)
    [hit] = library.search("later years")
    assert hit.circuit.card.name == "greater-than"
    assert "years" in hit.reasons[0]
    assert [one.circuit.card.name for one in library.search("heads")] == ["ioi-heads"]
    assert library.search("gastronomy") == []
    assert {one.circuit.card.name for one in library.search()} == {"ioi-heads", "greater-than"}


def test_filters(folder: Path) -> None:
    library = filled(folder)

    def names(**options: Any) -> list[str]:
        return [hit.circuit.card.name for hit in library.search(**options)]

    assert names(category="syntax") == ["ioi-heads"]
    assert names(category="syn") == [], "a category, not a beginning"
    assert names(tags=["numbers"]) == ["greater-than"]
    assert names(contains="z.0 head 2") == ["greater-than"]
    assert names(contains=Unit("z.2", head=3)) == ["ioi-heads"]
    assert names(model_hash="other") == names(min_level=1) == names(task="agreement") == []
    assert sorted(names(family="Llama")) == ["greater-than", "ioi-heads"]
    hits = library.search(overlaps=NAMES)
    assert [(hit.circuit.card.name, hit.score) for hit in hits] == [("ioi-heads", 0.75), ("greater-than", 0.25)]
    assert "75 % of units in common" in hits[0].reasons


def test_differences(folder: Path) -> None:
    found = filled(folder).diff("ioi-heads@1", "ioi-heads@1.10")
    assert [unit.name for unit in found.added] == ["z.2 head 2"]
    assert (found.removed, found.jaccard, found.rank_correlation) == ((), 0.75, pytest.approx(1.0))
    other = filled(folder).diff(NAMES, NUMBERS.with_origin(faithfulness=0.5, ablation="mean"))
    assert other.figures == (("faithfulness", 0.8, 0.5),)
    assert other.notes == ("other ablation",)
    assert other.rank_correlation is None


def test_what_a_check_found_is_kept_on_the_card(folder: Path) -> None:
    library = filled(folder)
    library.record("greater-than", {"level": 2, "time": "2026-11-30", "verdict": "pass"})
    assert library.get("greater-than").card.level == 2
    assert library.get("greater-than").id == NUMBERS.id
    assert [hit.circuit.card.name for hit in library.search(min_level=2)] == ["greater-than"]
    with pytest.raises(InvalidArgument, match="an entry with a level"):
        library.record("greater-than", {"verdict": "pass"})


def test_the_page(folder: Path, tmp_path: Path) -> None:
    library = filled(folder)
    library.add(made("markup", 7, description="</script><b>{{data}}</b>"))
    page = library.index(tmp_path / "index.html")
    assert [one["name"] for one in data_of(page)["circuits"]] == ["greater-than", *["ioi-heads"] * 3, "markup"]
    is_javascript(page, tmp_path)
    asks_the_network_for_nothing(page.replace("</head>", '<i a="http://www.w3.org/2000/svg"></i></head>', 1))


@in_a_browser
def test_the_page_in_a_browser(folder: Path, tmp_path: Path) -> None:
    page = filled(folder).index()
    script = """
      const out = {};
      const rows = () => [...document.querySelectorAll("#rows tr")].map((row) => row.cells[0].textContent);
      out.all = rows().length;
      const find = document.getElementById("find");
      find.value = "z.0 head 2"; find.dispatchEvent(new Event("input")); out.unit = rows();
      out.card = document.querySelector("#card h2").textContent;
      find.value = "nothing such"; find.dispatchEvent(new Event("input")); out.none = rows();
      find.value = ""; find.dispatchEvent(new Event("input"));
      document.querySelectorAll("#head th")[3].click(); out.largest = rows()[0];
      const pre = document.createElement("pre"); pre.id = "out"; pre.textContent = JSON.stringify(out); document.body.append(pre);
    """
    found = acted(page, script, tmp_path)
    assert found == {
        "all": 4,
        "unit": ["greater-than 1"],
        "card": "greater-than 1",
        "none": [],
        "largest": "ioi-heads 1.10",
    }


# ---- the hub, faked ----


class FakeHub(SimpleNamespace):
    """A hub that is a folder: repo → what was uploaded."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder=folder, asked=[])

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.asked.append(("create", repo_id, options["private"], options["exist_ok"]))

    def upload_folder(self, *, repo_id: str, folder_path: str, allow_patterns: list[str], **_: Any) -> str:
        for pattern in allow_patterns:
            for path in Path(folder_path).rglob(pattern):
                target = self.folder / repo_id / path.relative_to(folder_path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        return f"https://hub/{repo_id}"

    def snapshot_download(self, repo_id: str, **options: Any) -> str:
        if not (self.folder / repo_id).is_dir():
            raise RepositoryNotFoundError
        self.asked.append(("download", options["revision"], tuple(options["allow_patterns"])))
        return str(self.folder / repo_id)


class RepositoryNotFoundError(Exception):
    """As the hub's own is called."""


def test_push_and_pull(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    library = filled(folder)
    (folder / "notes.pkl").write_bytes(b"not for others")
    assert library.push("me/circuits") == "https://hub/me/circuits"
    assert not list((tmp_path / "hub").rglob("*.pkl"))
    assert not list((tmp_path / "hub").rglob(".lock"))
    other = CircuitLibrary(tmp_path / "other")
    assert len(other.pull("me/circuits", revision="v1")) == 4
    assert other.pull("me/circuits") == [], "what is here stays"
    assert [one.to_json() for one in other.circuits()] == [one.to_json() for one in library.circuits()]
    assert hub.asked[0] == ("create", "me/circuits", True, True)
    assert hub.asked[1] == ("download", "v1", ("*.json", "*.md", "*.safetensors"))
    with pytest.raises(NotFound, match="hf auth login"):
        other.pull("me/none")
    monkeypatch.setattr(FakeHub, "create_repo", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(Unavailable, match="OSError: no network"):
        library.push("me/circuits")
