"""Losses on features: what each does not see, element by element as on the cards, as terms, and what is refused."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.losses.feature_cases import ACE_T, ACE_Y, CWD_S, CWD_T, FS, FT, A, B, number
from torch.testing import assert_close

from bookkd.core.errors import ConfigError, DataError, FidelityError, UnknownNameError
from bookkd.core.fields import IGNORE_LABEL
from bookkd.core.schedules import Clock
from bookkd.losses import (
    ClassTarget,
    CombinedTarget,
    DenseTarget,
    activation_boundary,
    adaptive_cross_entropy,
    agreed_kl,
    agreement_weight,
    attention_map,
    channel_mean,
    cross_entropy,
    csc,
    cwd,
    feature_mse,
    hcl,
    nst,
    overhaul,
    overhaul_margins,
    pairwise_similarity,
    rkd_distance,
    selective_kl,
    soft_cross_entropy,
    soft_target_kl,
    vid,
)
from bookkd.losses.reductions import flat_positions
from bookkd.objectives import Objective, bind

CWD = {"temperature": 4.0, "t_squared": True, "channels": "first"}
ONE = {"temperature": 1.0, "t_squared": True}
few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 10**6)


def maps(seed, *shape):
    return torch.randn(2, *(shape or (3, 4, 2, 4)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed, d):
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


def test_boundary_and_overhaul_unit_by_unit():
    student = number(A)
    assert_close(activation_boundary(student, B, margin=1.0), number([0, 2.25, 1.69, 0]))
    assert_close(overhaul(student, B, number([-0.6])), number([0, 0.81, 0.25, 0.09]))
    # Signs of the teacher alone matter to the boundary.
    assert_close(activation_boundary(student, 9 * B, margin=1.0), activation_boundary(student, B, margin=1.0))


def test_margins_on_the_card():
    found = overhaul_margins(number([0, 0.5, -1, 4]), number([1, 1, 2, 1]))
    assert_close(found, number([-0.797885, -0.641078, -2.018321, -3.0]), rtol=0, atol=1e-6)
    # A channel of no spread says its shift where that is negative.
    assert overhaul_margins(torch.tensor([0.5, -0.5, 0.0]), torch.zeros(3)).tolist() == pytest.approx([0, -0.5, 0])
    with pytest.raises(ConfigError, match=r"`deviation` to be of shape \[3\], got shape \[2\]"):
        overhaul_margins(torch.zeros(3), torch.zeros(2))


def test_context_weights():
    # Columns that cancel in every cell of the grids are seen by the map alone.
    for height, weight in ((8, 8 / 15), (4, 4 / 7)):
        bump = torch.ones(1, 1, height, height, dtype=torch.float64)
        bump[..., ::2] = -1
        assert hcl(bump, torch.zeros_like(bump)).item() == pytest.approx(weight)


@pytest.mark.parametrize("size", [(6, 6), (8, 6), (6, 8), (5, 7), (8, 12)], ids=str)
def test_context_of_grids_that_do_not_nest(size):
    student, teacher = maps(3, 2, 3, *size)
    apart = student - teacher
    values, weights = [apart.square().mean((1, 2, 3))], [1.0]
    for k in (4, 2, 1):  # cells from floor(i n / k) to ceil((i + 1) n / k)
        edges = [[(i * n // k, -(-(i + 1) * n // k)) for i in range(k)] for n in size]
        cells = [apart[..., a:b, c:d].mean((2, 3)) for a, b in edges[0] for c, d in edges[1]]
        values.append(torch.stack(cells, -1).square().mean((1, 2)))
        weights.append(weights[-1] / 2)
    assert_close(hcl(student, teacher), sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))


def test_both_ways_to_nst_agree():
    student, teacher = maps(1, 3, 4, 2, 2)
    wide, spread = (
        (torch.cat([x, x], 1) for x in (student, teacher)),
        (torch.cat([x, 0 * x], 3) for x in (student, teacher)),
    )
    # Doubled channels, and positions that say nothing, change no value, but the way that it is worked out.
    assert_close(nst(*wide), nst(student, teacher))
    assert_close(nst(*spread), nst(student, teacher))


@given(seeds, st.floats(1e-3, 1e3))
@few
def test_what_they_do_not_see(seed, scale):
    student, teacher = maps(seed)
    order, factors = (
        torch.randperm(4, generator=torch.Generator().manual_seed(seed)),
        torch.rand(4, 1, 1).double() + 0.1,
    )
    assert_close(nst((student * factors)[:, order], teacher), nst(student, teacher))
    assert_close(csc(scale * student, teacher), csc(student, teacher), rtol=1e-6, atol=1e-12)
    assert csc(-scale * teacher, teacher).abs().max() < 1e-9
    shifted = student + torch.arange(4).double()[:, None, None]
    assert_close(cwd(shifted, teacher, **CWD), cwd(student, teacher, **CWD))
    turned = torch.einsum("cd,ndhw->nchw", rotation(seed, 4), student)
    assert_close(pairwise_similarity(turned, teacher), pairwise_similarity(student, teacher))
    assert_close(
        pairwise_similarity(student * factors[:, 0, 0].reshape(1, 1, 4), teacher), pairwise_similarity(student, teacher)
    )
    # Attention transfer does not see the scale of a whole map, and sees its pixels; channel means the other way.
    assert_close(
        feature_mse(attention_map(scale * student), attention_map(teacher)),
        feature_mse(attention_map(student), attention_map(teacher)),
    )
    assert_close(channel_mean(student.flip(2, 3)), channel_mean(student))


def test_channelwise_sees_where():
    turned = number(CWD_S).flip(2)
    assert (cwd(turned, CWD_T, **CWD) - cwd(number(CWD_S), CWD_T, **CWD)).abs() > 1e-3


def test_channelwise_of_logits_with_classes_last():
    student, teacher = maps(4)
    last = cwd(student.movedim(1, -1), DenseTarget(teacher.movedim(1, -1)), **{**CWD, "channels": "last"})
    assert_close(last, cwd(student, teacher, **CWD))


def test_full_correlation_is_a_squared_cosine():
    student, teacher = number(FS), number(FT)
    cosine = torch.cosine_similarity(student.flatten(1), teacher.flatten(1))
    assert_close(16 * csc(student, teacher), number([0.809524, 1.619048]), rtol=0, atol=1e-6)
    assert_close(16 * csc(student, teacher), 2 - 2 * cosine**2)
    assert csc(0 * student, teacher).tolist() == pytest.approx([1 / 16] * 2)


def test_pairwise_takes_its_norms_without_gradient():
    student, teacher = maps(2)
    leaf = student.clone().requires_grad_()
    (slope,) = torch.autograd.grad(pairwise_similarity(leaf, teacher).sum(), leaf)
    # With norms n held: d/df of ||A_S - A_T||^2 / R^2 is 4 (f / n) (A_S - A_T) / n / R^2.
    flat, other = student.flatten(2), teacher.flatten(2)
    f, g = flat / flat.norm(dim=1, keepdim=True), other / other.norm(dim=1, keepdim=True)
    wanted = 4 * f @ (f.mT @ f - g.mT @ g) / flat.norm(dim=1, keepdim=True) / 64
    assert_close(slope.flatten(2), wanted, rtol=1e-9, atol=1e-12)


def test_pixelwise_structure_is_soft_cross_entropy():
    student, teacher = maps(3)
    probabilities = teacher.movedim(1, -1).softmax(-1)
    wanted = torch.nn.functional.cross_entropy(student, probabilities.movedim(-1, 1), reduction="none")
    logits = (student.movedim(1, -1), DenseTarget(teacher.movedim(1, -1)))
    assert_close(soft_cross_entropy(*logits, **ONE), wanted)


def test_variational_with_a_mean_alone_is_half_the_squared_error():
    student, teacher = maps(5)
    assert_close(vid(student, teacher), feature_mse(student, teacher) / 2)
    large, variance = maps(5, 3, 4, 4, 8)[0], torch.full((3, 4), 2.0, dtype=torch.float64)
    pooled = large.reshape(3, 4, 2, 2, 4, 2).mean((3, 5))
    assert_close(vid(large, teacher, variance), vid(pooled, teacher, variance))


def test_a_variance_is_learnt():
    student, teacher = maps(5)
    v = torch.full((len(student), student.shape[1]), 2.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(vid(student, teacher, v).sum(), v)
    error = (student - teacher).square().flatten(2).mean(2)
    assert_close(slope, (1 / 2 - error / 4) / 2 / student.shape[1])


def test_adaptive_forms_at_their_ends():
    student = maps(6, 4, 3)[0]
    sure, labels = 1e4 * torch.eye(3, dtype=torch.float64)[[0, 1, 2, 1]], torch.tensor([0, 1, 2, 1])
    hard = cross_entropy(student, labels, label_smoothing=0.0)
    for form in ("switch", "blend"):  # a teacher that is right and sure: the label
        assert_close(adaptive_cross_entropy(student, sure, labels, form=form), hard)
    soft = maps(7, 4, 3)[0]
    right, wrong = soft.argmax(-1), soft.argmin(-1)
    assert_close(adaptive_cross_entropy(student, soft, right, form="switch"), soft_cross_entropy(student, soft, **ONE))
    assert_close(
        adaptive_cross_entropy(student, soft, wrong, form="switch"), cross_entropy(student, wrong, label_smoothing=0.0)
    )


def test_of_equal_classes_the_teacher_means_the_lowest():
    student, tie = maps(8, 1, 3)[0], torch.zeros(1, 3, dtype=torch.float64)
    soft = soft_cross_entropy(student, tie, **ONE)
    for label in range(3):
        value = adaptive_cross_entropy(student, tie, torch.tensor([label]), form="switch")
        assert bool(torch.isclose(value, soft)) == (label == 0)


def test_hidden_pixels_say_nothing():
    student, teacher = maps(9, 2, 2, 3)[0].requires_grad_(), maps(9, 2, 2, 3)[1]
    labels = torch.tensor([[0, IGNORE_LABEL], [2, 1]])
    value = adaptive_cross_entropy(student, teacher, labels, form="switch")
    (slope,) = torch.autograd.grad(value.sum(), student)
    assert value[0, 1] == slope[0, 1].abs().max() == 0
    assert (slope[1] != 0).all()
    changed = teacher.clone()
    changed[0, 1] += 5
    assert_close(adaptive_cross_entropy(student, changed, labels, form="switch"), value)


def test_of_mixed_views_the_adaptive_target_is_that_of_both_labels():
    student, teacher = maps(11, 4, 3)
    labels, partners, ratio = torch.tensor([0, 1, 2, 1]), torch.tensor([2, 2, 0, IGNORE_LABEL]), torch.full((4,), 0.7)
    for form in ("switch", "blend"):
        both = [adaptive_cross_entropy(student, teacher, each, form=form) for each in (labels, partners)]
        mixed = adaptive_cross_entropy(student, teacher, labels, partners, ratio, form=form)
        assert_close(mixed[:3], (0.7 * both[0] + 0.3 * both[1])[:3], rtol=1e-6, atol=1e-6)
        assert mixed[3] == 0


def test_channel_wise_distillation_leaves_positions_without_weight_out():
    student, teacher = maps(12, 2, 3, 5)
    weights = torch.tensor([[1.0, 0, 0.5, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.float64)
    kept = cwd(student[:1, :, [0, 2, 3]], teacher[:1, :, [0, 2, 3]], **CWD)
    student[0, :, 1], teacher[0, :, 4] = 1e9, float("nan")
    student.requires_grad_()
    value = cwd(student, teacher, weights, **CWD)
    assert_close(value[:1], kept)
    assert_close(value[1:], cwd(student[1:], teacher[1:], **CWD))  # of an image without any, all
    (slope,) = torch.autograd.grad(value.sum(), student)
    assert slope[0, :, [1, 4]].abs().max() == 0
    assert torch.isfinite(slope).all()
    assert (slope[0, :, [0, 2, 3]] != 0).all()


def test_selective_forms_differ_by_a_square():
    student, teacher = maps(10, 5, 4)
    labels = teacher.argmax(-1).clone()
    labels[0], labels[1] = IGNORE_LABEL, (labels[1] + 1) % 4
    weights = number([0.9, 0.9, 1.8, 1.8, 1.8])
    plain = soft_target_kl(student, teacher, class_reduction="sum", **ONE)
    assert_close(selective_kl(student, teacher, labels, factor=0.9, form="clean", **ONE), weights * plain)
    leaf = student.clone().requires_grad_()
    value = selective_kl(leaf, teacher, labels, factor=0.9, form="code", **ONE)
    (slope,) = torch.autograd.grad(value.sum(), leaf)
    assert_close(slope, weights.square()[:, None] * (student.softmax(-1) - teacher.softmax(-1)))


def test_weight_of_a_changed_view():
    one, other = number([2, 1, 0.1]), number([1, 1.5, -0.5])
    assert agreement_weight(one, other).item() == pytest.approx(1.823884, abs=1e-6)
    assert agreement_weight(one + 5, other + 5).item() == pytest.approx(1.994089, abs=1e-6)
    with pytest.raises(ConfigError, match=r"`other` to be of shape \[3\], got shape \[2\]"):
        agreement_weight(one, other[:2])


def test_as_terms_on_plain_tensors_of_maps():
    student, teacher = maps(11)
    fields = {"features/stage1": student.requires_grad_(), "mapped": channel_mean(student)}
    targets = {"features/stage1": teacher, "features/stage1/mean": channel_mean(teacher)}
    objective = Objective(
        (
            bind(feature_mse, "features/stage1", teacher="features/stage1", weight=2.0),
            bind(feature_mse, "mapped", teacher="features/stage1/mean", name="channels"),
            bind(rkd_distance, "mapped", teacher="features/stage1/mean", weight=0.5),
        )
    )
    weights, clock = torch.ones(3), Clock()
    found = objective.loss(objective.sums(fields, targets, {}, weights, clock), objective.totals({}, weights), clock)
    means = channel_mean(student), channel_mean(teacher)
    wanted = 2 * feature_mse(student, teacher).mean() + feature_mse(*means).mean() + rkd_distance(*means) / 2
    assert_close(found, wanted.to(found.dtype), rtol=1e-6, atol=1e-6)
    assert set(objective.dense_only()) == set(targets)
    # A row of weight 0 reaches neither the value nor the gradient of a term of one value a sample.
    alone, weights = Objective(objective.terms[:1]), torch.tensor([1.0, 0.0, 1.0])
    sums = alone.sums(fields, targets, {}, weights, clock)
    assert_close(sums[0], feature_mse(student, teacher)[[0, 2]].sum())
    assert torch.autograd.grad(sums.sum(), student)[0][1].abs().max() == 0


CLASSES = ClassTarget(torch.zeros(3, dtype=torch.int64), 4)
MAPS = torch.zeros(3, 4, 2, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: feature_mse(MAPS, CLASSES), FidelityError, r"likeliest class alone.*feature_mse"),
        (lambda: nst(MAPS, CombinedTarget.of([DenseTarget(MAPS)])), FidelityError, r"a tensor of features, got 'CombinedTarget' \(nst\)\. Make the book"),
        (lambda: feature_mse(MAPS, MAPS[:, :3]), ConfigError, r"of the teacher's shape \[3, 3, 2, 2\], got shape .*Put a connector"),
        (lambda: feature_mse(MAPS.long(), MAPS), ConfigError, r"`student` to be floating features \[batch, \.\.\.\], got .*int64"),
        (lambda: feature_mse(MAPS, MAPS[0, 0, 0]), ConfigError, r"`teacher` to be floating features .*shape \[2\]"),
        (lambda: nst(MAPS.flatten(2), MAPS[:, :, :1].flatten(2)), ConfigError, r"batch and positions, as in \[3, 4, 2\].*Pool both"),
        (lambda: nst(MAPS[:, :, 0, 0], MAPS[:, :, 0, 0]), ConfigError, r"maps \[batch, channels, \*positions\], got shape \[3, 4\]"),
        (lambda: hcl(MAPS.flatten(2), MAPS.flatten(2)), ConfigError, r"maps \[batch, channels, height, width\].*\(hcl\)"),
        (lambda: vid(MAPS, MAPS, torch.ones(4)), ConfigError, r"`variance` to be one number a channel, \[3, 4\], got .*shape \[4\] \(vid\)"),
        (lambda: vid(MAPS, MAPS, torch.zeros(3, 4)), DataError, r"`variance` to be above 0, got 0\.0"),
        (lambda: overhaul(MAPS, MAPS, torch.zeros(3)), ConfigError, r"one for each of 4 channels, got shape \[3\]"),
        (lambda: activation_boundary(MAPS, MAPS, margin=0.0), ConfigError, "`margin` to be a number above 0"),
        (lambda: cwd(MAPS, MAPS, **{**CWD, "channels": "second"}), UnknownNameError, "Unknown channels 'second'"),
        (lambda: cwd(MAPS, MAPS, torch.ones(3, 4), **CWD), ConfigError, r"`weights` to be one for each position of \[3, 2, 2\], got shape \[3, 4\] \(cwd\)"),
        (lambda: cwd(MAPS, CLASSES, **{**CWD, "channels": "last"}), FidelityError, "likeliest class alone"),
        (lambda: adaptive_cross_entropy(ACE_T, ACE_T, ACE_Y, form="soft"), UnknownNameError, "Unknown form 'soft'"),
        (lambda: adaptive_cross_entropy(ACE_T, ACE_T, ACE_Y + 5, form="switch"), DataError, "label.*0 to 2"),
        (lambda: adaptive_cross_entropy(ACE_T, ACE_T, ACE_Y, ACE_Y, form="switch"), ConfigError, "given together with `ratio`"),
        (lambda: selective_kl(ACE_T, ACE_T, ACE_Y, ACE_Y, factor=1.0, form="code", **ONE), ConfigError, r"`views` to be not mixed.*\(selective_kl\)"),
        (lambda: selective_kl(ACE_T, ACE_T, ACE_Y, factor=0.0, form="code", **ONE), ConfigError, "`factor` to be a number above 0"),
    ],
)  # fmt: skip
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_teacher_that_is_no_number_is_no_match():
    broken = torch.full((1, 2, 2, 2), torch.nan)
    for loss in (overhaul, feature_mse, nst, hcl):
        assert loss(MAPS[:1, :2], broken).isnan().all()
    assert overhaul(broken, MAPS[:1, :2]).isnan().all()


def test_maps_with_channels_last_in_memory_come_to_the_same():
    """Values and gradients; and nothing is laid out anew of what is only flattened."""
    last = torch.channels_last
    student, teacher = (each[0] for each in (maps(5, 6, 4, 3, 5), maps(6, 6, 4, 3, 5)))
    losses = (feature_mse, nst, hcl, vid, overhaul, partial(activation_boundary, margin=1.0))
    for loss in (*losses, lambda s, t: (attention_map(s) - attention_map(t)).square().sum(1)):
        found = []
        for mine, theirs in ((False, False), (True, False), (True, True)):
            leaf = student.contiguous(memory_format=last) if mine else student
            leaf = leaf.clone().requires_grad_()
            value = loss(leaf, teacher.contiguous(memory_format=last) if theirs else teacher)
            found.append((value, *torch.autograd.grad(value.sum(), leaf)))
        for each in found[1:]:
            for one, two in zip(each, found[0], strict=True):
                assert_close(one, two, rtol=1e-12, atol=1e-12)
    for laid in (student, student.contiguous(memory_format=last)):
        assert flat_positions(laid).untyped_storage().data_ptr() == laid.untyped_storage().data_ptr()


def test_what_two_views_are_matched_to():
    """Card kd-augmentation, tests 3 and 4: the whole of CCD, and one view given twice; rows without a pair and without logits are refused."""
    student, teacher = number([[1.5, 0.5, 0.3], [0.8, 1, 0.2]]), number([[2, 1, 0.1], [1, 1.5, -0.5]])
    soft = agreed_kl(student, teacher, temperature=4.0, t_squared=True)
    hard = cross_entropy(student, torch.tensor([0, 0]), label_smoothing=0.0).mean()
    assert (hard + soft).item() == pytest.approx(0.895468, abs=1e-6)
    twice = [given[:1].repeat(2, 1) for given in (student, teacher)]
    once = soft_target_kl(student[:1], teacher[:1], class_reduction="sum", **ONE)
    assert_close(agreed_kl(*twice, **ONE), 1.5 * once[0])
    with pytest.raises(
        ConfigError, match=r"`student` to be \[rows, classes\], two rows a sample, got shape \[1, 3\] \(agreed_kl"
    ):
        agreed_kl(student[:1], teacher[:1], **ONE)
    combined = CombinedTarget.of([DenseTarget(teacher), DenseTarget(teacher)])
    with pytest.raises(
        FidelityError, match=r"`teacher` to be the logits of one teacher, got .*\(agreed_kl\)\. Read one book"
    ):
        agreed_kl(student, combined, **ONE)


def test_a_position_of_nothing_moves_nothing():
    """`pairwise_similarity` of maps with one dead position: no similarity to any other there, and no gradient."""
    student, teacher = maps(12, 2, 8, 2, 2)
    student[:, :, 1, 0] = 0
    (slope,) = torch.autograd.grad(pairwise_similarity(student.requires_grad_(), teacher).sum(), student)
    assert slope[:, :, 1, 0].abs().max() == 0
    assert 0 < slope.abs().max() < 1
