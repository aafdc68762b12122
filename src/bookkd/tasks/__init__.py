"""What a task owns: how a network's output and a batch become fields, which axis is classes, which positions count."""

from __future__ import annotations

from bookkd.core.names import look_up
from bookkd.core.subsampling import Convolutions
from bookkd.tasks._outputs import width_of
from bookkd.tasks.base import BaseTask, LogitsTask, SoftOptions, Task
from bookkd.tasks.causal_lm import CausalLM, paired_positions
from bookkd.tasks.classification import Classification
from bookkd.tasks.ctc import CTC
from bookkd.tasks.multi_label import MultiLabel
from bookkd.tasks.predict import Predictions, plain_loader, predict
from bookkd.tasks.regression import Regression
from bookkd.tasks.segmentation import Segmentation
from bookkd.tasks.seq2seq import Seq2Seq
from bookkd.tasks.tagging import Tagging

__all__ = [
    "CTC",
    "TASKS",
    "BaseTask",
    "CausalLM",
    "Classification",
    "Convolutions",
    "LogitsTask",
    "MultiLabel",
    "Predictions",
    "Regression",
    "Segmentation",
    "Seq2Seq",
    "SoftOptions",
    "Tagging",
    "Task",
    "paired_positions",
    "plain_loader",
    "predict",
    "task_class",
    "width_of",
]

TASKS = {
    "causal-lm": "bookkd.tasks.causal_lm:CausalLM",
    "classification": "bookkd.tasks.classification:Classification",
    "ctc": "bookkd.tasks.ctc:CTC",
    "multi-label": "bookkd.tasks.multi_label:MultiLabel",
    "regression": "bookkd.tasks.regression:Regression",
    "segmentation": "bookkd.tasks.segmentation:Segmentation",
    "seq2seq": "bookkd.tasks.seq2seq:Seq2Seq",
    "tagging": "bookkd.tasks.tagging:Tagging",
}
"""Task name -> class. One line a task; a test holds this table equal to the cases."""


def task_class(name: str) -> type[Task]:
    """Return the class of a task by name.

    >>> task_class("classification").__name__
    'Classification'
    """
    found: type[Task] = look_up(name, TASKS, "task")
    return found
