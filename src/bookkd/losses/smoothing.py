"""Targets made of labels: how much of each label's certainty is given to the other classes."""

from __future__ import annotations

from torch import Tensor

from bookkd.core.errors import ConfigError, expected

__all__ = ["beta_targets"]


def beta_targets(log_probabilities: Tensor, labels: Tensor, draws: Tensor) -> Tensor:
    r"""Smooth each label by a draw whose rank is that of its confidence within the batch.

    With c_i = p_i[y_i]: the r-th least confident position gets the r-th smallest draw b; the target is b on the true class
    and (1 - b) / (K - 1) on every other.

    Args:
        log_probabilities: log p, shape [n, K].
        labels: Classes 0 to K - 1, shape [n].
        draws: 0 to 1, in any order, shape [n]; from Beta(a, 1) in the published method.

    Returns:
        Probabilities, shape [n, K]; every row adds up to 1.

    Raises:
        ConfigError: if shapes do not match.

    >>> import torch
    >>> p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> beta_targets(p.log(), torch.tensor([0, 0, 0]), torch.tensor([0.97, 0.55, 0.80]))[:, 0]
    tensor([0.9700, 0.5500, 0.8000])

    Source: Zhang and Sabuncu, "Self-Distillation as Instance-Specific Label Smoothing", NeurIPS 2020 (arXiv 2006.05065), and
    its released code.
    """
    if draws.shape != labels.shape or log_probabilities.shape[:-1] != labels.shape or labels.ndim != 1:
        got = f"{list(log_probabilities.shape)}, {list(labels.shape)} and {list(draws.shape)}"
        raise ConfigError(expected("shapes", "[n, K], [n] and [n]", got, where="beta_targets"))
    n_classes = log_probabilities.shape[-1]
    places = labels.unsqueeze(-1)
    order = log_probabilities.gather(-1, places).squeeze(-1).argsort(stable=True)
    ranked = draws.clone()
    ranked[order] = draws.sort().values
    rest = ((1 - ranked) / (n_classes - 1)).unsqueeze(-1)
    return rest.expand(-1, n_classes).scatter(-1, places, ranked.unsqueeze(-1))
