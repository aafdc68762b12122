"""What a loss promises about itself; the contract suite in `bookkd.testing.losses` holds it to every word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import Tensor

from bookkd.core.errors import ConfigError, expected
from bookkd.core.names import choose

__all__ = ["Claims", "Loss", "claims", "claims_of"]

Loss = Callable[..., Tensor]
"""`loss(student, [teacher,] *batch entries, **hyper-parameters)`."""

_AnyLoss = TypeVar("_AnyLoss", bound=Loss)


@dataclass(frozen=True)
class Claims:
    """What is true of a loss for every input.

    Args:
        scope: "position": one value per position, never reduced, of features one per sample; "sequence": likewise, but a value may depend on all positions of its
            own sequence; "batch": one scalar that relates the rows of a batch.
        t_squared: Whether it takes `t_squared`, which multiplies the value by T^2 so that gradients keep their size in T.
        sparse: Whether it honours a `SparseTarget`.
        zero_at_teacher: Whether value and gradient are 0 where the student says what the teacher says.
        why_not: The reason, where `zero_at_teacher` is False.
        full_support: Whether it is infinite where the teacher rules out a class that the student does not; a function of the
            hyper-parameters where these decide it.
        linear: Whether it is linear in the teacher's distribution, up to a constant, and honours a `SampledTarget`.
        hard: Whether it looks at the teacher's likeliest class alone, and so honours a `ClassTarget`.
        mutual: Whether both sides are the student's own, so that a gradient flows to the second, too.
        other_classes: Whether student and teacher may have different classes.

    >>> Claims(zero_at_teacher=False)
    Traceback (most recent call last):
    ...
    bookkd.core.errors.ConfigError: Expected `why_not` to be the reason why the loss is not zero at the teacher, got ''.
    """

    scope: Literal["position", "sequence", "batch"] = "position"
    t_squared: bool = False
    sparse: bool = False
    zero_at_teacher: bool = True
    why_not: str = ""
    full_support: bool | Callable[[Mapping[str, Any]], bool] = False
    linear: bool = False
    hard: bool = False
    mutual: bool = False
    other_classes: bool = False

    def __post_init__(self) -> None:
        choose(self.scope, ("position", "sequence", "batch"), "scope", where="claims of a loss")
        if not self.zero_at_teacher and not self.why_not:
            raise ConfigError(expected("why_not", "the reason why the loss is not zero at the teacher", self.why_not))

    def wants_full_support(self, hyper: Mapping[str, Any]) -> bool:
        """Say whether the teacher must give every class some probability, under these hyper-parameters."""
        return self.full_support(hyper) if callable(self.full_support) else self.full_support


UNDECLARED = Claims(zero_at_teacher=False, why_not="the loss declares nothing")


def claims(
    *,
    scope: Literal["position", "sequence", "batch"] = "position",
    t_squared: bool = False,
    sparse: bool = False,
    zero_at_teacher: bool = True,
    why_not: str = "",
    full_support: bool | Callable[[Mapping[str, Any]], bool] = False,
    linear: bool = False,
    hard: bool = False,
    mutual: bool = False,
    other_classes: bool = False,
) -> Callable[[_AnyLoss], _AnyLoss]:
    """Attach `Claims` to a loss.

    Args:
        scope: See `Claims`.
        t_squared: See `Claims`.
        sparse: See `Claims`.
        zero_at_teacher: See `Claims`.
        why_not: See `Claims`.
        full_support: See `Claims`.
        linear: See `Claims`.
        hard: See `Claims`.
        mutual: See `Claims`.
        other_classes: See `Claims`.

    >>> @claims(scope="batch")
    ... def relational(student, teacher):
    ...     return (student - teacher).square().mean()
    >>> claims_of(relational).scope
    'batch'
    """
    declared = Claims(
        scope, t_squared, sparse, zero_at_teacher, why_not, full_support, linear, hard, mutual, other_classes
    )

    def attach(loss: _AnyLoss) -> _AnyLoss:
        loss.claims = declared  # type: ignore[attr-defined]
        return loss

    return attach


def claims_of(loss: Loss) -> Claims:
    """Return what `loss` declares; a loss that declares nothing is taken as pointwise and for dense targets only.

    >>> claims_of(lambda student, teacher: student).sparse
    False
    """
    found = getattr(loss, "claims", UNDECLARED)
    return found if isinstance(found, Claims) else UNDECLARED
