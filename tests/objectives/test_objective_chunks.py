"""Terms of many positions over many classes: the same values and gradients as in one piece, in less memory."""

from __future__ import annotations

import pytest
import torch

from bookkd.core.errors import ConfigError
from bookkd.core.fields import IGNORE_LABEL, LABEL, LOGITS
from bookkd.core.schedules import Clock
from bookkd.losses import (
    DenseTarget,
    SampledTarget,
    SparseTarget,
    claims,
    cross_entropy,
    generalised_jsd,
    reverse_kl,
    soft_target_kl,
)
from bookkd.objectives import Objective, _chunks, bind, labelled
from bookkd.objectives._chunks import by_chunks

N, V, K = 23, 11, 4
CLOCK = Clock(0, 0.0, 1)


def targets():
    torch.manual_seed(0)
    logits = torch.randn(N, V, dtype=torch.float64) * 2
    classes = torch.stack([torch.randperm(V)[:K] for _ in range(N)])
    tail = torch.full((N, 1), -1.0)
    return {
        "dense": DenseTarget(logits),
        "sparse": SparseTarget(-torch.arange(K).double().expand(N, K), classes, tail, (1.0,), V),
        "sampled": SampledTarget(classes, torch.full((N, K), 1 / K, dtype=torch.float64), 1.0, V),
    }


SOFT = {"temperature": 1.0, "t_squared": True}
TERMS = {
    "kl": lambda: bind(soft_target_kl, teacher=LOGITS, class_reduction="sum", **SOFT),
    "reverse": lambda: bind(reverse_kl, teacher=LOGITS, **SOFT),
    "jsd": lambda: bind(generalised_jsd, teacher=LOGITS, beta=0.3, **SOFT),
    "labels": lambda: bind(cross_entropy, batch=(LABEL,), mask=labelled, label_smoothing=0.1),
}
PAIRS = [
    (term, target) for term in TERMS for target in ("dense", "sparse", "sampled") if term == "kl" or target != "sampled"
]


def learnt(objective, target, student, weights):
    labels = torch.arange(N) % V
    labels[3] = IGNORE_LABEL
    batch = {LABEL: labels, "input": torch.zeros(2, 40), "sample": torch.arange(2)}
    leaf = student.clone().requires_grad_()
    sums = objective.sums({LOGITS: leaf * 1.0}, {LOGITS: target}, batch, weights, CLOCK)
    loss = objective.loss(sums, objective.totals(batch, weights), CLOCK)
    loss.backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize(("name", "kind"), PAIRS)
@pytest.mark.parametrize("rows", [1, 5, 23])
def test_chunks_are_the_whole(monkeypatch, name, kind, rows):
    objective, target = Objective((TERMS[name](),)), targets()[kind]
    student = torch.randn(N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = torch.rand(N, generator=torch.Generator().manual_seed(2)).double()
    weights[5] = 0.0
    student[5] = torch.nan  # a position that only pads
    whole = learnt(objective, target, student, weights)
    monkeypatch.setattr(_chunks, "_WHOLE", 0)
    monkeypatch.setattr(_chunks, "_CHUNK", rows * V)
    parts = learnt(objective, target, student, weights)
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-12, atol=1e-14)
    assert parts[1][5].abs().max() == 0


def test_several_terms_add_up(monkeypatch):
    objective = Objective((TERMS["kl"](), TERMS["labels"]()))
    student = torch.randn(N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = learnt(objective, targets()["dense"], student, torch.ones(N))
    monkeypatch.setattr(_chunks, "_WHOLE", 0)
    monkeypatch.setattr(_chunks, "_CHUNK", 4 * V)
    parts = learnt(objective, targets()["dense"], student, torch.ones(N))
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-14)


def test_without_gradient_nothing_is_kept(monkeypatch):
    """Also of logits that could have one: validation runs under `no_grad`."""
    monkeypatch.setattr(_chunks, "_WHOLE", 0)
    monkeypatch.setattr(_chunks, "_CHUNK", 4 * V)
    student, asked = torch.randn(N, V, dtype=torch.float64, requires_grad=True), []
    plain = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **rest: asked.append(1) or plain(*args, **rest))
    objective = Objective((TERMS["kl"](),))
    with torch.no_grad():
        sums = objective.sums({LOGITS: student}, {LOGITS: targets()["dense"]}, {}, torch.ones(N), CLOCK)
    assert not sums.requires_grad
    assert not asked
    objective.sums({LOGITS: student}, {LOGITS: targets()["dense"]}, {}, torch.ones(N), CLOCK)
    assert asked


