"""What is kept of an array, and how a process asks the system for memory and files."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from probewire.server.memory import owned


def test_an_array_of_its_own_is_kept_as_it_is() -> None:
    array = np.arange(10)
    assert owned(array) is array


@pytest.mark.parametrize(("rows", "copied"), [(4, True), (5, False), (10, False)])
def test_a_view_of_less_than_half_is_copied(rows: int, copied: bool) -> None:
    whole = np.arange(40, dtype=np.float32).reshape(10, 4)
    view = whole[:rows]
    kept = owned(view)
    assert np.array_equal(kept, view)
    assert np.shares_memory(kept, whole) is not copied


def test_it_is_the_outermost_array_that_counts() -> None:
    whole = np.arange(1000, dtype=np.float32)
    half = whole[:500]
    assert owned(half) is half
    assert not np.shares_memory(owned(half[:300]), whole), "more than half of a view, and less of the array behind it"


def test_a_view_of_what_is_no_array_is_kept() -> None:
    """Such as the bytes of a message."""
    array = np.frombuffer(bytes(64), dtype=np.float32)
    assert owned(array) is array
    assert not np.shares_memory(owned(array[:2]), array)


def test_the_copy_has_the_views_shape_and_order() -> None:
    view = np.arange(100).reshape(10, 10)[2:5, 3:4].T
    kept = owned(view)
    assert (kept.shape, kept.tolist()) == ((1, 3), [[23, 33, 43]])


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such bounds")
def test_a_server_may_open_as_many_files_as_the_system_allows() -> None:
    """In a process of its own, as these are settings of all of it."""
    program = """
import resource
from probewire.server.memory import allow_many_connections, keep_freed_memory
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
allow_many_connections()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
allow_many_connections()
keep_freed_memory()
print("done")
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "done\n"
