"""What a student pays for something that it says of itself, such as the entropy of its gates."""

from __future__ import annotations

from torch import Tensor

from bookkd.losses.claims import claims

__all__ = ["penalty"]


@claims(zero_at_teacher=False, why_not="it looks at no teacher")
def penalty(student: Tensor) -> Tensor:
    r"""A number of the student's own, as it is.

    L = s: a shaped student says it beside its logits, the same for each sample of a batch; the weight of the term is its price.

    Args:
        student: s, shape [...].

    Returns:
        One value per position, shape [...].

    >>> import torch
    >>> penalty(torch.tensor([0.25, 0.25]))
    tensor([0.2500, 0.2500])

    Source: the entropy of gates in Xue et al., "KDExplainer", IJCAI 2021, arXiv 2105.04181; any regulariser of parameters.
    """
    return student
