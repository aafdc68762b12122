"""How good, how calibrated, how faithful to the teacher, and how costly: numbers with bootstrap intervals."""

from bookkd.evaluation.calibration import calibration, confusion, fit_temperature, reliability
from bookkd.evaluation.costs import Cost, Latency, cost
from bookkd.evaluation.directions import lower_is_better
from bookkd.evaluation.distillation_score import crossing_alpha, distillation_score
from bookkd.evaluation.diversity import Diversity, diversity, pairwise_kl, vasicek_entropy
from bookkd.evaluation.intervals import Interval, bootstrap
from bookkd.evaluation.measures import Measures
from bookkd.evaluation.metrics import Evaluation, evaluate
from bookkd.evaluation.multi_label import evaluate_multi_label
from bookkd.evaluation.paired import (
    Difference,
    Interaction,
    difference_of,
    interaction_of,
)
from bookkd.evaluation.regression import evaluate_regression
from bookkd.evaluation.student_t import Contrast, contrast_of, interval_of_mean, t_quantile
from bookkd.evaluation.tokens import TokenSums

__all__ = [
    "Contrast",
    "Cost",
    "Difference",
    "Diversity",
    "Evaluation",
    "Interaction",
    "Interval",
    "Latency",
    "Measures",
    "TokenSums",
    "bootstrap",
    "calibration",
    "confusion",
    "contrast_of",
    "cost",
    "crossing_alpha",
    "difference_of",
    "distillation_score",
    "diversity",
    "evaluate",
    "evaluate_multi_label",
    "evaluate_regression",
    "fit_temperature",
    "interaction_of",
    "interval_of_mean",
    "lower_is_better",
    "pairwise_kl",
    "reliability",
    "t_quantile",
    "vasicek_entropy",
]
