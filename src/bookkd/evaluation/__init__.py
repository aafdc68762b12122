"""How good, how calibrated, how faithful to the teacher, and how costly: numbers with bootstrap intervals."""

from bookkd.evaluation.costs import Cost, Latency, cost
from bookkd.evaluation.intervals import Interval, bootstrap
from bookkd.evaluation.metrics import Evaluation, evaluate

__all__ = ["Cost", "Evaluation", "Interval", "Latency", "bootstrap", "cost", "evaluate"]
