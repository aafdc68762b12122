"""What a validation may be decided by."""

from __future__ import annotations

import pytest
import torch

from bookkd.core.errors import ConfigError
from bookkd.evaluation import TokenSums, TranscriptSums, direction_of
from bookkd.learning import measuring
from bookkd.learning.measuring import measure
from bookkd.learning.validation import Validation
from bookkd.tasks import CTC, CausalLM, Classification, MultiLabel, Predictions, Regression, Seq2Seq, Tagging, predict

THREE = ("a", "b", "c")


def measured(task):
    """The names of all metrics of a task."""
    torch.manual_seed(0)
    if task.name == "classification":
        said = Predictions({"logits": torch.randn(9, 3)}, torch.arange(9) % 3)
    elif task.name == "multi-label":
        said = Predictions({"logits": torch.randn(9, 3)}, torch.arange(27).reshape(9, 3) % 2)
    elif task.name == "regression":
        said = Predictions({"mean": torch.randn(9, 3), "variance": torch.ones(9, 3)}, torch.randn(9, 3))
    else:
        sums = measuring._GATHERERS[task.name](task)
        assert isinstance(sums, TokenSums | TranscriptSums)
        seen = {"label": torch.tensor([1, 2, 1])}
        if task.name == "ctc":
            seen = {"label": torch.tensor([[1, 2]]), "label_length": torch.tensor([2])}
        sums.add({"logits": torch.randn(3, 3)}, seen, torch.tensor([3]))
        return set(sums.measures(replicates=0).metrics)
    return set(measure(task, said, replicates=0).metrics)


@pytest.mark.parametrize(
    "task",
    [
        CausalLM(3),
        Classification(THREE),
        CTC(THREE),
        MultiLabel(THREE),
        Regression(THREE),
        Seq2Seq(3, 1),
        Tagging(THREE),
    ],
    ids=lambda task: task.name,
)
def test_metrics_that_may_decide_are_those_that_are_measured(task):
    names = set(measuring.MEASURED[task.name])
    assert names == measured(task)
    assert task.primary_metric in names
    for name in names - {"blank_share", "entropy"}:  # of which neither more nor less is better
        assert Validation([0], metric=name).score({name: 0.25, task.primary_metric: 0.25}, task) in (0.25, -0.25)
        assert direction_of(name, None, ours=True) is (
            Validation([0], metric=name).score({name: 0.25, task.primary_metric: 0.25}, task) < 0
        )


def test_of_some_metrics_neither_more_nor_less_is_better():
    with pytest.raises(ConfigError, match="`lower_is_better` to be True or False for metric entropy, got None"):
        Validation([0], metric="entropy")
    said = Validation([0], metric="entropy", lower_is_better=True).score({"nll": 1.0, "entropy": 2.0}, Seq2Seq(3, 1))
    assert said == -2.0


def test_a_metric_that_is_no_number_is_no_divergence():
    ours = Validation([0], metric="ter", also=lambda network: {}, lower_is_better=True)
    with pytest.raises(Exception, match=r"`ter` to be a number, got nan \(validation\)"):
        ours.score({"accuracy": 0.5, "ter": float("nan")}, Classification(THREE))


@pytest.mark.parametrize("size", [0, -3, 2.5])
def test_a_batch_has_a_sample(size):
    with pytest.raises(
        ConfigError, match=rf"`batch_size` to be a whole number of at least 1, got {size} \(validation\)"
    ):
        Validation([0], batch_size=size)
    with pytest.raises(ConfigError, match="`batch_size` to be a whole number of at least 1"):
        predict(torch.nn.Identity(), [(torch.zeros(3), 0)], Classification(THREE), batch_size=size)
