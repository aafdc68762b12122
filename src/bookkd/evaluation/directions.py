"""Which way a metric is better: most are better when higher, errors and divergences when lower."""

from __future__ import annotations

from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import choose

__all__ = ["direction_of", "lower_is_better"]

_ERRORS = frozenset(
    {
        "brier",
        "cer",
        "ece",
        "hamming_loss",
        "loss",
        "mae",
        "nll",
        "perplexity",
        "rmse",
        "teacher_kl",
        "teacher_rmse",
        "wer",
    }
)

_GOOD = frozenset(
    {
        "acceptance",
        "accuracy",
        "agreement",
        "auroc",
        "balanced_accuracy",
        "boundary_f1",
        "bleu",
        "chrf",
        "correlation",
        "macro_f1",
        "map",
        "micro_f1",
        "miou",
        "r2",
        "subset_accuracy",
        "top5",
    }
)

_NEITHER = frozenset({"blank_share", "entropy", "length_ratio"})


def direction_of(metric: str, lower: bool | None, *, ours: bool) -> bool:
    """Say whether less of a metric is better, where something is decided by it: nothing is assumed of one that is not ours.

    Args:
        metric: Its name.
        lower: What its owner says; None where it is ours.
        ours: Whether it can only be one of ours.

    Raises:
        ConfigError: for one whose direction nobody has said, or another direction than it has.
        UnknownNameError: for none of ours, where it has to be.

    >>> direction_of("bleu", None, ours=True), direction_of("ter", True, ours=False)
    (False, True)
    """
    known = metric in _ERRORS | _GOOD
    if ours and lower is None and not known and metric not in _NEITHER:
        choose(metric, sorted(_ERRORS | _GOOD), "metric", where="validation")
    if lower is None and not known:
        do = f"Pass lower_is_better, or one of {', '.join(sorted(_ERRORS | _GOOD))}."
        raise ConfigError(
            expected("lower_is_better", f"True or False for metric {metric}", None, where="validation", do=do)
        )
    if known and lower not in (None, metric in _ERRORS):
        raise ConfigError(
            expected("lower_is_better", f"{metric in _ERRORS} for metric {metric}", lower, where="validation")
        )
    return metric in _ERRORS if lower is None else lower


def lower_is_better(metric: str) -> bool:
    """Say whether a metric is an error, of which less is better; metrics that are not ours count as better when higher.

    Args:
        metric: Its name, as in the metrics of `evaluate`, `evaluate_multi_label`, `evaluate_regression`, `PixelSums`, `TokenSums` and
            `TranscriptSums`.

    >>> lower_is_better("rmse"), lower_is_better("r2"), lower_is_better("accuracy")
    (True, False, False)
    """
    return metric in _ERRORS
