"""Behaviours to study: prompts in a clean and a corrupt form, with the answers that tell them apart.

fitted = fit(ioi(), client, n=16)        # token ids, positions of roles, targets
accuracy(client, fitted)                 # Score(clean 16/16 right, …)
client.sweep(fitted.clean, fitted.targets, plans)
"""

from .agreement import agreement
from .capitals import capitals
from .files import load_task, save_task
from .fitted import FittedExample, FittedTask, Form, fit
from .greater_than import greater_than
from .ioi import ioi
from .repeated import repeated_tokens_task
from .score import Score, accuracy
from .task import Example, Roles, Task

__all__ = [
    "Example",
    "FittedExample",
    "FittedTask",
    "Form",
    "Roles",
    "Score",
    "Task",
    "accuracy",
    "agreement",
    "capitals",
    "fit",
    "greater_than",
    "ioi",
    "load_task",
    "repeated_tokens_task",
    "save_task",
]
