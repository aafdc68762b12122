"""How good, how calibrated, how faithful to the teacher, and how costly: numbers with bootstrap intervals."""

from bookkd.evaluation.calibration import calibration, confusion, fit_temperature, reliability
from bookkd.evaluation.costs import Cost, Latency, cost
from bookkd.evaluation.decoding import beam_decode, greedy_decode
from bookkd.evaluation.directions import direction_of, lower_is_better
from bookkd.evaluation.distillation_score import crossing_alpha, distillation_score
from bookkd.evaluation.diversity import Diversity, diversity, pairwise_kl, vasicek_entropy
from bookkd.evaluation.gates import class_order, shared_parents
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
from bookkd.evaluation.pixels import PixelSums
from bookkd.evaluation.regression import evaluate_regression
from bookkd.evaluation.student_t import Contrast, contrast_of, interval_of_mean, t_quantile
from bookkd.evaluation.tokens import TokenSums
from bookkd.evaluation.transcripts import TranscriptSums
from bookkd.evaluation.translations import (
    Translations,
    decode_all,
    likeness,
    measure_translations,
    score_translations,
)
from bookkd.evaluation.view_scores import ViewScore, compare_views, score_views, teacher_stddev

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
    "PixelSums",
    "TokenSums",
    "TranscriptSums",
    "Translations",
    "ViewScore",
    "beam_decode",
    "bootstrap",
    "calibration",
    "class_order",
    "compare_views",
    "confusion",
    "contrast_of",
    "cost",
    "crossing_alpha",
    "decode_all",
    "difference_of",
    "direction_of",
    "distillation_score",
    "diversity",
    "evaluate",
    "evaluate_multi_label",
    "evaluate_regression",
    "fit_temperature",
    "greedy_decode",
    "interaction_of",
    "interval_of_mean",
    "likeness",
    "lower_is_better",
    "measure_translations",
    "pairwise_kl",
    "reliability",
    "score_translations",
    "score_views",
    "shared_parents",
    "t_quantile",
    "teacher_stddev",
    "vasicek_entropy",
]
