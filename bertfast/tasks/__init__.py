"""What fine-tuning teaches: each task is a file here, and a user's own is one more."""

from .classification import Classification
from .registry import TASKS, Task, find_task, infer_task, register_task, task_of

__all__ = [
    "TASKS",
    "Classification",
    "Task",
    "find_task",
    "infer_task",
    "register_task",
    "task_of",
]
