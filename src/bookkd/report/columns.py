"""Which figures a report shows: those of each task, then what every student costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bookkd.core.names import choose

__all__ = ["ALPHAS", "QUALITY", "Column", "columns_of", "first_of"]

ALPHAS = (0.3, 0.5, 0.7)
"""Weights of size at which the distillation metric is shown."""

Kind = Literal["percent", "number", "count", "bytes", "milliseconds", "seconds"]


@dataclass(frozen=True)
class Column:
    """One figure of the table.

    Args:
        key: Its name in files.
        title: Its head on the page.
        kind: How it is written.
        meaning: What it is, in one line.
    """

    key: str
    title: str
    kind: Kind
    meaning: str

    @property
    def share(self) -> bool:
        """Whether it is a share, whose differences are points."""
        return self.kind == "percent"


_KL = "divergence of the student's predictions from the teacher's, nats; lower is better"

QUALITY: Mapping[str, tuple[Column, ...]] = {
    "causal-lm": (
        Column("perplexity", "perplexity", "number", "exponential of the NLL a token; lower is better"),
        Column("nll", "NLL", "number", "negative log-likelihood of a token, nats; lower is better"),
        Column("accuracy", "accuracy", "percent", "share of tokens that were the likeliest; higher is better"),
        Column("ece", "ECE", "number", "expected calibration error by position; lower is better"),
        Column(
            "agreement",
            "agreement",
            "percent",
            "share of positions with the teacher's likeliest token: accepted at temperature 0",
        ),
        Column(
            "acceptance",
            "acceptance",
            "percent",
            "share of the student's drafts that the teacher accepts at temperature 1",
        ),
        Column("teacher_kl", "KL to teacher", "number", _KL),
    ),
    "classification": (
        Column("accuracy", "accuracy", "percent", "share of samples classified right; higher is better"),
        Column(
            "worst_class", "worst class", "percent", "recall of the class that is recognised least; higher is better"
        ),
        Column("nll", "NLL", "number", "negative log-likelihood of the true class, nats; lower is better"),
        Column("ece", "ECE", "number", "expected calibration error before temperature scaling; lower is better"),
        Column("agreement", "agreement", "percent", "share of samples on which student and teacher say the same class"),
    ),
    "ctc": (
        Column("wer", "WER", "percent", "word errors by words of the transcripts, greedy decoding; lower is better"),
        Column("cer", "CER", "percent", "character errors by characters of the transcripts; lower is better"),
        Column("accuracy", "accuracy", "percent", "share of utterances without a word error; higher is better"),
        Column(
            "nll", "CTC loss", "number", "negative log-likelihood of an utterance's transcript, nats; lower is better"
        ),
        Column("ece", "ECE", "number", "calibration error of the symbols that are decoded; lower is better"),
        Column("blank_share", "blank frames", "percent", "share of frames whose likeliest class is the blank"),
        Column("agreement", "agreement", "percent", "share of frames with the teacher's likeliest class"),
        Column("teacher_kl", "KL to teacher", "number", _KL),
    ),
    "multi-label": (
        Column("map", "mAP", "percent", "mean over classes of the average precision; higher is better"),
        Column("worst_class", "worst class", "percent", "least average precision of a class; higher is better"),
        Column("micro_f1", "micro F1", "percent", "F1 of all decisions at a half; higher is better"),
        Column("macro_f1", "macro F1", "percent", "mean over classes of F1; higher is better"),
        Column(
            "subset_accuracy", "all right", "percent", "share of samples whose every label is right; higher is better"
        ),
        Column("hamming_loss", "Hamming loss", "number", "share of labels that are wrong; lower is better"),
        Column("nll", "NLL", "number", "negative log-likelihood of a label, nats; lower is better"),
        Column("ece", "ECE", "number", "expected calibration error; lower is better"),
        Column("agreement", "agreement", "percent", "share of labels on which student and teacher decide the same"),
        Column("teacher_kl", "KL to teacher", "number", _KL),
    ),
    "regression": (
        Column("r2", "R²", "number", "explained variance, at most 1; higher is better"),
        Column("rmse", "RMSE", "number", "root of the mean squared error; lower is better"),
        Column("mae", "MAE", "number", "mean absolute error; lower is better"),
        Column("correlation", "correlation", "number", "Pearson's, of predictions and labels; higher is better"),
        Column("nll", "NLL", "number", "negative log-likelihood where a variance is given, nats; lower is better"),
        Column(
            "teacher_rmse", "RMSE to teacher", "number", "root of the mean squared gap to the teacher; lower is better"
        ),
        Column("teacher_kl", "KL to teacher", "number", _KL),
    ),
    "segmentation": (
        Column("miou", "mIoU", "percent", "mean over classes of the intersection over the union; higher is better"),
        Column("worst_class", "worst class", "percent", "least intersection over union of a class; higher is better"),
        Column("accuracy", "pixel accuracy", "percent", "share of pixels classified right; higher is better"),
        Column("boundary_f1", "boundary F1", "percent", "F1 of class boundaries within 2 pixels; higher is better"),
        Column("nll", "NLL", "number", "negative log-likelihood of a pixel's class, nats; lower is better"),
        Column("ece", "ECE", "number", "expected calibration error over pixels; lower is better"),
        Column("agreement", "agreement", "percent", "share of pixels with the teacher's likeliest class"),
        Column("teacher_kl", "KL to teacher", "number", _KL),
    ),
    "seq2seq": (
        Column("perplexity", "perplexity", "number", "exponential of the NLL a target token; lower is better"),
        Column("bleu", "BLEU", "number", "of what was decoded, by sacreBLEU, 0 to 100; higher is better"),
        Column("chrf", "chrF", "number", "of what was decoded, by sacreBLEU, 0 to 100; higher is better"),
        Column("nll", "NLL", "number", "negative log-likelihood of a target token, nats; lower is better"),
        Column("accuracy", "accuracy", "percent", "share of target tokens that were the likeliest; higher is better"),
        Column("ece", "ECE", "number", "expected calibration error by target position; lower is better"),
        Column("agreement", "agreement", "percent", "share of positions with the teacher's likeliest token"),
        Column("teacher_kl", "KL to teacher", "number", _KL),
    ),
    "tagging": (
        Column("accuracy", "accuracy", "percent", "share of steps labelled right; higher is better"),
        Column("balanced_accuracy", "balanced", "percent", "mean over classes of the recall; higher is better"),
        Column("nll", "NLL", "number", "negative log-likelihood of a step's label, nats; lower is better"),
        Column("ece", "ECE", "number", "expected calibration error by step; lower is better"),
        Column("agreement", "agreement", "percent", "share of steps on which student and teacher say the same class"),
        Column("teacher_kl", "KL to teacher", "number", _KL),
    ),
}
"""Task -> its figures, the first one what arms are ranked by: the task's `primary_metric`."""

