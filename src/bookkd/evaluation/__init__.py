"""How good, how calibrated, how faithful to the teacher, and how costly: numbers with bootstrap intervals."""

from bookkd.evaluation.costs import Cost, Latency, cost
from bookkd.evaluation.diversity import Diversity, diversity, vasicek_entropy
from bookkd.evaluation.intervals import Interval, bootstrap
from bookkd.evaluation.metrics import Evaluation, evaluate

__all__ = [
    "Cost",
    "Diversity",
    "Evaluation",
    "Interval",
    "Latency",
    "bootstrap",
    "cost",
    "diversity",
    "evaluate",
    "vasicek_entropy",
]
