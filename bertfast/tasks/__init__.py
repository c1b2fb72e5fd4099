"""What fine-tuning teaches: each task is a file here, and a user's own is one more."""

from .classification import Classification
from .multilabel import MultiLabel
from .registry import TASKS, Task, find_task, infer_task, recognize_task, register_task, task_of
from .regression import Regression

__all__ = [
    "TASKS",
    "Classification",
    "MultiLabel",
    "Regression",
    "Task",
    "find_task",
    "infer_task",
    "recognize_task",
    "register_task",
    "task_of",
]
