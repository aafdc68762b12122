"""Random sampling of classes in place of the largest ones: weights that keep the estimate unbiased, and what it costs."""

from __future__ import annotations

import torch
from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected

__all__ = ["expected_unique", "importance_weights"]


def importance_weights(teacher_probabilities: Tensor, proposal_probabilities: Tensor, draws: Tensor) -> Tensor:
    r"""Weights that make classes drawn from a proposal an unbiased estimate of the teacher.

    w_n = t_(d_n) / (q_(d_n) N) for draws d_1 ... d_N with replacement from q: the expectation of sum_n w_n onehot(d_n)
    is t. Dividing the weights by their sum, as is often done, loses this.

    Args:
        teacher_probabilities: t, shape [..., K].
        proposal_probabilities: q, above 0 wherever t is, shape [..., K]; need not add to 1 beyond rounding.
        draws: Classes drawn from q, int64, shape [..., N].

    Returns:
        Shape [..., N], without gradient.

    Raises:
        ConfigError: if the shapes do not match.

    >>> teacher = torch.tensor([0.5, 0.3, 0.2])
    >>> importance_weights(teacher, torch.full((3,), 1 / 3), torch.tensor([0, 2]))
    tensor([0.7500, 0.3000])

    Source: Anshumann et al. 2025 (arXiv 2503.16870); with q = t every weight is 1 / N.
    """
    same = teacher_probabilities.shape == proposal_probabilities.shape
    if not same or draws.shape[:-1] != teacher_probabilities.shape[:-1] or draws.shape[-1] == 0:
        got = f"{list(proposal_probabilities.shape)} and draws {list(draws.shape)}"
        wanted = f"of the teacher's shape {list(teacher_probabilities.shape)}, with draws at the same positions"
        raise ConfigError(expected("proposal_probabilities", wanted, got, where="importance_weights"))
    t = teacher_probabilities.detach().gather(-1, draws)
    q = proposal_probabilities.detach().gather(-1, draws)
    return t / (q * draws.shape[-1])


def expected_unique(probabilities: Tensor, n: int) -> Tensor:
    r"""Expected number of different classes among `n` draws with replacement: what a sampled record has to store.

    sum_k 1 - (1 - t_k)^n

    Args:
        probabilities: t, shape [..., K].
        n: Draws, at least 1.

    Returns:
        Shape [...].

    >>> expected_unique(torch.tensor([0.5, 0.5]), 2)
    tensor(1.5000)
    """
    at_least(n, 1, "n", where="expected_unique")
    return -torch.expm1(n * torch.log1p(-probabilities)).sum(-1)
