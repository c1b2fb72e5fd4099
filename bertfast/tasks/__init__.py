"""What fine-tuning teaches: each task is a file here, and a user's own is one more."""

from .classification import Classification
from .multilabel import MultiLabel
from .multiple_choice import MultipleChoice
from .question_answering import QuestionAnswering
from .registry import TASKS, Task, infer_task, recognize_task, register_task, task_of
from .regression import Regression
from .token_classification import TokenClassification

__all__ = [
    "TASKS",
    "Classification",
    "MultiLabel",
    "MultipleChoice",
    "QuestionAnswering",
    "Regression",
    "Task",
    "TokenClassification",
    "infer_task",
    "recognize_task",
    "register_task",
    "task_of",
]
