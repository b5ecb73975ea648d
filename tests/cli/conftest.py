"""Lets the tests of this folder import what the clients' tests share."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "clients"))
