"""Relations between the samples of a batch, rebuilt from the features of each: no N x N matrix is ever stored."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from bookkd.core.check import at_least, positive
from bookkd.core.errors import ConfigError, expected
from bookkd.losses._angles import angles_apart
from bookkd.losses._features import feature_pair
from bookkd.losses.claims import claims
from bookkd.losses.reductions import product, unit, without_scale
from bookkd.losses.targets import Target

__all__ = ["cc_kernel", "cc_neighbours", "pkt", "rkd_angle", "rkd_distance", "similarity_preserving"]

_EPS = 1e-7  # of the released code of PKT


@claims(scope="batch")
def similarity_preserving(student: Tensor, teacher: Target | Tensor) -> Tensor:
    r"""Similarity-preserving distillation (SP): which samples excite a layer alike.

    ||G_S - G_T||_F^2 / N^2, with G = F F' of the flattened features and each row of G of norm 1. A factor of all features changes
    nothing; widths and sizes of both sides may differ.

    Args:
        student: Features of a batch, shape [N, ...].
        teacher: Features of the same samples, shape [N, ...].

    Returns:
        A scalar, at least 0.

    Raises:
        FidelityError: for a target of classes.
        ConfigError: if the rows do not match.

    >>> student, teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0], [2.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0], [3.0, 0.0]])
    >>> similarity_preserving(student, teacher)
    tensor(0.2025)

    Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019 (arXiv 1907.09682), equation 4.
    """

    def gram(features: Tensor) -> Tensor:
        flat = without_scale(features.flatten(1), (0, 1))
        return unit(product(flat, flat.mT), 1)

    s, t = feature_pair(student, teacher, "similarity_preserving", "rows")
    return (gram(s) - gram(t)).square().mean()


@claims(scope="batch")
def rkd_distance(student: Tensor, teacher: Target | Tensor) -> Tensor:
    r"""Relational distillation, distances: how far apart samples are, in units of the mean distance.

    mean over all N^2 pairs of smooth_l1(d_S,ij / mean d_S, d_T,ij / mean d_T), d the Euclidean distances, their means over those
    above 0. A shift, rotation or factor of all features changes nothing.

    Args:
        student: Features of a batch, shape [N, ...].
        teacher: Features of the same samples, shape [N, ...]; widths may differ.

    Returns:
        A scalar, at least 0.

    Raises:
        FidelityError: for a target of classes.
        ConfigError: if the rows do not match.

    >>> student, teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0], [2.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0], [3.0, 0.0]])
    >>> rkd_distance(student, teacher)
    tensor(0.1154)

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068), equations 5 to 7, and its released code.
    """
    s, t = feature_pair(student, teacher, "rkd_distance", "rows")
    return smooth_l1_loss(_distances(s), _distances(t))


@claims(scope="batch")
def rkd_angle(student: Tensor, teacher: Target | Tensor) -> Tensor:
    r"""Relational distillation, angles: the cosine at each sample between any two others.

    mean over all N^3 triples of smooth_l1(e_S,ij . e_S,ik, e_T,ij . e_T,ik), with e_ij = (f_j - f_i) / ||f_j - f_i||, and 0 for
    equal samples. A shift, rotation or factor of all features changes nothing.
    Work grows as N^3 d, memory does not: a few samples are worked out at once, with their gradient, in 1 MiB of float32 for each
    step on a processor and 64 MiB elsewhere, or N max(N, d) numbers where these are more. Transforms of `torch.func` do not take it.

    Args:
        student: Features of a batch, shape [N, ...].
        teacher: Features of the same samples, shape [N, ...]; widths may differ.

    Returns:
        A scalar, at least 0.

    Raises:
        FidelityError: for a target of classes.
        ConfigError: if the rows do not match.

    >>> student, teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0], [2.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0], [3.0, 0.0]])
    >>> rkd_angle(student, teacher)
    tensor(0.1201)

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019 (arXiv 1904.05068), equations 8 and 9, and its released code.
    """
    s, t = feature_pair(student, teacher, "rkd_angle", "rows")
    return angles_apart(s.flatten(1), t.flatten(1))


@claims(scope="batch")
def pkt(student: Tensor, teacher: Target | Tensor) -> Tensor:
    r"""Probabilistic knowledge transfer (PKT): whom each sample would take for its neighbour.

    mean over all N^2 pairs of k_T log((k_T + e) / (k_S + e)), with k_ij = (cos(f_i, f_j) + 1) / 2, every row divided by its sum, and
    e = 1e-7. A factor of a sample changes nothing; the sum over a row, as a divergence has it, is N times the value.

    Args:
        student: Features of a batch, shape [N, ...].
        teacher: Features of the same samples, shape [N, ...]; widths may differ.

    Returns:
        A scalar.

    Raises:
        FidelityError: for a target of classes.
        ConfigError: if the rows do not match.

    >>> student, teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0], [2.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0], [3.0, 0.0]])
    >>> pkt(student, teacher)
    tensor(0.0191)

    Source: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018 (arXiv 1803.10837),
    and its released code.
    """

    def neighbours(features: Tensor) -> Tensor:
        close = (_cosines(features) + 1).clamp_min(0)  # rounding may go below -1
        return close / close.sum(1, keepdim=True)

    s, t = feature_pair(student, teacher, "pkt", "rows")
    p, q = neighbours(t), neighbours(s)
    return (p * ((p + _EPS) / (q + _EPS)).log()).mean()


@claims(scope="batch", mutual=True)
def cc_neighbours(student: Tensor, teacher: Target | Tensor) -> Tensor:
    r"""Correlation congruence as benchmarks have it: where neighbours in the batch are wrong together.

    mean_i sum_d |s_i - t_i|_d |s_i+1 - t_i+1|_d, over the N - 1 pairs of neighbours; so it depends on the order of the batch, and its
    gradient is 0 where one of a pair is right. This is not the kernel of the paper, see `cc_kernel`.

    Args:
        student: Embedded features of a batch, shape [N, d], N at least 2.
        teacher: Embedded features of the same samples, shape [N, d]. An embedding that is trained keeps its gradient.

    Returns:
        A scalar, at least 0.

    Raises:
        FidelityError: for a target of classes.
        ConfigError: if the shapes do not match, or there is one row alone.

    >>> student, teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0], [2.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0], [3.0, 0.0]])
    >>> cc_neighbours(student, teacher)
    tensor(2.)

    Source: `Correlation` of HobbitLong/RepDistiller, there under the name of Peng et al. 2019.
    """
    s, t = feature_pair(student, teacher, "cc_neighbours", mutual=True)
    if len(s) < 2:
        raise ConfigError(expected("student", "at least 2 rows", f"shape {list(s.shape)}", where="cc_neighbours"))
    apart = (s - t).abs().flatten(1)
    return (apart[:-1] * apart[1:]).sum(1).mean()


@claims(scope="batch", mutual=True)
def cc_kernel(student: Tensor, teacher: Target | Tensor, *, gamma: float, order: int) -> Tensor:
    r"""Correlation congruence: how alike samples are, by a Gaussian kernel of their directions.

    mean (K_S - K_T)^2 over all N^2 pairs, K_ij = exp(-2g) sum_{p=0..P} (2g)^p / p! cos(f_i, f_j)^p: the kernel exp(-g ||a - b||^2) of
    vectors of norm 1, as a Taylor series of order P.

    Args:
        student: Features of a batch, shape [N, ...].
        teacher: Features of the same samples, shape [N, ...]; widths may differ. An embedding that is trained keeps its gradient.
        gamma: g, above 0.
        order: P, at least 1.

    Returns:
        A scalar, at least 0.

    Raises:
        FidelityError: for a target of classes.
        ConfigError: if the rows do not match or a value is out of range.

    >>> student, teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0], [2.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0], [3.0, 0.0]])
    >>> cc_kernel(student, teacher, gamma=0.4, order=2)
    tensor(0.0701)

    Source: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019 (arXiv 1904.01802), equations 7 to 9.
    """
    positive(gamma, "gamma", where="cc_kernel")
    at_least(order, 1, "order", where="cc_kernel")

    def kernel(features: Tensor) -> Tensor:
        cosines = _cosines(features)
        value = torch.zeros_like(cosines)
        for power in reversed(range(order + 1)):
            value = value * cosines + (2 * gamma) ** power / math.factorial(power)
        return math.exp(-2 * gamma) * value

    s, t = feature_pair(student, teacher, "cc_kernel", "rows", mutual=True)
    return (kernel(s) - kernel(t)).square().mean()


def _cosines(features: Tensor) -> Tensor:
    rows = unit(features.flatten(1), 1)
    return product(rows, rows.mT)


def _distances(features: Tensor) -> Tensor:
    """Return the distances of all pairs over the mean of those above 0; no N x N x d tensor, and no gradient at distance 0."""
    flat = features.flatten(1)
    found = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    above = found > 0
    return found / (found.sum() / above.sum().clamp_min(1)).masked_fill(~above.any(), 1)
