"""Which way a metric is better: most are better when higher, errors and divergences when lower."""

from __future__ import annotations

__all__ = ["lower_is_better"]

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


def lower_is_better(metric: str) -> bool:
    """Say whether a metric is an error, of which less is better; metrics that are not ours count as better when higher.

    Args:
        metric: Its name, as in the metrics of `evaluate`, `evaluate_multi_label`, `evaluate_regression`, `TokenSums` and `TranscriptSums`.

    >>> lower_is_better("rmse"), lower_is_better("r2"), lower_is_better("accuracy")
    (True, False, False)
    """
    return metric in _ERRORS
