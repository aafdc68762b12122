"""How good, how calibrated, how faithful to the teacher, and how costly: numbers with bootstrap intervals."""

from bookkd.evaluation.intervals import Interval, bootstrap
from bookkd.evaluation.metrics import Evaluation, evaluate

__all__ = ["Evaluation", "Interval", "bootstrap", "evaluate"]