def test_a_second_gradient_of_chunks_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(_chunks, "_WHOLE", 0)
    monkeypatch.setattr(_chunks, "_CHUNK", 4 * V)
    student = torch.randn(N, V, requires_grad=True)
    sums = Objective((TERMS["kl"](),)).sums({LOGITS: student}, {LOGITS: targets()["dense"]}, {}, torch.ones(N), CLOCK)
    sums.sum().backward(retain_graph=True)
    with pytest.raises(ConfigError, match="`backward` to be called once for a loss of many classes"):
        sums.sum().backward()


def test_small_gradients_of_half_precision_meet_the_scale_before_they_are_rounded(monkeypatch):
    """Many classes of float16 have gradients below its least number; mixed precision multiplies the loss to save them."""
    monkeypatch.setattr(_chunks, "_WHOLE", 0)
    monkeypatch.setattr(_chunks, "_CHUNK", 4 * 50_000)
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(8, 50_000, generator=generator).half().requires_grad_()
    teacher = DenseTarget(torch.randn(8, 50_000, generator=generator))
    sums = Objective((TERMS["kl"](),)).sums({LOGITS: student}, {LOGITS: teacher}, {}, torch.ones(8), CLOCK)
    (slope,) = torch.autograd.grad(sums.sum() * 2.0**10, student)
    exact = student.detach().double().requires_grad_()
    whole = torch.nn.functional.kl_div(
        exact.log_softmax(-1), teacher.logits.double().log_softmax(-1), log_target=True, reduction="sum"
    )
    (wanted,) = torch.autograd.grad(whole * 2.0**10, exact)
    lost = ((slope == 0) & (wanted.abs() > 2.0**-23)).double().mean()
    assert float(lost) == 0
    torch.testing.assert_close(slope.double(), wanted, rtol=2e-3, atol=2.0**-23)


def test_entries_that_a_term_does_not_read_are_not_cut(monkeypatch):
    """A table of as many classes as there are positions is no entry of positions."""
    monkeypatch.setattr(_chunks, "_WHOLE", 0)
    monkeypatch.setattr(_chunks, "_CHUNK", 4 * V)
    seen = []

    class Spy(dict):
        def __getitem__(self, name):
            seen.append(name)
            return super().__getitem__(name)

    batch = Spy({"label": torch.zeros(N, dtype=torch.long), "table": torch.zeros(N)})
    objective = Objective((TERMS["labels"](),))
    objective.sums({LOGITS: torch.randn(N, V, dtype=torch.float64)}, {}, batch, torch.ones(N), CLOCK)
    assert "table" not in seen


def test_a_peer_is_cut_with_the_student(monkeypatch):
    term = bind(soft_target_kl, teacher="peers/1/logits", own=True, class_reduction="sum", **SOFT)
    objective = Objective((term,))
    student, peer = torch.randn(2, N, V, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def value():
        return objective.sums({LOGITS: student, "peers/1/logits": peer}, {}, {}, torch.ones(N), CLOCK)

    whole = value()
    monkeypatch.setattr(_chunks, "_WHOLE", 0)
    monkeypatch.setattr(_chunks, "_CHUNK", 4 * V)
    torch.testing.assert_close(value(), whole, rtol=1e-12, atol=0)


def test_small_logits_and_other_shapes_stay_whole():
    assert _chunks.rows_of_chunk(torch.zeros(128, 1000)) is None
    assert _chunks.rows_of_chunk(torch.zeros(2, 3, 4)) is None
    assert _chunks.rows_of_chunk(torch.empty(2048, 32000, device="meta")) == 131


@pytest.mark.parametrize("kind", ["sparse", "sampled", "dense"])
def test_a_loss_on_a_few_classes_goes_by_positions_itself(monkeypatch, kind):
    """And is passed on in one piece; one of a user's own, or on all classes, is cut."""

    @claims(sparse=True, linear=True, t_squared=True)
    def own(student, teacher, *, temperature, t_squared, class_reduction):
        return soft_target_kl(
            student, teacher, temperature=temperature, t_squared=t_squared, class_reduction=class_reduction
        )

    seen, student = [], torch.zeros(N, V, dtype=torch.float64)
    monkeypatch.setattr(_chunks, "_WHOLE", 0)
    monkeypatch.setattr(_chunks, "_CHUNK", 4 * V)
    monkeypatch.setattr("bookkd.objectives.objective.by_chunks", lambda *given: seen.append(1) or by_chunks(*given))
    for loss in (soft_target_kl, own):
        term = bind(loss, teacher=LOGITS, class_reduction="sum", **SOFT)
        Objective((term,)).sums({LOGITS: student}, {LOGITS: targets()[kind]}, {}, torch.ones(N), CLOCK)
    assert len(seen) == (2 if kind == "dense" else 1)
