"""Features matched sample by sample: maps or vectors of a layer, or what a reduction keeps of them."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.losses._features import feature_pair, per_sample, squared
from bookkd.losses.claims import claims
from bookkd.losses.reductions import FLOOR, channel_mean, flat_positions, product, unit
from bookkd.losses.targets import Target

__all__ = ["feature_l1", "feature_mse", "hcl", "nst", "vid"]


@claims()
def feature_mse(student: Tensor, teacher: Target | Tensor) -> Tensor:
    r"""Mean squared difference of features: one loss with a name for each thing that it is given.

    mean (s - t)^2 over all but the batch. What is compared decides what is learnt:

    | given | it is |
    |---|---|
    | maps behind a connector | FitNets; SimKD, where the connector's output is classified by the teacher's own classifier |
    | `attention_map` of both | AT, attention transfer |
    | `channel_mean` of both | channel distillation, part of CCSKD |
    | `fsp_matrix` of two layers of both | FSP |
    | `channel_gram` of both, `spatial_gram` of both | the two parts of CSC, factorised; the first alone is ICKD |

    Args:
        student: Features, shape [batch, ...].
        teacher: Likewise; maps of another height and width are averaged to the smaller, anything else must agree.

    Returns:
        One value per sample, shape [batch].

    Raises:
        FidelityError: for a target of classes.
        ConfigError: if the shapes do not fit.

    >>> import torch
    >>> feature_mse(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 4.0], [0.0, 0.0]]))
    tensor([2., 0.])

    Source: Romero et al., "FitNets", ICLR 2015 (arXiv 1412.6550); Zagoruyko and Komodakis, ICLR 2017 (arXiv 1612.03928); Yim et al.,
    CVPR 2017; Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022 (arXiv 2203.14001).
    """
    s, t = feature_pair(student, teacher, "feature_mse")
    return per_sample(squared(s, t))


@claims()
def feature_l1(student: Tensor, teacher: Target | Tensor) -> Tensor:
    r"""Mean absolute difference of features; of the `attention_map` of factors it is factor transfer (FT).

    mean |s - t| over all but the batch. In FT the factors are the outputs of a translator on the student's map, and of a paraphraser
    on the teacher's, an auto-encoder that was trained before.

    Args:
        student: As in `feature_mse`.
        teacher: As in `feature_mse`.

    Returns:
        One value per sample, shape [batch].

    Raises:
        FidelityError: As `feature_mse`.
        ConfigError: As `feature_mse`.

    >>> import torch
    >>> feature_l1(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
    tensor([1.])

    Source: Kim, Park and Kwak, "Paraphrasing Complex Network", NeurIPS 2018 (arXiv 1802.04977), as in RepDistiller.
    """
    s, t = feature_pair(student, teacher, "feature_l1")
    return per_sample((s - t).abs())


@claims()
def nst(student: Tensor, teacher: Target | Tensor) -> Tensor:
    r"""Neuron selectivity transfer: the patterns of channels as two samples of one distribution.

    MMD^2 = mean k(t_c, t_c') + mean k(s_c, s_c') - 2 mean k(s_c, t_c'), with k(a, b) = (a'b)^2 and each channel a vector of norm 1
    over the positions. It equals ||S'S / c_S - T'T / c_T||_F^2, with one channel a row: where positions are fewer than channels it is
    worked out so. A factor of a channel, and the order of channels, change nothing.

    Args:
        student: Maps, shape [batch, c_S, *positions].
        teacher: Maps of the same positions; another height and width are averaged to the smaller.

    Returns:
        One value per sample, shape [batch], at least 0 up to rounding.

    Raises:
        FidelityError: for a target of classes.
        ConfigError: if the shapes do not fit.

    >>> import torch
    >>> nst(torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]]), torch.tensor([[[[2.0, 0.0]], [[3.0, 0.0]]]]))
    tensor([0.5000])

    Source: Huang and Wang, "Like What You Like", 2017 (arXiv 1707.01219), polynomial kernel, as in RepDistiller.
    """
    s, t = feature_pair(student, teacher, "nst", "positions")
    if s.ndim < 3:
        raise ConfigError(
            expected("student", "maps [batch, channels, *positions]", f"shape {list(s.shape)}", where="nst")
        )
    s, t = flat_positions(s), flat_positions(t)
    if s.shape[2] <= max(s.shape[1], t.shape[1]):
        moments = [product(rows.mT, rows) / rows.shape[1] for rows in (unit(s, 2), unit(t, 2))]
        return (moments[0] - moments[1]).square().sum((1, 2))
    # Products first and norms, their diagonals, afterwards: the maps themselves are only read.
    alike, other = product(s, s.mT), product(t, t.mT)
    a, b = _reciprocal_norms(alike), _reciprocal_norms(other)

    def kernel(products: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return (products * left.unsqueeze(2) * right.unsqueeze(1)).square().mean((1, 2))

    return kernel(other, b, b) + kernel(alike, a, a) - 2 * kernel(product(s, t.mT), a, b)


def _reciprocal_norms(products: Tensor) -> Tensor:
    """Return 1 / norm of each channel, from the products of all, as `unit` has it: 0 of a channel of zeros."""
    squares = products.diagonal(dim1=1, dim2=2)
    return (squares + FLOOR).rsqrt().masked_fill(squares == 0, 0)


@claims(zero_at_teacher=False, why_not="it is a log-likelihood: at the teacher half the mean log variance is left")
def vid(student: Tensor, teacher: Target | Tensor, variance: Tensor | None = None) -> Tensor:
    r"""Variational information distillation: negative log-likelihood of the teacher's features under the student's normal distribution.

    mean (log v + (m - t)^2 / v) / 2 over all but the batch, up to a constant, with the mean m and the variance v of a connector; in
    the published method v is one trained number a channel, softplus(r_c) + 1e-5, begun at 5. It can be negative.

    Args:
        student: m, shape [batch, channels, ...].
        teacher: Features, likewise; maps of another height and width are averaged to the smaller.
        variance: v of each channel, above 0, shape [batch, channels]; 1 where it is not given. It keeps its gradient.

    Returns:
        One value per sample, shape [batch].

    Raises:
        DataError: if a variance is not above 0, on the processor; elsewhere the value is not finite then.
        FidelityError: for a target of classes.
        ConfigError: if the shapes do not fit.

    >>> import torch
    >>> vid(torch.zeros(1, 3, 2), torch.zeros(1, 3, 2), torch.full((1, 3), 5.0))
    tensor([0.8047])

    Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019 (arXiv 1904.05835), equation 6.
    """
    mean, given = feature_pair(student, teacher, "vid")
    # One variance a channel: the mean over its positions first, so that no tensor of the features' size is divided.
    error = squared(mean, given)
    error = error if error.ndim == 2 else channel_mean(error)
    if variance is None:
        return error.mean(1) / 2
    if variance.shape != error.shape or not variance.is_floating_point():
        got = f"{variance.dtype} of shape {list(variance.shape)}"
        raise ConfigError(expected("variance", f"one number a channel, {list(error.shape)}", got, where="vid"))
    v = variance.to(error.dtype)
    if v.device.type == "cpu" and not bool((v > 0).all()):  # elsewhere it would wait for the device to know
        raise DataError(expected("variance", "above 0", float(v.detach().min()), where="vid"))
    return (v.log() + error / v).mean(1) / 2


@claims()
def hcl(student: Tensor, teacher: Target | Tensor) -> Tensor:
    r"""Hierarchical context loss: squared error of maps, and of their means over coarser and coarser grids.

    [mse(s, t) + sum_l 2^{-k} mse(pool_l s, pool_l t)] / [1 + sum_l 2^{-k}], over those l of 4, 2, 1 that are below the height, the
    k-th of them with weight 2^{-k}.

    Args:
        student: Maps, shape [batch, channels, height, width].
        teacher: Likewise; another height and width are averaged to the smaller.

    Returns:
        One value per sample, shape [batch].

    Raises:
        FidelityError: for a target of classes.
        ConfigError: if the shapes do not fit.

    >>> import torch
    >>> hcl(torch.full((1, 2, 8, 8), 0.3), torch.zeros(1, 2, 8, 8))
    tensor([0.0900])

    Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021 (arXiv 2104.09044), and its released code.
    """
    s, t = feature_pair(student, teacher, "hcl")
    if s.ndim != 4:
        wish = "maps [batch, channels, height, width]"
        raise ConfigError(expected("student", wish, f"shape {list(s.shape)}", where="hcl"))
    value, weight, whole = per_sample(squared(s, t)), 1.0, 1.0
    # Means are linear: those of the difference are the difference of those; and where grids nest, means of means are enough.
    nested = all(length % 4 == 0 for length in s.shape[2:])
    difference = s - t
    for size in (4, 2, 1):
        if size < s.shape[2]:
            pooled = adaptive_avg_pool2d(difference, size)
            difference = pooled if nested else difference
            weight /= 2
            whole += weight
            value = value + weight * per_sample(squared(pooled))
    return value / whole
