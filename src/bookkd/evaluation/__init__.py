"""How good, how calibrated, how faithful to the teacher, and how costly: numbers with bootstrap intervals."""

from bookkd.evaluation.calibration import calibration, confusion, fit_temperature, reliability
from bookkd.evaluation.costs import Cost, Latency, cost
from bookkd.evaluation.distillation_score import crossing_alpha, distillation_score
from bookkd.evaluation.diversity import Diversity, diversity, vasicek_entropy
from bookkd.evaluation.intervals import Interval, bootstrap
from bookkd.evaluation.metrics import Evaluation, evaluate
from bookkd.evaluation.paired import (
    Difference,
    Interaction,
    difference_of,
    interaction_of,
    interval_of_mean,
    t_quantile,
)

__all__ = [
    "Cost",
    "Difference",
    "Diversity",
    "Evaluation",
    "Interaction",
    "Interval",
    "Latency",
    "bootstrap",
    "calibration",
    "confusion",
    "cost",
    "crossing_alpha",
    "difference_of",
    "distillation_score",
    "diversity",
    "evaluate",
    "fit_temperature",
    "interaction_of",
    "interval_of_mean",
    "reliability",
    "t_quantile",
    "vasicek_entropy",
]