_COSTS = (
    Column("parameters", "parameters", "count", "parameters of the student"),
    Column("bytes", "bytes", "bytes", "size of the student's parameters and buffers"),
    Column("macs", "MACs", "count", "multiply-accumulates a sample"),
    Column("latency_ms", "latency", "milliseconds", "median time of one pass"),
)
_SCORES = tuple(
    Column(
        f"ds_{alpha:.1f}", f"DS α={alpha}", "number", f"distillation metric, weight of size {alpha}; lower is better"
    )
    for alpha in ALPHAS
)
_TIMES = (
    Column("seconds", "learning", "seconds", "time of learning one student"),
    Column("cost_seconds", "with making", "seconds", "learning, and the student's equal share of making its books"),
)


def columns_of(task: str) -> tuple[Column, ...]:
    """Return all figures that a run of a task may have, in the order of the table.

    The distillation metric is a sum of a ratio of sizes and a share of accuracy that is lost; other tasks have no such share.

    Raises:
        UnknownNameError: for a task that has no metrics.

    >>> [column.key for column in columns_of("regression")][:3]
    ['r2', 'rmse', 'mae']
    """
    quality = QUALITY[choose(task, QUALITY, "task")]
    return (*quality, *_COSTS, *(_SCORES if task == "classification" else ()), *_TIMES)


def first_of(task: str) -> Column:
    """Return the figure by which arms of a task are ranked.

    >>> first_of("multi-label").title
    'mAP'
    """
    return QUALITY[choose(task, QUALITY, "task")][0]
