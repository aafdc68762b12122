"""The numbers of card llm-kd, through the method, and what draws may teach."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bookkd.core.errors import FidelityError
from bookkd.core.fields import LABEL, WEIGHT, FieldInfo
from bookkd.core.schedules import Clock
from bookkd.knowledge import check_fields
from bookkd.losses import DenseTarget
from bookkd.methods import LLMKD, build_method
from bookkd.tasks import CausalLM, Classification

T = torch.tensor([[0.50, 0.20, 0.15, 0.08, 0.05, 0.02]], dtype=torch.float64).log()
X = torch.tensor([[1.0, 0.5, 0.0, -0.5, 0.2, -1.0]], dtype=torch.float64)
TASK = Classification(tuple("abcdef"))


def value(method, student=X):
    batch = {LABEL: torch.tensor([0]), WEIGHT: torch.ones(1, dtype=torch.float64)}
    objective = method.objective(TASK)
    sums = objective.sums({"logits": student}, {"logits": DenseTarget(T)}, batch, batch[WEIGHT], Clock())
    return objective.loss(sums, objective.totals(batch, batch[WEIGHT]), Clock())


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        (LLMKD(), 0.090129),
        (build_method("llm-kd", preset="minillm"), 0.116259),
        (build_method("llm-kd", preset="gkd"), 0.024795),
        (LLMKD(divergence="jsd", beta=0.1), 0.008242),
        (LLMKD(divergence="jsd", beta=0.9), 0.010052),
        (LLMKD(divergence="jsd", beta=0.0), 0.090129),
        (LLMKD(divergence="jsd", beta=1.0), 0.116259),
        (build_method("llm-kd", preset="distillm"), 0.075413),
        (build_method("llm-kd", preset="distillm-reverse"), 0.087089),
    ],
)
def test_the_numbers_of_the_card(method, wanted):
    assert float(value(method)) == pytest.approx(wanted, abs=1e-6)
    assert float(value(method, T)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_jsd_is_its_definition(beta):
    t, p = T.exp().numpy()[0], X.softmax(-1).numpy()[0]
    m = beta * t + (1 - beta) * p
    wanted = beta * (t * np.log(t / m)).sum() + (1 - beta) * (p * np.log(p / m)).sum()
    if beta in (0.0, 1.0):  # the card: the limits after division
        wanted = (t * np.log(t / p)).sum() if beta == 0 else (p * np.log(p / t)).sum()
    assert float(value(LLMKD(divergence="jsd", beta=beta))) == pytest.approx(wanted, abs=1e-12)


def test_labels_are_added_with_their_weight():
    both = LLMKD(ce_weight=0.3, kd_weight=0.7)
    nll = -float(X.log_softmax(-1)[0, 0])
    assert float(value(both)) == pytest.approx(0.7 * 0.0901292 + 0.3 * nll, abs=1e-6)


@pytest.mark.parametrize("divergence", ["jsd", "reverse-kl", "skew-kl", "skew-reverse-kl"])
def test_draws_teach_the_forward_divergence_alone(divergence):
    task = CausalLM(10)
    draws = {"logits": FieldInfo((10,), sparse=True, temperatures=(1.0,), linear=True, by_position=True)}
    check_fields(LLMKD().needs(task), draws, "llm-kd")
    with pytest.raises(FidelityError, match="not linear in it, got draws, which bias them"):
        check_fields(LLMKD(divergence=divergence).needs(task), draws, "llm-kd")
    kept = {"logits": FieldInfo((10,), sparse=True, temperatures=(1.0,), by_position=True)}
    check_fields(LLMKD(divergence=divergence).needs(task), kept, "llm-kd")
