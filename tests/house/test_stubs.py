"""The committed gRPC stubs are those that protos/*.proto give, and pyproject.toml asks for runtimes that accept them."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version


def test_committed_stubs_are_fresh(root: Path, tmp_path: Path) -> None:
    (tmp_path / "probewire" / "protos").mkdir(parents=True)
    plugin = shutil.which("protoc-gen-mypy_grpc", path=str(Path(sys.executable).parent))
    outputs = [f"--{name}_out={tmp_path}" for name in ("python", "pyi", "grpc_python")]
    if protos := sorted(str(path.relative_to(root)) for path in (root / "protos").glob("*.proto")):
        command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "probewire/protos=protos"]
        command += [f"--plugin=protoc-gen-mypy_grpc={plugin}", f"--mypy_grpc_out=quiet:{tmp_path}", *outputs, *protos]
        subprocess.run(command, cwd=root, check=True)

    committed = {path.name: path.read_bytes() for path in (root / "protos").glob("*_pb2*.py*")}
    generated = {path.name: path.read_bytes() for path in (tmp_path / "probewire" / "protos").iterdir()}
    assert sorted(committed) == sorted(generated), "run `make protos` and commit what it wrote"
    stale = [name for name in committed if committed[name] != generated[name]]
    assert stale == [], "run `make protos` and commit what it wrote"


def test_declared_runtimes_accept_the_stubs(root: Path, pyproject: dict[str, Any]) -> None:
    """Stubs refuse a protobuf or grpcio older than the compiler that wrote them."""
    declared = {r.name: r.specifier for r in map(Requirement, pyproject["project"]["dependencies"])}
    for stub in (root / "protos").glob("*_pb2*.py"):
        text = stub.read_text()
        pattern = r"# Protobuf Python Version: ([\d.]+)|GRPC_GENERATED_VERSION = '([\d.]+)'"
        for protobuf, grpcio in re.findall(pattern, text):
            name, needed = ("protobuf", protobuf) if protobuf else ("grpcio", grpcio)
            lower = max(Version(s.version) for s in declared[name] if s.operator == ">=")
            assert lower >= Version(needed), f"{stub.name} needs {name}>={needed}; pyproject.toml allows {lower}"
