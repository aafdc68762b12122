"""Language models measured: against numpy in float64 written from the equations, and however the batches are cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from bookkd.core.errors import DataError, TeacherOutputError
from bookkd.core.fields import IGNORE_LABEL
from bookkd.evaluation import TokenSums, evaluate

V = 9
COUNTS = [4, 0, 7, 1, 5]


@pytest.fixture(scope="module")
def said():
    rng = np.random.default_rng(3)
    student, teacher = (2 * rng.normal(size=(sum(COUNTS), V)) for _ in range(2))
    labels = rng.integers(0, V, sum(COUNTS))
    labels[[2, 9]] = IGNORE_LABEL
    return student, teacher, labels


def add(sums, logits, labels, counts, teacher=None):
    sums.add({"logits": logits}, {"label": labels}, counts, None if teacher is None else {"logits": teacher})


def values(sums, **options):
    return {name: each.value for name, each in sums.measures(replicates=0, **options).metrics.items()}


def taken(said, cuts=(5,), teacher=True):
    student, theirs, labels = map(torch.from_numpy, said)
    sums, start, first = TokenSums(), 0, 0
    for stop in cuts:
        counts = torch.tensor(COUNTS[first:stop])
        end = start + int(counts.sum())
        add(sums, student[start:end], labels[start:end], counts, theirs[start:end] if teacher else None)
        start, first = end, stop
    return sums


def test_every_metric_is_its_equation(said):
    student, teacher, labels = said
    known = labels != IGNORE_LABEL
    log_q, log_p = (log_softmax(each[known], axis=1) for each in (student, teacher))
    q, p, y = np.exp(log_q), np.exp(log_p), labels[known]
    found = values(taken(said))
    nll = -log_q[np.arange(len(y)), y].mean()
    assert found["nll"] == pytest.approx(nll, rel=1e-6)
    assert found["perplexity"] == pytest.approx(np.exp(nll), rel=1e-6)
    assert found["accuracy"] == pytest.approx((q.argmax(1) == y).mean(), rel=1e-12)
    assert found["entropy"] == pytest.approx(-(q * log_q).sum(1).mean(), rel=1e-6)
    assert found["agreement"] == pytest.approx((q.argmax(1) == p.argmax(1)).mean(), rel=1e-12)
    assert found["acceptance"] == pytest.approx(np.minimum(p, q).sum(1).mean(), rel=1e-6)
    # Acceptance is one less the total variation.
    assert found["acceptance"] == pytest.approx(1 - np.abs(p - q).sum(1).mean() / 2, rel=1e-6)
    assert found["teacher_kl"] == pytest.approx((p * (log_p - log_q)).sum(1).mean(), rel=1e-5)
    plain = evaluate(torch.from_numpy(student[known]), torch.from_numpy(y), replicates=0)
    assert found["ece"] == pytest.approx(plain.metrics["ece"].value, rel=1e-6)


@pytest.mark.parametrize("cuts", [(1, 5), (1, 2, 3, 4, 5), (2, 5)])
def test_batches_may_be_cut_anywhere(said, cuts):
    whole, parts = taken(said).measures(replicates=50), taken(said, cuts).measures(replicates=50)
    for name, interval in whole.metrics.items():
        assert parts.metrics[name].value == pytest.approx(interval.value, rel=1e-12)
        assert parts.metrics[name].low == pytest.approx(interval.low, rel=1e-12)


def test_intervals_are_over_sequences_and_those_without_a_known_token_count_nothing(said):
    found = taken(said).measures(replicates=400)
    assert found.n == 4
    assert found.metrics["nll"].low < found.metrics["nll"].value < found.metrics["nll"].high
    hidden = (said[0], said[1], np.full(len(said[2]), IGNORE_LABEL))
    with pytest.raises(DataError, match="at least one with a known token"):
        taken(hidden).measures()


def test_a_student_that_is_the_teacher(said):
    found = values(taken((said[0], said[0], said[2])))
    assert (found["agreement"], found["teacher_kl"]) == (1.0, 0.0)
    assert found["acceptance"] == pytest.approx(1.0, abs=1e-6)


def test_classes_that_are_ruled_out(said):
    student = said[0].copy()
    student[:, 3] = -np.inf
    labels = np.where(said[2] == 3, 4, said[2])
    found = values(taken((student, student, labels)))
    assert np.isfinite(list(found.values())).all()
    assert found["teacher_kl"] == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a | {"logits": a["logits"][0]}, DataError, r"\[positions, vocabulary\]"),
        (lambda a: a | {"counts": torch.tensor([5])}, DataError, "add up to 4 positions, got 5"),
        (lambda a: a | {"labels": torch.tensor([0, 1, 2, 9])}, DataError, "tokens below 9, got 9"),
        (lambda a: a | {"labels": torch.tensor([0, 1, 2, -100])}, DataError, "tokens below 9"),
        (lambda a: a | {"logits": torch.full((4, V), torch.nan)}, DataError, "NaN or infinity"),
        (lambda a: a | {"teacher": torch.zeros(4, V + 1)}, TeacherOutputError, r"of shape \(4, 9\), got \(4, 10\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    given = {"logits": torch.zeros(4, V), "labels": torch.tensor([0, 1, 2, 3]), "counts": torch.tensor([4])}
    with pytest.raises(error, match=message):
        add(TokenSums(), **change(given))


def test_a_teacher_for_some_batches_is_refused():
    sums = TokenSums()
    add(sums, torch.zeros(1, V), torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(TeacherOutputError, match="for all batches or for none"):
        add(sums, torch.zeros(1, V), torch.tensor([0]), torch.tensor([1]), torch.zeros(1, V))
