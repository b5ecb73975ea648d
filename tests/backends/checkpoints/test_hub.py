"""The hub as this machine can meet it: a cache laid out as huggingface_hub lays it, and each error of the transport."""

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import huggingface_hub
import huggingface_hub.constants
import pytest
from huggingface_hub import errors

from probewire.backends.checkpoints import Progress, inspect_folder, resolve_model
from probewire.backends.checkpoints.hub import hub_folder
from probewire.backends.checkpoints.progress import ignore_progress
from probewire.protos.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from tests.tiny_models import tiny_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(sound_folder, tmp_path, monkeypatch):
    """`someone/tiny` at the branch main, weights and all, as symlinks to blobs."""
    repo = tmp_path / "hub" / "models--someone--tiny"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for file in sound_folder.iterdir():
        shutil.copy(file, repo / "blobs" / f"{file.name}-blob")
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}-blob")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


@pytest.fixture
def hub_raises(monkeypatch):
    def arrange(error: Exception) -> None:
        def snapshot_download(*_, **__):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    return arrange


def http_error(kind: type[errors.HfHubHTTPError], status: int) -> Exception:
    response: Any = httpx.Response(status, request=httpx.Request("GET", "https://hub"))
    return kind("the hub's own words", response=response)


def test_a_cached_snapshot_serves_offline(hub_cache, tmp_path):
    found = resolve_model("someone/tiny", cache_dir=tmp_path / "cache")
    assert found.folder == hub_cache
    assert (found.source, found.model_id, found.revision) == ("hub", "someone/tiny", COMMIT)
    assert resolve_model("someone/tiny", revision=COMMIT, cache_dir=tmp_path / "cache").revision == COMMIT


def test_a_snapshot_with_pickles_only_is_converted(hub_cache, tmp_path):
    import torch
    from safetensors.torch import load_file

    whole = tiny_checkpoint("llama", tmp_path)
    tensors = load_file(whole / "model.safetensors")
    (hub_cache / "model.safetensors").unlink()
    (hub_cache / "config.json").unlink()
    shutil.copy(whole / "config.json", hub_cache / "config.json")
    torch.save(tensors, hub_cache / "pytorch_model.bin")
    found = resolve_model("someone/tiny", cache_dir=tmp_path / "cache")
    assert found.folder.parent == tmp_path / "cache" / "converted"
    assert found.folder.name.startswith("someone--tiny-")
    assert (found.source, found.model_id, found.revision) == ("hub", "someone/tiny", COMMIT)
    (weights,) = inspect_folder(found.folder).weights
    assert weights.shapes == {name: tuple(value.shape) for name, value in tensors.items()}


@pytest.mark.parametrize("revision", [None, "other-branch"])
def test_offline_and_not_cached(hub_cache, revision):
    name = "someone/tiny" if revision else "someone/else"
    with pytest.raises(Unavailable, match="give the path of the folder here") as caught:
        hub_folder(name, revision, ignore_progress)
    assert caught.value.message.startswith(f"{name} is not in Hugging Face's cache")


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (http_error(errors.RepositoryNotFoundError, 404), NotFound, "there is no model someone/tiny"),
        (http_error(errors.RevisionNotFoundError, 404), NotFound, "has no revision 'v9'"),
        (http_error(errors.GatedRepoError, 403), FailedPrecondition, "accept its terms at https://huggingface.co/"),
        (http_error(errors.HfHubHTTPError, 500), Unavailable, "the hub's own words"),
        (errors.LocalEntryNotFoundError("Got: ConnectError\nmore"), Unavailable, "reached: ConnectError. Fetch"),
        (errors.OfflineModeIsEnabled("offline mode"), Unavailable, "offline mode"),
        (httpx.ProxyError("407 Proxy Authentication Required"), Unavailable, "407"),
        (httpx.ReadTimeout(""), Unavailable, "ReadTimeout"),
        (PermissionError(13, "Permission denied"), FailedPrecondition, "HF_HUB_CACHE"),
        (errors.HFValidationError("bad"), InvalidArgument, "neither a folder nor a Hugging Face id"),
    ],
)
def test_every_error_in_our_words(hub_raises, error, expected, words):
    hub_raises(error)
    with pytest.raises(expected) as caught:
        hub_folder("someone/tiny", "v9", ignore_progress)
    assert type(caught.value) is expected
    assert words in caught.value.message


