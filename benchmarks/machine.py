"""The machine and the versions that figures were taken on, as one line of markdown."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

__all__ = ["load_warning", "machine_line"]

THREAD_SETTINGS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OPENBLAS_NUM_THREADS")
LIBRARIES = ("probewire", "torch", "transformers", "mlx", "mlx-lm", "grpcio", "protobuf", "numpy")


def machine_line() -> str:
    """Processor, cores, memory, system, commit and library versions."""
    memory_gib = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {found}" for name in LIBRARIES if (found := _version(name)))
    return (
        f"Machine: {_processor()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.system()} "
        f"{platform.machine()}, Python {sys.version.split()[0]}; commit {_commit()}; {versions}{_threads()}."
    )


def load_warning() -> str:
    """Said when other programs were busy as the run began, else empty."""
    load = os.getloadavg()[0]
    busy = load > 0.5
    return (
        f"The machine was not idle: load average {load:.1f} before the run, so take these figures as noisy."
        if busy
        else ""
    )


def _threads() -> str:
    """Settings of the thread pools that the processes inherit, where there are any."""
    found = [f"{name}={os.environ[name]}" for name in THREAD_SETTINGS if name in os.environ]
    return f"; {', '.join(found)}" if found else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return " ".join([name, *(flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags)])


def _commit() -> str:
    here = Path(__file__).parent
    short = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=False)
    return (short.stdout.strip() or "unknown") + (" with changes" if changed.stdout.strip() else "")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
