"""Every loss of the table keeps every promise of the contract."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.losses.cases import CASES, dense, made

from bookkd.losses import LOSSES, Claims, SampledTarget, SparseTarget, claims, claims_of
from bookkd.testing.losses import CHECKS, LossCase, check_loss


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_contract(case, check):
    check(case)


def test_every_loss_has_a_case_and_every_case_a_loss():
    assert {case.name.split("/")[0]: case.loss for case in CASES} == LOSSES


def test_every_case_has_an_independent_reference_and_every_loss_a_worked_number():
    assert all(case.reference is not None for case in CASES)
    assert {case.loss for case in CASES if case.worked} == set(LOSSES.values())


def test_names_of_cases_differ():
    assert len({case.name for case in CASES}) == len(CASES)


def test_claims_on_sparse_targets_are_covered():
    on_sparse = {case.loss for case in CASES if any(isinstance(given, SparseTarget) for given in case.inputs()[1:])}
    assert on_sparse == {loss for loss in LOSSES.values() if claims_of(loss).sparse}


def on_draws(case):
    return any(isinstance(given, SampledTarget) for given in case.inputs()[1:])


def test_claims_on_draws_are_covered():
    assert {case.loss for case in CASES if on_draws(case)} == {
        loss for loss in LOSSES.values() if claims_of(loss).linear
    }


def test_a_loss_that_is_zero_at_the_teacher_in_every_case_claims_it():
    whole = [case for case in CASES if not on_draws(case)]
    always = {loss for loss in LOSSES.values() if all(c.at_teacher == "zero" for c in whole if c.loss is loss)}
    assert always == {loss for loss in LOSSES.values() if claims_of(loss).zero_at_teacher}


def quadratic(student, teacher):
    return (student.float() if student.dtype.itemsize < 4 else student).sub(teacher.logits.detach()).square().sum(-1)


# What a careless loss of a user does wrong, and the check that must say so.
def reduced(student, teacher):
    return quadratic(student, teacher).mean()


def leaking(student, teacher):
    return (student - teacher.logits).square().sum(-1)


def detached(student, teacher):
    return quadratic(student, teacher) + quadratic(student.detach(), teacher)


def batch_coupled(student, teacher):
    return quadratic(student - student.mean(0), teacher)


def writing(student, teacher):
    value = quadratic(student, teacher)
    teacher.logits.add_(1)
    return value


def naive_reverse(student, teacher):
    p = student.softmax(-1)
    return (p * (p.log() - teacher.logits.detach().log_softmax(-1))).sum(-1)


@pytest.mark.parametrize(
    ("loss", "check", "message"),
    [
        (reduced, "shape", "one value per position"),
        (leaking, "teacher_gradient", "reached the teacher"),
        (detached, "gradient", "Jacobian mismatch"),
        (batch_coupled, "rows", "not close"),
        (writing, "inputs", "written to"),
        (quadratic, "shift", "not close"),
        (quadratic, "ruled_out", "not finite"),
        (naive_reverse, "extremes", "not finite"),
        (naive_reverse, "precision", "expected float32"),
        (quadratic, "claims", "expected FidelityError"),
    ],
)
def test_the_suite_finds(loss, check, message):
    def loose(student, teacher):
        return loss(student, teacher)

    case = LossCase("careless", loose, {}, made(dense), from_logits=dense)
    if check == "claims":
        # Honours a sparse target without claiming it.
        case = LossCase("careless", lambda student, teacher: student.sum(-1), {}, made(dense), from_logits=dense)
    with pytest.raises(Exception, match=message):
        CHECKS[check](case)


def test_the_suite_finds_a_wrong_claim_of_zero():
    @claims()
    def shifted(student, teacher):
        return quadratic(student, teacher) + 1

    with pytest.raises(AssertionError, match=r"value 1\.0 at the teacher"):
        CHECKS["fixed_point"](LossCase("shifted", shifted, {}, made(dense), from_logits=dense))
    with pytest.raises(AssertionError, match="claims zero_at_teacher"):
        CHECKS["fixed_point"](LossCase("shifted", shifted, {}, made(dense), at_teacher="moves", why="so"))


def test_the_suite_wants_a_reason_for_slack():
    @claims()
    def nearly(student, teacher):
        return quadratic(student, teacher) + 1e-9

    CHECKS["fixed_point"](LossCase("nearly", nearly, {}, made(dense), from_logits=dense, slack=1e-8, why="1e-9 in it"))
    with pytest.raises(AssertionError, match="says no reason"):
        CHECKS["fixed_point"](LossCase("nearly", nearly, {}, made(dense), from_logits=dense, slack=1e-8))
    with pytest.raises(AssertionError, match=r"value 1e-09 at the teacher"):
        CHECKS["fixed_point"](LossCase("nearly", nearly, {}, made(dense), from_logits=dense))


def test_a_relational_loss_passes_as_one_scalar():
    @claims(scope="batch", sparse=True)
    def similarity(student, teacher):
        wide = torch.promote_types(student.dtype, torch.float32)

        def gram(logits):
            centred = logits.to(wide) - logits.to(wide).mean(-1, keepdim=True)
            return torch.nn.functional.normalize(centred, dim=-1) @ torch.nn.functional.normalize(centred, dim=-1).T

        return (gram(student) - gram(teacher.detach())).square().mean()

    def bare(logits):
        return (logits,)

    case = LossCase("similarity", similarity, {}, made(bare), from_logits=bare)
    for name in ("shape", "gradient", "rows", "fixed_point", "shift", "teacher_gradient", "inputs", "claims"):
        CHECKS[name](case)
    with pytest.raises(AssertionError, match="expected a scalar"):
        CHECKS["shape"](LossCase("wrong", claims(scope="batch")(lambda s, t: s.sum(-1)), {}, made(bare)))


def test_check_loss_runs_every_check():
    check_loss(CASES[0])
    for worked in CASES[0].worked:
        with pytest.raises(AssertionError, match="not close"):
            check_loss(replace(CASES[0], worked=(worked._replace(value=worked.value + 1e-5),)))
    with pytest.raises(AssertionError, match="not close"):
        check_loss(replace(CASES[0], reference=lambda student, labels, **hyper: -student[:, 0]))


def test_claims_must_be_known_words():
    with pytest.raises(LookupError, match="Unknown scope 'row'"):
        Claims(scope="row")


def test_a_loss_without_claims_promises_nothing():
    assert claims_of(quadratic) == Claims(zero_at_teacher=False, why_not="the loss declares nothing")
    quadratic_with_wrong_attribute = type("Callable", (), {"claims": 3, "__call__": lambda self: None})()
    assert claims_of(quadratic_with_wrong_attribute).sparse is False
