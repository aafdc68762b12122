"""Targets and the refusals of losses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.losses.cases import CASES

from bookkd.core.errors import ConfigError, DataError, FidelityError, UnknownNameError
from bookkd.losses import (
    DenseTarget,
    SparseTarget,
    as_target,
    cross_entropy,
    generalised_jsd,
    probability_cross_entropy,
    skew_kl,
    skew_reverse_kl,
    soft_target_kl,
    softened_mse,
    truncated_kl,
)

STUDENT = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 4.0]])
TEACHER = torch.tensor([[2.0, 3.5, -1.0], [1.0, 1.0, 0.0]])
KL = {"temperature": 4.0, "t_squared": True, "class_reduction": "sum"}


def parts(**changed):
    whole = {
        "values": torch.tensor([[0.0, -1.0]]),
        "indices": torch.tensor([[2, 0]]),
        "log_tail_mass": torch.tensor([[-3.0]]),
        "temperatures": (1.0,),
        "n_classes": 4,
    }
    return SparseTarget(**{**whole, **changed})


@given(
    st.lists(st.floats(-40, 40, width=32), min_size=2, max_size=12),
    st.integers(1, 12),
    st.sampled_from([0.5, 1.0, 2.0, 8.0]),
)
@settings(max_examples=80, deadline=None)
def test_kept_probabilities_are_the_teachers_own(logits, k, temperature):
    exact, k = torch.tensor(logits, dtype=torch.float64), min(k, len(logits))
    target = SparseTarget.from_logits(exact, k, (1.0, temperature) if temperature != 1 else (1.0,))
    kept = target.kept_log_probabilities(temperature)
    torch.testing.assert_close(kept, (exact / temperature).log_softmax(-1)[target.indices], rtol=1e-9, atol=1e-9)
    assert (kept.exp().sum() + target.log_tail(temperature).exp()).item() == pytest.approx(1, abs=1e-12)
    assert target.values.max() == 0


def test_rounded_values_still_make_a_distribution():
    logits = torch.linspace(-3, 3, 50).double()
    exact = SparseTarget.from_logits(logits, 10, (2.0,))
    rounded = SparseTarget(exact.values.half(), exact.indices, exact.log_tail_mass.float(), (2.0,), 50)
    total = rounded.kept_log_probabilities(2.0).exp().sum() + rounded.log_tail(2.0).exp()
    assert total.item() == pytest.approx(1, abs=1e-6)


def test_tail_mass_that_rounds_above_one_is_one():
    target = parts(log_tail_mass=torch.tensor([[1e-7]]))
    assert target.log_tail(1.0).item() == 0
    assert soft_target_kl(torch.zeros(1, 4), target, temperature=1.0, t_squared=True, class_reduction="sum").isfinite()


def test_nothing_left_out_where_every_class_is_kept():
    target = SparseTarget.from_logits(TEACHER, 3, (1.0,))
    assert (target.log_tail(1.0) == -math.inf).all()
    assert target.k == target.n_classes == 3


@pytest.mark.parametrize("k", [1, 2, 3])
def test_gradient_is_finite_where_the_student_rules_out_all_other_classes(k):
    student = torch.tensor([0.0, 1.0, -math.inf, -math.inf], requires_grad=True)
    target = SparseTarget.from_logits(torch.tensor([0.5, 0.2, -math.inf, -math.inf]), k, (1.0,))
    value = soft_target_kl(student, target, temperature=1.0, t_squared=True, class_reduction="sum")
    (slope,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert slope.isfinite().all()
    assert (slope[2:] == 0).all()


def test_targets_move_and_give_rows():
    for target in (DenseTarget(TEACHER), SparseTarget.from_logits(TEACHER, 2, (1.0, 4.0))):
        assert target.positions == (2,)
        assert target.n_classes == 3
        twice = target.rows(torch.tensor([1, 1, 0]))
        assert twice.positions == (3,)
        wanted = soft_target_kl(STUDENT, target, **KL)
        torch.testing.assert_close(soft_target_kl(STUDENT[[1, 1, 0]], twice, **KL), wanted[[1, 1, 0]])
    assert DenseTarget(TEACHER).to("meta").logits.device.type == "meta"
    moved = SparseTarget.from_logits(TEACHER, 2, (1.0,)).to("meta")
    assert {moved.values.device.type, moved.indices.device.type, moved.log_tail_mass.device.type} == {"meta"}
    assert moved.temperatures == (1.0,)


def test_as_target_leaves_targets_alone():
    sparse = parts()
    assert as_target(sparse) is sparse
    assert torch.equal(as_target(TEACHER).logits, TEACHER)


def test_a_temperature_that_was_not_promised_is_refused():
    target = SparseTarget.from_logits(TEACHER, 2, (1.0, 2.0))
    with pytest.raises(
        FidelityError, match=r"one that the sparse target promises \(1, 2\), got 4\.0.*Use one of these"
    ):
        soft_target_kl(STUDENT, target, **KL)
    with pytest.raises(FidelityError, match=r"promises \(none\)"):
        SparseTarget.from_logits(TEACHER, 2, ()).log_tail(1.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"values": torch.tensor([[0, 1]])}, r"`values` to be a floating tensor \[\.\.\., k\], got torch\.int64"),
        ({"indices": torch.tensor([[0, 1]]).int()}, r"`indices` to be int64 of shape \[1, 2\], got torch\.int32"),
        ({"indices": torch.tensor([[0, 1, 2]])}, r"`indices` to be int64 of shape \[1, 2\]"),
        ({"log_tail_mass": torch.tensor([-3.0])}, r"`log_tail_mass` to be of shape \[1, 1\], got shape \[1\]"),
        ({"temperatures": (1.0, 1.0)}, r"`temperatures` to be without repeats"),
        ({"temperatures": (0.0,)}, r"`temperatures` to be a number above 0"),
        ({"n_classes": 1}, r"`k` to be between 1 and the 1 classes, got 2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        parts(**changed)


def test_logits_must_be_floating():
    with pytest.raises(ConfigError, match=r"`logits` to be a floating tensor \[\.\.\., classes\], got torch\.int64"):
        DenseTarget(torch.tensor([1, 2]))


@pytest.mark.parametrize(("k", "message"), [(0, "at least 1, got 0"), (4, "at most the 3 classes, got 4")])
def test_k_must_fit(k, message):
    with pytest.raises(ConfigError, match=message):
        SparseTarget.from_logits(TEACHER, k, (1.0,))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("case", [case for case in CASES if "temperature" in case.hyper], ids=lambda case: case.name)
def test_temperature_must_be_above_zero(case, temperature):
    student, *args = case.inputs()
    with pytest.raises(ConfigError, match=f"`temperature` to be a number above 0, got .*{case.loss.__name__}"):
        case(student, *args, temperature=temperature)


def test_shapes_must_be_the_same():
    with pytest.raises(ConfigError, match=r"`student` to be of the teacher's shape \[2, 3\], got shape \[2, 2\]"):
        soft_target_kl(STUDENT[:, :2], TEACHER, **KL)
    with pytest.raises(ConfigError, match=r"of the teacher's shape \[1, 4\], got shape \[2, 3\] \(truncated_kl\)"):
        truncated_kl(STUDENT, parts(), temperature=1.0, t_squared=True, renormalise="none")
    with pytest.raises(ConfigError, match=r"`teacher_probabilities` to be floating, of the student's shape \[2, 3\]"):
        probability_cross_entropy(STUDENT, TEACHER[:1], temperature=1.0, t_squared=True)
    with pytest.raises(ConfigError, match=r"`student` to be floating logits, got .*int64"):
        soft_target_kl(STUDENT.long(), TEACHER, **KL)


def test_losses_that_cannot_honour_a_target_refuse_it():
    sparse = SparseTarget.from_logits(TEACHER, 2, (4.0,))
    with pytest.raises(
        FidelityError, match=r"dense logits, got the 2 largest of 3 \(softened_mse: .*Use soft_target_kl"
    ):
        softened_mse(STUDENT, sparse, temperature=4.0, t_squared=True)
    with pytest.raises(FidelityError, match="Use soft_cross_entropy"):
        probability_cross_entropy(STUDENT, sparse, temperature=4.0, t_squared=True)
    with pytest.raises(ConfigError, match=r"a sparse target, got 'Tensor'.*Use soft_target_kl for dense"):
        truncated_kl(STUDENT, TEACHER, temperature=4.0, t_squared=True, renormalise="none")


def test_hyper_parameters_out_of_range():
    with pytest.raises(UnknownNameError, match="Unknown class_reduction 'batchmean'"):
        soft_target_kl(STUDENT, TEACHER, temperature=1.0, t_squared=True, class_reduction="batchmean")
    with pytest.raises(UnknownNameError, match="Unknown renormalise 'student'"):
        truncated_kl(STUDENT, parts(), temperature=1.0, t_squared=True, renormalise="student")
    with pytest.raises(ConfigError, match=r"`beta` to be between 0 and 1, got 1\.5"):
        generalised_jsd(STUDENT, TEACHER, beta=1.5, temperature=1.0, t_squared=True)
    for loss in (skew_kl, skew_reverse_kl):
        with pytest.raises(ConfigError, match=r"`alpha` to be between 0 and 1, got -0\.1"):
            loss(STUDENT, TEACHER, alpha=-0.1, temperature=1.0, t_squared=True)
        with pytest.raises(ConfigError, match="below 1, where the divergence is 0 for every student"):
            loss(STUDENT, TEACHER, alpha=1.0, temperature=1.0, t_squared=True)


def test_cross_entropy_agrees_with_torch():
    student = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.tensor([[0, 6, -1, 3], [2, 2, 5, -1]])
    for smoothing in (0.0, 0.1, 1.0):
        wanted = torch.nn.functional.cross_entropy(
            student.movedim(-1, 1), labels, ignore_index=-1, label_smoothing=smoothing, reduction="none"
        )
        torch.testing.assert_close(cross_entropy(student, labels, label_smoothing=smoothing), wanted)


def test_hidden_labels_give_no_value_and_no_gradient():
    student = STUDENT.clone().requires_grad_()
    value = cross_entropy(student, torch.tensor([-1, 2]), label_smoothing=0.1)
    (slope,) = torch.autograd.grad(value.sum(), student)
    assert value[0] == 0
    assert (slope[0] == 0).all()
    assert (slope[1] != 0).all()


def test_mixed_labels_share_by_ratio_over_every_pixel():
    student = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    own, other = torch.arange(30).reshape(2, 3, 5) % 4, torch.arange(30).reshape(2, 3, 5) % 3
    mixed = cross_entropy(student, own, other, torch.tensor([0.25, 1.0]), label_smoothing=0.0)
    alone = [cross_entropy(student, labels, label_smoothing=0.0) for labels in (own, other)]
    torch.testing.assert_close(mixed[0], 0.25 * alone[0][0] + 0.75 * alone[1][0])
    torch.testing.assert_close(mixed[1], alone[0][1])


@pytest.mark.parametrize("value", [3, -2, 255])
def test_a_label_that_is_no_class_is_refused(value):
    with pytest.raises(
        DataError, match=rf"`label` to be 0 to 2, or -1 where it is hidden, got {value} \(.*position \[1\]"
    ):
        cross_entropy(STUDENT, torch.tensor([0, value]), label_smoothing=0.0)
    with pytest.raises(DataError, match=rf"`partner label` to be 0 to 2, .* got {value}"):
        cross_entropy(
            STUDENT, torch.tensor([0, 1]), torch.tensor([value, 0]), torch.tensor([0.5, 0.5]), label_smoothing=0.0
        )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.tensor([0, 1]), torch.tensor([0, 1])), "`partner_labels` to be given together with `ratio`"),
        ((torch.tensor([0, 1]), None, torch.tensor([0.5, 0.5])), "`partner_labels` to be given together with `ratio`"),
        ((torch.tensor([0]),), r"`labels` to be whole numbers of shape \[2\], got torch\.int64 of shape \[1\]"),
        ((torch.tensor([0.0, 1.0]),), r"`labels` to be whole numbers of shape \[2\], got torch\.float32"),
        (
            (torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([0.5])),
            r"`ratio` to be one for each sample of \[2\], got shape \[1\]",
        ),
    ],
)
def test_labels_that_do_not_fit_are_refused(args, message):
    with pytest.raises(ConfigError, match=message):
        cross_entropy(STUDENT, *args, label_smoothing=0.0)


def test_label_smoothing_is_a_share():
    with pytest.raises(ConfigError, match=r"`label_smoothing` to be between 0 and 1, got 1\.1"):
        cross_entropy(STUDENT, torch.tensor([0, 1]), label_smoothing=1.1)
    with pytest.raises(LookupError, match=r"smoothing_over 'rest' \(cross_entropy\)"):
        cross_entropy(STUDENT, torch.tensor([0, 1]), label_smoothing=0.1, smoothing_over="rest")


def test_smoothing_over_the_others_is_that_over_all_of_another_share():
    student = torch.randn(3, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    labels, share = torch.tensor([0, 3, 6]), 0.12
    # The true class keeps 1 - e: e of the others is e K / (K - 1) of all, which torch has.
    wanted = torch.nn.functional.cross_entropy(student, labels, label_smoothing=share * 7 / 6, reduction="none")
    found = cross_entropy(student, labels, label_smoothing=share, smoothing_over="others")
    torch.testing.assert_close(found, wanted)
