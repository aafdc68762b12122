"""The contract suite of losses: everything that a pure, pointwise loss promises, checked on one `LossCase`.

Use it on a loss of your own in a test:

    case = LossCase("mine", mine, {"temperature": 2.0}, make, reference=mine_in_numpy, from_logits=lambda t: (t,))
    check_loss(case)
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.testing import assert_close

from bookkd.core.errors import FidelityError
from bookkd.core.fields import VARIANCE
from bookkd.losses import ClassTarget, DenseTarget, Loss, SampledTarget, SparseTarget, claims_of

__all__ = ["CHECKS", "LossCase", "SparseArrays", "Worked", "as_arrays", "check_loss", "take"]

Array = npt.NDArray[np.float64]

ROUNDING = 1e-12
"""What counts as 0 in float64."""


class SparseArrays(NamedTuple):
    """A `SparseTarget` as numpy, for references."""

    values: Array
    indices: npt.NDArray[np.int64]
    log_tail_mass: Array
    temperatures: tuple[float, ...]
    n_classes: int


class Worked(NamedTuple):
    """One published or hand-worked number.

    Args:
        student: Logits of one position, [classes], or of several, [n, classes]; or features, [n, ...].
        args: What follows the student.
        hyper: Hyper-parameters.
        value: The loss there; its mean over several positions.
        gradient: Its gradient in the student, if known.
        tolerance: Absolute error allowed; half a unit of the last printed digit, or a little more.
    """

    student: tuple[Any, ...]
    args: tuple[Any, ...]
    hyper: Mapping[str, Any]
    value: float
    gradient: tuple[Any, ...] | None = None
    tolerance: float = 1e-6


def _ten_thousand(logits: Tensor) -> Tensor:
    return logits.sign() * 1e4


@dataclass(frozen=True)
class LossCase:
    """One row of a table of losses.

    Args:
        name: Name in the table of losses, with "/variant" where a loss has several rows.
        loss: The loss.
        hyper: Hyper-parameters for the checks.
        make: From a generator to float64 (student [n, classes], *args), every argument with n rows unless the loss is of sequences; n
            even, at least 4. Of features the student is [n, ...], its last two axes at least 2 long.
        reference: The same formula in numpy float64, written from the equation, called with arrays in place of tensors.
        worked: Numbers to reproduce.
        from_logits: From teacher logits [n, classes], or features, to the args; None where no teacher takes part.
        at_teacher: At the teacher the loss is "zero" with zero gradient, "stationary" (zero gradient only), or "moves"
            away from it.
        why: The reason, where `at_teacher` is not "zero" or `slack` is more than rounding.
        slack: What counts as 0 at the teacher, for value and gradient, where the formula itself has a small constant.
        shift_invariant: Whether a constant added to all logits of a position changes nothing.
        wild: From usual inputs of the student or teacher to extreme ones that the loss must still take; +-10,000 by default.
        ruled_out: Whether -inf means something on the student's last axis: False where it holds no logits of classes.
        stops: Whether the loss takes some of the student without gradient, so that finite differences say something else.
        frozen: For a loss of which a part carries no gradient: from (student, *args) to the hyper-parameters that hold this part
            at its value, so that finite differences are those of the rest.
        samples: Whether the positions are the samples, on the first axis alone, as of features; of logits they are all axes but the
            last.
        together: Rows that stand next to each other in an order that matters, such as the views of a sample.
        seed: Of the generator that `make` is called with.
    """

    name: str
    loss: Loss
    hyper: Mapping[str, Any]
    make: Callable[[torch.Generator], tuple[Any, ...]]
    reference: Callable[..., Array] | None = None
    worked: tuple[Worked, ...] = ()
    from_logits: Callable[[Tensor], tuple[Any, ...]] | None = None
    at_teacher: Literal["zero", "stationary", "moves"] = "zero"
    why: str = ""
    slack: float = ROUNDING
    shift_invariant: bool = True
    wild: Callable[[Tensor], Tensor] = _ten_thousand
    ruled_out: bool = True
    stops: bool = False
    frozen: Callable[..., Mapping[str, Any]] | None = None
    samples: bool = False
    together: int = 1
    seed: int = field(default=20, repr=False)

    def inputs(self) -> tuple[Any, ...]:
        """Return the same (student, *args) at every call."""
        return self.make(torch.Generator().manual_seed(self.seed))

    def __call__(self, student: Tensor, *args: Any, **hyper: Any) -> Tensor:
        """Call the loss with the case's hyper-parameters."""
        return self.loss(student, *args, **{**self.hyper, **hyper})

    @property
    def sequential(self) -> bool:
        """Whether a value depends on the positions of its sequence, so that no position stands alone."""
        return claims_of(self.loss).scope == "sequence"

    @property
    def relational(self) -> bool:
        """Whether the loss gives one scalar for a whole batch."""
        return claims_of(self.loss).scope == "batch"


