"""A few classes of many: the same numbers as in autograd's steps and as over all classes merged by hand, in one pass each way."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import kl_div

from bookkd.core.fields import IGNORE_LABEL
from bookkd.losses import (
    LOSSES,
    DenseTarget,
    SampledTarget,
    SparseTarget,
    adaptive_smoothing,
    claims_of,
    cross_entropy,
    generalised_jsd,
    guided_ctc,
    reverse_kl,
    selective_kl,
    skew_kl,
    skew_reverse_kl,
    soft_cross_entropy,
    soft_target_kl,
    truncated_kl,
    uld,
)
from bookkd.losses import _picked as module
from bookkd.losses._picked import _plainly, log_probabilities_of, picked

N, V, K = 7, 40, 5
DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-6)]
SOFT = {
    soft_target_kl: {"class_reduction": "sum"},
    soft_cross_entropy: {},
    reverse_kl: {},
    generalised_jsd: {"beta": 0.3},
    skew_kl: {"alpha": 0.1},
    skew_reverse_kl: {"alpha": 0.1},
    truncated_kl: {"renormalise": "none"},
}


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "_CACHED", 3 * V)


def drawn(*shape, seed, scale=2.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def student_and_classes(seed=1):
    """Rows of all kinds: usual, sure of a class that was kept, sure of another, and others ruled out one by one or all."""
    student, classes = drawn(N, V, seed=seed), drawn(N, V, seed=seed + 1).topk(K).indices
    student[1, classes[1, 0]] += 60
    others = torch.ones(N, V, dtype=torch.bool).scatter(1, classes, False)
    student[2, others[2].nonzero()[0]] += 60
    student[3, others[3].nonzero()[3:9]] = -torch.inf
    student[4, others[4]] = -torch.inf
    return student, classes


def with_gradient(function, student, *rest):
    leaf = student.clone().requires_grad_()
    value = function(leaf, *rest)
    weight = torch.linspace(0.0, 2.0, value.numel(), dtype=value.dtype).reshape(value.shape)
    return value.detach(), torch.autograd.grad((value * weight).sum(), leaf)[0]


@pytest.mark.parametrize(("dtype", "off"), DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
@pytest.mark.parametrize("apart", [True, False])
def test_what_is_picked_is_what_autograd_finds(dtype, off, temperature, apart):
    student, classes = student_and_classes()
    given = (classes, temperature, dtype, apart)
    theirs = with_gradient(lambda s: _plainly(s, *given), student.to(dtype))
    mine = with_gradient(lambda s: picked(s, *given[:3], apart=apart), student.to(dtype))
    torch.testing.assert_close(mine, theirs, rtol=off, atol=off)
    assert mine[1].isfinite().all()


def merged(logits, classes, temperature):
    """The probabilities of the kept classes and of all others together, by a matrix that merges them."""
    into = torch.zeros(len(logits), V, K + 1, dtype=logits.dtype)
    into[..., -1] = 1
    for row, kept in enumerate(classes):
        into[row, kept] = torch.eye(K + 1, dtype=logits.dtype)[:K]
    return torch.einsum("nv,nvk->nk", (logits / temperature).softmax(-1), into)


@pytest.mark.parametrize(("dtype", "off"), DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_divergence_is_that_of_the_merged_distributions(dtype, off, temperature):
    """Against kl_div of torch on probabilities that were merged in float64, the gradient through all classes."""
    teacher, student = drawn(N, V, seed=5), drawn(N, V, seed=6)
    target = SparseTarget.from_logits(teacher, K, (temperature,))

    def reference(leaf):
        q, p = (merged(each, target.indices, temperature) for each in (leaf, teacher))
        return temperature**2 * kl_div(q.log(), p, reduction="none").sum(-1)

    def ours(leaf):
        return soft_target_kl(leaf, narrow, temperature=temperature, t_squared=True, class_reduction="sum")

    narrow = SparseTarget(
        target.values.to(dtype), target.indices, target.log_tail_mass.to(dtype), target.temperatures, V
    )
    value, slope = with_gradient(ours, student.to(dtype))
    truth = with_gradient(reference, student)
    torch.testing.assert_close(value.double(), truth[0], rtol=10 * off, atol=10 * off)
    torch.testing.assert_close(slope.double(), truth[1], rtol=10 * off, atol=10 * off)


def targets():
    teacher, (_, classes) = drawn(N, V, seed=8), student_and_classes()
    kept = SparseTarget.from_logits(teacher, K, (1.0,))
    alone = torch.full_like(teacher, -torch.inf).scatter(1, kept.indices, teacher.gather(1, kept.indices))
    return {
        "head and tail": kept,
        "no tail": SparseTarget.from_logits(alone, K, (1.0,)),
        "all kept": SparseTarget.from_logits(teacher, V, (1.0,)),
        "draws": SampledTarget(classes % 3, torch.full((N, K), 1 / K, dtype=torch.float64), 1.0, V),
    }


def honoured(loss, kind):
    """Draws by what is linear; a teacher without a tail where that is not infinite."""
    if kind == "draws":
        return claims_of(loss).linear
    return kind != "no tail" or not claims_of(loss).wants_full_support(SOFT[loss])


PAIRS = [(loss, kind) for loss in SOFT for kind in targets() if honoured(loss, kind)]


@pytest.mark.parametrize(("loss", "kind"), PAIRS, ids=lambda each: getattr(each, "__name__", each))
def test_every_loss_is_differentiable_once_and_twice(loss, kind):
    target = targets()[kind]
    few = target.rows(torch.tensor([0, 5]))
    student = drawn(2, V, seed=9).requires_grad_()

    def value(leaf):
        return loss(leaf, few, temperature=1.0, t_squared=True, **SOFT[loss])

    assert torch.autograd.gradcheck(value, student)
    assert torch.autograd.gradgradcheck(value, student)


def test_losses_on_sparse_targets_are_all_here():
    # uld sorts: it picks the student's own largest, and has no T^2; guided_ctc takes one class of the target, and has neither.
    rest = {uld, guided_ctc, adaptive_smoothing, selective_kl}  # the last also asks for the likeliest class
    assert set(SOFT) == {loss for loss in LOSSES.values() if claims_of(loss).sparse} - rest


@pytest.mark.parametrize("loss", SOFT, ids=lambda loss: loss.__name__)
def test_nothing_of_the_size_of_the_logits_is_kept_but_they(loss):
    """What lets an objective pass such a term on in one piece."""
    student, kept = drawn(N, V, seed=9).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda packed: packed):
        loss(student, targets()["head and tail"], temperature=1.0, t_squared=True, **SOFT[loss])
    large = [each for each in kept if each.numel() >= student.numel()]
    assert {each.data_ptr() for each in large} <= {student.data_ptr()}


def test_classes_that_came_twice_count_twice():
    student, classes = drawn(N, V, seed=3), torch.zeros(N, 3, dtype=torch.int64)
    value, slope = with_gradient(lambda s: log_probabilities_of(s, classes, 1.0, torch.float64).sum(-1), student)
    truth = with_gradient(lambda s: 3 * s.log_softmax(-1)[:, 0], student)
    torch.testing.assert_close((value, slope), truth, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_student_is_computed_on_in_float32(dtype):
    student, target = drawn(N, V, seed=3).to(dtype), SparseTarget.from_logits(drawn(N, V, seed=4).float(), K, (2.0,))

    def value(leaf):
        return soft_target_kl(leaf, target, temperature=2.0, t_squared=True, class_reduction="sum")

    narrow, wide = with_gradient(value, student), with_gradient(value, student.float())
    torch.testing.assert_close(narrow[0], wide[0], rtol=1e-6, atol=1e-6)
    assert narrow[1].dtype == dtype
    torch.testing.assert_close(narrow[1], wide[1].to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (2, 0, 3)])
def test_positions_of_any_shape_and_memory_in_any_order(shape):
    student, teacher = drawn(V, *shape, seed=3).movedim(0, -1), drawn(*shape, V, seed=4)
    target = SparseTarget.from_logits(teacher, K, (1.0,))
    options = {"temperature": 1.0, "t_squared": True, "class_reduction": "sum"}
    value, slope = with_gradient(lambda leaf: soft_target_kl(leaf, target, **options), student)
    assert value.shape == shape
    assert slope.shape == student.shape
    flat = SparseTarget.from_logits(teacher.reshape(-1, V) if shape != () else teacher[None], K, (1.0,))
    alike = soft_target_kl(student.reshape(len(flat.values), V), flat, **options)
    torch.testing.assert_close(value.reshape(-1), alike, rtol=1e-12, atol=1e-14)


def test_a_graph_may_be_used_twice():
    student, target = drawn(N, V, seed=3).requires_grad_(), targets()["head and tail"]
    value = reverse_kl(student, target, temperature=1.0, t_squared=True).sum()
    first = torch.autograd.grad(value, student, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(value, student)[0], first, rtol=0, atol=0)


def test_with_every_class_kept_it_is_the_dense_loss():
    teacher, student = drawn(N, V, seed=3), drawn(N, V, seed=4)
    options = {"temperature": 1.0, "t_squared": True, "class_reduction": "sum"}
    kept = soft_target_kl(student, SparseTarget.from_logits(teacher, V, (1.0,)), **options)
    torch.testing.assert_close(kept, soft_target_kl(student, DenseTarget(teacher), **options), rtol=1e-12, atol=1e-14)


def test_labels_of_many_classes_are_torchs_cross_entropy():
    """Above 2^24 logits cross-entropy goes the same way: one class of each position."""
    generator = torch.Generator().manual_seed(0)
    student = (3 * torch.randn(260, 66_000, generator=generator)).requires_grad_()
    labels = torch.randint(66_000, (260,), generator=generator)
    labels[7] = IGNORE_LABEL
    assert student.numel() > 2**24
    found = cross_entropy(student, labels, label_smoothing=0.0)
    wanted = torch.nn.functional.cross_entropy(student, labels, ignore_index=IGNORE_LABEL, reduction="none")
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    outer = torch.rand(260, generator=generator)
    mine, theirs = (torch.autograd.grad((value * outer).sum(), student)[0] for value in (found, wanted))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)
    assert not mine[7].any()