def test_our_own_faults_are_not_dressed_up(hub_raises):
    hub_raises(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        hub_folder("someone/tiny", None, ignore_progress)


def blob_id(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:40]


@pytest.fixture
def fake_hub(sound_folder, tmp_path, monkeypatch):
    """A hub on this machine with one repository, which has pickles and sub-folders too."""
    files = {file.name: file.read_bytes() for file in sound_folder.iterdir()}
    files |= {"pytorch_model.bin": b"pickle", "onnx/config.json": b"{}", "modeling.py": b"code"}

    def answer(path: str) -> bytes | None:
        """Looked up at each request: a test may take files away."""
        if path == "/api/models/someone/tiny/revision/main":
            return json.dumps({"id": "someone/tiny", "sha": COMMIT}).encode()
        if path == f"/api/models/someone/tiny/tree/{COMMIT}":
            entries = [{"oid": blob_id(data), "size": len(data), "path": name} for name, data in files.items()]
            return json.dumps([{"type": "file", **entry} for entry in entries]).encode()
        return files.get(path.removeprefix(f"/someone/tiny/resolve/{COMMIT}/"))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answer(self.path.partition("?")[0])
            self.send_response(404 if body is None else 200)
            if body is None:
                self.send_header("X-Error-Code", "RevisionNotFound" if "/tiny/" in self.path else "RepoNotFound")
            self.send_header("Content-Length", str(len(body or b"")))
            self.send_header("ETag", f'"{blob_id(body or b"")}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body or b"")

        do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it overrides
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    url = f"http://127.0.0.1:{http.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield files
    http.shutdown()
    http.server_close()


def test_a_download(fake_hub, tmp_path, capfd):
    seen: list[Progress] = []
    found = resolve_model("someone/tiny", cache_dir=tmp_path / "cache", progress=seen.append)
    wanted = ["config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(file.name for file in found.folder.iterdir()) == wanted
    assert all((found.folder / name).read_bytes() == fake_hub[name] for name in wanted)
    assert found.revision == COMMIT
    total = sum(len(fake_hub[name]) for name in wanted)
    assert [p for p in seen if p.stage == "download"][-1] == Progress("download", total, total)
    assert capfd.readouterr() == ("", ""), "only our own progress is shown"


def test_what_is_converted_is_fetched_where_there_is_no_other_weight(fake_hub, tmp_path):
    """A repository of pickles alone: they come in a second look, and none of its code or sub-folders."""
    del fake_hub["model.safetensors"]
    folder = hub_folder("someone/tiny", None, ignore_progress)
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "pytorch_model.bin", "tokenizer.json"]


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [("someone/else", None, "there is no model someone/else"), ("someone/tiny", "v9", "has no revision 'v9'")],
)
def test_what_the_hub_does_not_have(fake_hub, name, revision, words):
    with pytest.raises(NotFound, match=words):
        hub_folder(name, revision, ignore_progress)


def test_what_is_asked_for_and_how_progress_comes_back(monkeypatch, tmp_path):
    """As snapshot_download does it: two bars count bytes, with totals that grow, and one counts files."""
    asked = {}

    def snapshot_download(repo_id, *, tqdm_class, **options):
        asked.update(options, repo_id=repo_id)
        received = tqdm_class(desc="Downloading bytes", total=0, initial=0, unit="B", unit_scale=True)
        written = tqdm_class(desc="Reconstructing", total=0, initial=0, unit="B", unit_scale=True)
        for _ in tqdm_class(range(3), desc="Fetching 3 files"):
            written.total += 100
            written.refresh()
            received.update(40)
            written.update(100)
            written.refresh()
        received.close()
        written.close()
        (tmp_path / "model.safetensors").touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    seen: list[Progress] = []
    assert hub_folder("someone/tiny", None, seen.append) == tmp_path
    assert seen[-1] == Progress("download", 300, 300)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert asked["repo_id"] == "someone/tiny"
    names = ["model.safetensors", "model-00001-of-00002.safetensors", "config.json", "merges.txt", "tokenizer.model"]
    unwanted = [
        "pytorch_model.bin",
        "model.fp16.safetensors",
        "consolidated.safetensors",
        "modeling.py",
        "a/config.json",
    ]
    kept = huggingface_hub.utils.filter_repo_objects(
        names + unwanted, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert list(kept) == names