def take(given: Any, index: Any) -> Any:
    """Return the rows `index` of a tensor or target; anything else as it is."""
    if isinstance(given, DenseTarget | SparseTarget | SampledTarget | ClassTarget):
        return given.rows(index)
    return given[index] if isinstance(given, Tensor) else given


def as_arrays(given: Any) -> Any:
    """Return a tensor or target as numpy: float64 logits, integers, `SparseArrays`, or of draws the share of every class."""
    if isinstance(given, DenseTarget):
        return as_arrays(given.logits)
    if isinstance(given, SampledTarget):
        return as_arrays(given.probabilities())
    if isinstance(given, ClassTarget):
        return as_arrays(given.classes)
    if isinstance(given, SparseTarget):
        values, indices, masses = (as_arrays(part) for part in (given.values, given.indices, given.log_tail_mass))
        return SparseArrays(values, indices, masses, given.temperatures, given.n_classes)
    if isinstance(given, Tensor):
        return given.detach().double().numpy() if given.is_floating_point() else given.numpy()
    return given


def _change(given: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `change` to every floating tensor of an argument."""
    if isinstance(given, DenseTarget):
        return DenseTarget(change(given.logits))
    if isinstance(given, SampledTarget):
        return replace(given, weights=change(given.weights))
    if isinstance(given, SparseTarget):
        values, masses = change(given.values), change(given.log_tail_mass)
        return SparseTarget(values, given.indices, masses, given.temperatures, given.n_classes)
    return change(given) if isinstance(given, Tensor) and given.is_floating_point() else given


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _gradient(value: Tensor, student: Tensor) -> Tensor:
    return torch.autograd.grad(value.sum(), student)[0]


def _finite(case: LossCase, student: Tensor, args: tuple[Any, ...], what: str) -> None:
    leaf = student.clone().requires_grad_()
    value = case(leaf, *args)
    _require(bool(value.isfinite().all()), f"{case.name}: value is not finite with {what}: {value}")
    _require(bool(_gradient(value, leaf).isfinite().all()), f"{case.name}: gradient is not finite with {what}")


def check_shape(case: LossCase) -> None:
    """One value per position for any leading shape, also an empty one; a scalar where the scope is "batch"."""
    student, *args = case.inputs()
    value = case(student, *args)
    if case.relational:
        _require(value.shape == (), f"{case.name}: expected a scalar, got shape {list(value.shape)}")
        return
    wanted = student.shape[: 1 if case.samples else -1]
    _require(value.shape == wanted, f"{case.name}: expected one value per position, got {value.shape}")
    if case.sequential:
        return
    if case.samples:
        none, one = torch.arange(0), torch.arange(1)
        _require(case(student[none], *(take(given, none) for given in args)).shape == (0,), f"{case.name}: empty batch")
        assert_close(case(student[one], *(take(given, one) for given in args)), value[:1])
        return
    halves = torch.arange(len(student)).reshape(2, -1)
    assert_close(case(student[halves], *(take(given, halves) for given in args)), value.reshape(2, -1))
    none = torch.arange(0)
    _require(case(student[none], *(take(given, none) for given in args)).shape == (0,), f"{case.name}: empty batch")
    assert_close(case(student[1], *(take(given, 1) for given in args)), value[1])


def check_gradient(case: LossCase) -> None:
    """The gradient agrees with finite differences in float64; of a loss with a frozen part, with those of the rest."""
    if case.stops:
        return
    student, *args = case.inputs()
    held = {} if case.frozen is None else case.frozen(student, *args)
    torch.autograd.gradcheck(lambda given: case(given, *args, **held), (student.requires_grad_(),))
    slopes = [_gradient(case(student, *args, **more), student) for more in ({}, held)]
    assert_close(slopes[0], slopes[1], rtol=1e-12, atol=1e-12)


def check_reference(case: LossCase) -> None:
    """The value agrees with the numpy reference to 1e-10."""
    if case.reference is None:
        return
    student, *args = case.inputs()
    wanted = case.reference(as_arrays(student), *(as_arrays(given) for given in args), **case.hyper)
    assert_close(case(student, *args), torch.as_tensor(wanted), rtol=1e-10, atol=1e-10)


def check_worked(case: LossCase) -> None:
    """Every worked number is reproduced, in float64."""
    for worked in case.worked:
        student = torch.tensor(worked.student, dtype=torch.float64, requires_grad=True)
        value = case.loss(student, *worked.args, **worked.hyper).mean()
        wanted = torch.tensor(worked.value, dtype=torch.float64)
        assert_close(value, wanted, rtol=0, atol=worked.tolerance)
        if worked.gradient is not None:
            slope = torch.tensor(worked.gradient, dtype=torch.float64)
            assert_close(_gradient(value, student), slope, rtol=0, atol=worked.tolerance)


def check_fixed_point(case: LossCase) -> None:
    """Where the student says what the teacher says, value and gradient are what the case and the claims promise."""
    claimed = claims_of(case.loss)
    # Draws are the teacher on average only: what holds at the teacher does not hold at each of them.
    drawn = any(isinstance(given, SampledTarget) for given in case.inputs())
    whole = not claimed.zero_at_teacher or drawn
    _require(whole or case.at_teacher == "zero", f"{case.name}: claims zero_at_teacher")
    exact = case.at_teacher == "zero" and case.slack <= ROUNDING
    _require(exact or bool(case.why), f"{case.name}: says no reason why it is not zero")
    if case.from_logits is None:
        return
    student = case.inputs()[0].requires_grad_()
    value = case(student, *case.from_logits(student.detach()))
    slope = _gradient(value, student).abs().max().item()
    if case.at_teacher == "moves":
        _require(slope > 1e-4, f"{case.name}: expected a gradient at the teacher, got {slope}")
        return
    _require(slope < case.slack, f"{case.name}: expected no gradient at the teacher, got {slope}")
    largest = value.abs().max().item()
    zero = case.at_teacher == "zero"
    _require(
        (largest < case.slack) == zero, f"{case.name}: value {largest} at the teacher, said to be {case.at_teacher}"
    )


def check_teacher_gradient(case: LossCase) -> None:
    """No gradient flows to the teacher's side; of a mutual loss, to both sides. A variance is the student's own."""
    if case.from_logits is None:
        return
    student, *args = case.inputs()
    names = list(inspect.signature(case.loss).parameters)[1:]
    leaves: list[Tensor] = []

    def leaf(given: Tensor) -> Tensor:
        leaves.append(given.detach().clone().requires_grad_())
        return leaves[-1]

    others = (given if name == VARIANCE else _change(given, leaf) for name, given in zip(names, args, strict=False))
    value = case(student.requires_grad_(), *others)
    mutual = claims_of(case.loss).mutual
    if not leaves:  # classes alone have no gradient to speak of
        return
    for slope in torch.autograd.grad(value.sum(), leaves, allow_unused=True):
        _require(not mutual or slope is not None, f"{case.name}: claims to be mutual, and one side has no gradient")
        _require(mutual or slope is None, f"{case.name}: a gradient reached the teacher")


def check_rows(case: LossCase) -> None:
    """Permuting the batch permutes the values; splitting it changes none. Of sequences nothing is asked."""
    if case.sequential:
        return
    student, *args = case.inputs()
    value = case(student, *args)
    order = torch.arange(len(student)).reshape(-1, case.together).flip(0).flatten()
    turned = case(student[order], *(take(given, order) for given in args))
    if case.relational:
        assert_close(turned, value)
        return
    assert_close(turned, value[order], rtol=1e-14, atol=1e-14)
    cuts = (torch.arange(1), torch.arange(1, len(student)))
    parts = [case(student[cut], *(take(given, cut) for given in args)) for cut in cuts]
    assert_close(torch.cat(parts), value, rtol=1e-14, atol=1e-14)


def check_shift(case: LossCase) -> None:
    """A constant added to all logits of a position, on either side, changes nothing."""
    if not case.shift_invariant:
        return
    student, *args = case.inputs()
    offsets = torch.linspace(-7, 7, len(student), dtype=student.dtype).unsqueeze(-1)
    assert_close(case(student + offsets, *args), case(student, *args), rtol=1e-11, atol=1e-11)
    if case.from_logits is not None:
        teacher = student.flip(0)
        wanted = case(student, *case.from_logits(teacher))
        assert_close(case(student, *case.from_logits(teacher + offsets)), wanted, rtol=1e-11, atol=1e-11)


def check_precision(case: LossCase) -> None:
    """Half-precision inputs give float32 values as exact as float32 allows, also under autocast."""
    student, *args = case.inputs()
    for dtype in (torch.float16, torch.bfloat16):
        low = student.to(dtype)
        narrow = [_change(given, lambda part: part.to(dtype)) for given in args]  # noqa: B023 (called at once)
        wide = [_change(given, Tensor.double) for given in narrow]
        wanted = case(low.double(), *wide).float()
        value = case(low, *narrow)
        _require(value.dtype == torch.float32, f"{case.name}: expected float32 from {dtype}, got {value.dtype}")
        assert_close(value, wanted, rtol=2e-5, atol=2e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_close(case(low, *narrow), wanted, rtol=2e-5, atol=2e-5)


def check_extremes(case: LossCase) -> None:
    """Extreme inputs (logits of +-10,000) on either or both sides give finite values and gradients, in float32 and float64."""
    student, *args = case.inputs()
    for dtype in (torch.float32, torch.float64):
        wild = case.wild(student).to(dtype)
        _finite(case, wild, tuple(_change(given, lambda part: part.to(dtype)) for given in args), "a wild student")  # noqa: B023
        if case.from_logits is not None:
            _finite(case, student.to(dtype), case.from_logits(wild.flip(0)), "a wild teacher")
            _finite(case, wild, case.from_logits(wild.flip(0)), "both wild")
            _finite(case, wild, case.from_logits(wild), "both wild and equal")


def check_ruled_out(case: LossCase) -> None:
    """A class of logit -inf in the teacher, or in both, gives finite values and gradients; infinity where that is claimed."""
    if case.from_logits is None or not case.ruled_out:
        return
    student = case.inputs()[0]
    teacher = student.flip(0).clone()
    teacher[:, 0] = -math.inf
    args = case.from_logits(teacher)
    kept = any(isinstance(arg, SparseTarget) for arg in args)  # a class ruled out is in the tail
    if claims_of(case.loss).wants_full_support(case.hyper) and not kept:
        _require(bool((case(student, *args) == math.inf).all()), f"{case.name}: expected infinity")
    else:
        _finite(case, student, args, "a class ruled out by the teacher")
    both = student.clone()
    both[:, 0] = -math.inf
    _finite(case, both, args, "a class ruled out by both")


def check_inputs(case: LossCase) -> None:
    """Inputs need not be contiguous, and none is written to."""
    student, *args = case.inputs()
    value = case(student, *args)
    for now, before in zip((student, *args), case.inputs(), strict=True):
        _require(repr(as_arrays(now)) == repr(as_arrays(before)), f"{case.name}: an input was written to")
    strided = student.mT.contiguous().mT
    _require(not strided.is_contiguous(), f"{case.name}: make must give at least two rows and classes")
    assert_close(case(strided, *args), value, rtol=1e-14, atol=1e-14)


def check_claims(case: LossCase) -> None:
    """`t_squared` multiplies by T^2; a loss that does not honour sparse targets, draws or classes alone refuses them."""
    claimed = claims_of(case.loss)
    student, *args = case.inputs()
    if claimed.t_squared:
        plain, squared = case(student, *args, t_squared=False), case(student, *args, t_squared=True)
        assert_close(squared, plain * case.hyper["temperature"] ** 2)
    if case.from_logits is not None and not claimed.sparse:
        sparse = SparseTarget.from_logits(student, 2, (float(case.hyper.get("temperature", 1.0)),))
        _refused(case, student, sparse, args[1:], "a sparse target")
    if case.from_logits is not None and isinstance(args[0], DenseTarget | SparseTarget):
        temperature = float(case.hyper.get("temperature", 1.0))
        if not claimed.hard:
            _refused(case, student, ClassTarget(student.argmax(-1), student.shape[-1]), args[1:], "classes alone")
        drawn = SampledTarget(
            student.topk(1).indices, torch.ones_like(student[..., :1]), temperature, student.shape[-1]
        )
        if not claimed.linear:
            _refused(case, student, drawn, args[1:], "draws")
            return
        value = case(student, drawn, *args[1:])
        _require(value.shape == student.shape[:-1], f"{case.name}: expected one value per position of draws")
        _refused(case, student, replace(drawn, temperature=temperature + 1), args[1:], "draws at another temperature")


def _refused(case: LossCase, student: Tensor, target: Any, rest: Sequence[Any], what: str) -> None:
    try:
        case(student, target, *rest)
    except FidelityError:
        return
    raise AssertionError(f"{case.name}: expected FidelityError for {what}")


CHECKS: dict[str, Callable[[LossCase], None]] = {
    "shape": check_shape,
    "gradient": check_gradient,
    "reference": check_reference,
    "worked": check_worked,
    "fixed_point": check_fixed_point,
    "teacher_gradient": check_teacher_gradient,
    "rows": check_rows,
    "shift": check_shift,
    "precision": check_precision,
    "extremes": check_extremes,
    "ruled_out": check_ruled_out,
    "inputs": check_inputs,
    "claims": check_claims,
}
"""The promises one by one, so that a test can be parametrised over them."""


def check_loss(case: LossCase) -> None:
    """Hold a loss to every promise of the contract.

    Raises:
        AssertionError: naming the case and the promise.
    """
    for check in CHECKS.values():
        check(case)
