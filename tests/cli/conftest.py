"""Lets the tests of this folder import what they share, and what the clients' tests do."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "clients")]
