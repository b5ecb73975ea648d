"""Lets the tests of this folder import what they share: fake_worker and serving."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
