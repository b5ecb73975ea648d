"""Downloads over a real HTTP server: what was saved is compared byte for byte."""

import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from probewire.backends.checkpoints.download import download
from probewire.backends.checkpoints.progress import Progress, ignore_progress
from probewire.protos.errors import FailedPrecondition, Unavailable

DATA = np.random.default_rng(0).bytes(1_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def url(server):
    server.files["/big"] = DATA
    return f"{server.url}/big"


def fetch(url: str, target: Path, report=ignore_progress, sha256: str = SHA256) -> None:
    download(url, target, sha256=sha256, report=report, retry_pause_s=0.01)


def test_whole_file(url, tmp_path):
    seen: list[Progress] = []
    fetch(url, tmp_path / "big", seen.append)
    assert (tmp_path / "big").read_bytes() == DATA
    assert not (tmp_path / "big.part").exists()
    loaded = [p for p in seen if p.stage == "download"]
    assert loaded[-1] == Progress("download", len(DATA), len(DATA))
    assert [p.done for p in loaded] == sorted(p.done for p in loaded)


def test_cut_connection_resumes_by_itself(server, url, tmp_path):
    server.cut_after = [300_000, 200_000]
    fetch(url, tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == DATA
    ranges = [wanted for _, wanted in server.requests]
    assert ranges == [None, "bytes=300000-", "bytes=500000-"]
    assert server.sent == len(DATA)


def test_killed_process_resumes_in_the_next(server, url, tmp_path):
    """kill -9 in the middle; the next attempt asks for the rest only."""
    server.cut_after, server.hang = [400_000], threading.Event()
    script = (
        "import sys; from pathlib import Path\n"
        "from probewire.backends.checkpoints.download import download\n"
        "download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3], report=lambda p: print(p.done, flush=True))\n"
    )
    command = [sys.executable, "-c", script, url, str(tmp_path / "big"), SHA256]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 400_000:
            pass
        process.kill()
    kept = (tmp_path / "big.part").stat().st_size
    assert 0 < kept <= 400_000
    assert (tmp_path / "big.part").read_bytes() == DATA[:kept]

    fetch(url, tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == DATA
    assert server.requests[1:] == [("/big", f"bytes={kept}-")]


def test_server_that_ignores_range_starts_over(server, url, tmp_path):
    server.ignore_range = True
    (tmp_path / "big.part").write_bytes(DATA[:1000] + b"x" * 2_000_000)
    fetch(url, tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == DATA


def test_wrong_part_is_fetched_again_once(server, url, tmp_path):
    (tmp_path / "big.part").write_bytes(b"x" * 5000)
    fetch(url, tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == DATA
    assert [wanted for _, wanted in server.requests] == ["bytes=5000-", None]


@pytest.mark.parametrize("part", [DATA, DATA + b"too long"])
def test_part_that_is_already_whole_or_too_long(server, url, tmp_path, part):
    (tmp_path / "big.part").write_bytes(part)
    fetch(url, tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == DATA


def test_wrong_hash_is_refused(server, url, tmp_path):
    with pytest.raises(FailedPrecondition, match=f"has sha256 {SHA256}, but big must have 00") as caught:
        fetch(url, tmp_path / "big", sha256="00")
    assert "pip config list" in caught.value.message
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 1


def test_dead_server_is_unavailable_and_keeps_the_part(server, tmp_path):
    (tmp_path / "big.part").write_bytes(DATA[:1000])
    started = time.monotonic()
    with pytest.raises(Unavailable, match="the next attempt resumes"):
        fetch("http://127.0.0.1:9/big", tmp_path / "big")
    assert (tmp_path / "big.part").read_bytes() == DATA[:1000]
    assert time.monotonic() - started < 5


def test_missing_file_is_not_tried_again(server, tmp_path):
    with pytest.raises(Unavailable, match="404"):
        fetch(f"{server.url}/nothing?token=secret", tmp_path / "nothing")
    assert len(server.requests) == 1


def test_a_circle_of_redirects(server, tmp_path):
    server.redirects = {"/a": "/b", "/b": "/a"}
    with pytest.raises(Unavailable, match="redirects"):
        fetch(f"{server.url}/a", tmp_path / "a")


def test_a_redirect_is_followed(server, url, tmp_path):
    server.redirects = {"/a": "/big"}
    server.cut_after = [1000]
    fetch(f"{server.url}/a", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == DATA


def test_messages_hide_credentials(server, tmp_path):
    with pytest.raises(Unavailable) as caught:
        fetch(f"{server.url.replace('//', '//user:hunter2@')}/nothing?token=secret", tmp_path / "nothing")
    assert "hunter2" not in caught.value.message
    assert "secret" not in caught.value.message


def test_file_url_resumes_too(tmp_path):
    source = tmp_path / "a file"
    source.write_bytes(DATA)
    (tmp_path / "big.part").write_bytes(DATA[:5000])
    seen: list[Progress] = []
    fetch(source.as_uri(), tmp_path / "big", seen.append)
    assert (tmp_path / "big").read_bytes() == DATA
    assert min(p.done for p in seen if p.stage == "download") > 5000
    with pytest.raises(Unavailable, match="cannot be read"):
        fetch((tmp_path / "absent").as_uri(), tmp_path / "other")
