"""Is a circuit what its file says? Levels, checks with bounds, and a page."""

from .bench import task_card
from .page import qa_page
from .qa import TASKS, circuit_qa
from .report import LEVELS, PARTS, QaReport, Untested
from .safety import SafetyProbe

__all__ = ["LEVELS", "PARTS", "TASKS", "QaReport", "SafetyProbe", "Untested", "circuit_qa", "qa_page", "task_card"]
