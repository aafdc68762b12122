"""What is kept of a feature map: reductions that stored and live features pass through alike.

All take maps [batch, channels, *positions] of any floating dtype, give float32 or wider, and are differentiable; a channel or
position that is all zero has no direction, and is left zero with zero gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d, conv2d, leaky_relu

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected
from bookkd.losses.targets import computing_dtype

__all__ = [
    "FLOOR",
    "attention_map",
    "average_pool",
    "channel_gram",
    "channel_mean",
    "flat_positions",
    "fsp_matrix",
    "inverse_norm",
    "max_pool",
    "paraphrase",
    "principal",
    "product",
    "same_size",
    "spatial_gram",
    "unit",
    "without_scale",
]

FLOOR = 1e-12
"""Under the root, so that the gradient of a tiny vector's direction stays bounded."""


def unit(vectors: Tensor, dim: int) -> Tensor:
    """Return vectors of norm 1 along `dim`, x / sqrt(x'x + 1e-12); a vector of zeros stays, with zero gradient.

    >>> unit(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), -1)
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    return vectors * inverse_norm(vectors, dim)


def inverse_norm(vectors: Tensor, dim: int) -> Tensor:
    """Return 1 / sqrt(x'x + 1e-12) along `dim`, which stays as an axis of 1; 0 of a vector of zeros.

    >>> inverse_norm(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), -1)
    tensor([[0.2000],
            [0.0000]])
    """
    squares = vectors.square().sum(dim, keepdim=True)
    return (squares + FLOOR).rsqrt().masked_fill(squares == 0, 0)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b as exactly as its dtype allows: autocast would round it to 16 bits, of which differences leave few."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def flat_positions(maps: Tensor) -> Tensor:
    """Return maps [batch, channels, *positions] as [batch, channels, positions]: without a copy, whether channels come first or last in memory.

    >>> flat_positions(torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)).stride()
    (60, 1, 3)
    """
    return maps.movedim(1, -1).flatten(1, -2).mT


def same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return two batches of maps with one height and width: on each axis the larger is averaged to the smaller.

    >>> [list(maps.shape) for maps in same_size(torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 4, 4))]
    [[2, 3, 4, 4], [2, 5, 4, 4]]
    """
    if a.shape[-2:] == b.shape[-2:]:
        return a, b
    size = (min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1]))
    a, b = (maps if maps.shape[-2:] == size else adaptive_avg_pool2d(maps, size) for maps in (a, b))
    return a, b


def channel_mean(features: Tensor) -> Tensor:
    """Mean over the positions of each channel.

    Args:
        features: Maps, shape [batch, channels, *positions].

    Returns:
        Shape [batch, channels].

    Raises:
        ConfigError: if they are no maps.

    >>> channel_mean(torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]]))
    tensor([[1.5000, 0.5000]])
    """
    flat = _flat(features, "channel_mean")
    return flat.sum(2) / flat.shape[2]  # of a mean autograd would write a tensor of the maps' size


def attention_map(features: Tensor) -> Tensor:
    r"""Where a network looks: the squares of its channels, averaged, as one vector of norm 1.

    a / ||a||, with a = mean_c F_c^2, flattened. A factor of the whole map changes nothing, as long as squares stay within the dtype:
    magnitudes of 1e-18 to 1e18 in float32.

    Args:
        features: As in `channel_mean`.

    Returns:
        Shape [batch, positions].

    Raises:
        ConfigError: if they are no maps.

    >>> attention_map(torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]]))
    tensor([[0.1961, 0.9806]])

    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928), p = 2, as in RepDistiller:
    the mean in place of the sum over channels, which the norm takes away.
    """
    return unit(without_scale(_flat(features, "attention_map").square().mean(1), 1), 1)


def channel_gram(features: Tensor) -> Tensor:
    """Products of the channels, each a vector of norm 1 over the positions: which channels go together.

    Args:
        features: As in `channel_mean`.

    Returns:
        Shape [batch, channels, channels], with 1 on the diagonal of channels that are not all zero.

    Raises:
        ConfigError: if they are no maps.

    >>> channel_gram(torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]]))
    tensor([[[1.0000, 0.8944],
             [0.8944, 1.0000]]])
    """
    rows = unit(_flat(features, "channel_gram"), 2)
    return product(rows, rows.mT)


def spatial_gram(features: Tensor) -> Tensor:
    """Products of the positions, each a vector of norm 1 over the channels: which positions are alike.

    Args:
        features: As in `channel_mean`. Pool large maps first: 128 x 256 positions have a thousand million products.

    Returns:
        Shape [batch, positions, positions].

    Raises:
        ConfigError: if they are no maps.

    >>> spatial_gram(torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]]))
    tensor([[[1.0000, 0.8944],
             [0.8944, 1.0000]]])
    """
    columns = unit(_flat(features, "spatial_gram"), 1)
    return product(columns.mT, columns)


def fsp_matrix(first: Tensor, second: Tensor) -> Tensor:
    r"""Flow between two layers: products of their channels, averaged over the positions.

    G = (1 / hw) sum_x F^a_x F^b_x'. Unlike a gram it keeps the scale.

    Args:
        first: Maps of one layer, shape [batch, c_a, *positions].
        second: Maps of a later one, shape [batch, c_b, *positions]; of two sizes the larger is averaged to the smaller.

    Returns:
        Shape [batch, c_a, c_b].

    Raises:
        ConfigError: if they are no maps of one batch and size.

    >>> fsp_matrix(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[1.0, 1.0]], [[1.0, 2.0]]]]))
    tensor([[[1.5000, 2.5000]]])

    Source: Yim et al., "A Gift from Knowledge Distillation", CVPR 2017; it takes the largest of each cell where sizes differ,
    we take the mean, as RepDistiller does.
    """
    if first.ndim == second.ndim == 4:
        first, second = same_size(first, second)
    a, b = _flat(first, "fsp_matrix"), _flat(second, "fsp_matrix")
    if (len(a), a.shape[2]) != (len(b), b.shape[2]):
        got, wish = f"shape {list(second.shape)}", f"of the first's batch and positions, {list(first.shape)}"
        raise ConfigError(expected("second", wish, got, where="fsp_matrix"))
    dtype = computing_dtype(a.dtype, b.dtype)
    return product(a.to(dtype), b.to(dtype).mT) / a.shape[2]


def average_pool(features: Tensor, *, size: int) -> Tensor:
    """Mean over each cell of a grid.

    Args:
        features: Maps, shape [batch, channels, height, width].
        size: Cells along each side, at least 1.

    Returns:
        Shape [batch, channels, size, size]; of fewer positions along an axis, as many as these are: none is repeated.

    Raises:
        ConfigError: if they are no maps of two dimensions, or the size is below 1.

    >>> average_pool(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), size=1)
    tensor([[[[3.]]]])
    """
    maps = _plane(features, size, "average_pool")
    return adaptive_avg_pool2d(maps, _grid(maps, size))


def max_pool(features: Tensor, *, size: int) -> Tensor:
    """Largest value of each cell of a grid.

    Args:
        features: As in `average_pool`.
        size: As in `average_pool`.

    Returns:
        Shape [batch, channels, size, size]; of fewer positions along an axis, as many as these are: none is repeated.

    Raises:
        ConfigError: As `average_pool`.

    >>> max_pool(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]]), size=1)
    tensor([[[[6.]]]])
    """
    maps = _plane(features, size, "max_pool")
    return adaptive_max_pool2d(maps, _grid(maps, size))


def principal(features: Tensor, basis: Tensor) -> Tensor:
    """Coordinates along given directions of the channels: what a principal component analysis keeps.

    Args:
        features: Maps or vectors, shape [batch, channels, *positions].
        basis: The mean, and below it one direction a row, shape [1 + d, channels].

    Returns:
        Shape [batch, d, *positions].

    Raises:
        ConfigError: if the channels are not those of the basis.

    >>> principal(torch.tensor([[3.0, 5.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    tensor([[4.]])
    """
    if features.ndim < 2 or basis.ndim != 2 or features.shape[1] != basis.shape[1]:
        wish = f"of shape [batch, {basis.shape[-1]}, ...], as the basis"
        raise ConfigError(expected("features", wish, f"shape {list(features.shape)}", where="principal"))
    wide = computing_dtype(features.dtype)
    moved = features.to(wide).movedim(1, -1) - basis[0].to(wide)
    return product(moved, basis[1:].to(wide).mT).movedim(-1, 1)


def paraphrase(features: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Where the factors of a map are strong: the `attention_map` of what a trained paraphraser makes of it.

    Each layer of the paraphraser is a 3 x 3 convolution that keeps the grid, and LeakyReLU of slope 0.1.

    Args:
        features: Maps, shape [batch, channels, height, width].
        weights: Of its layers, shape [out, in, 3, 3] each.
        biases: Of its layers, shape [out] each.

    Returns:
        Shape [batch, height width].

    Raises:
        ConfigError: if they are no maps of two dimensions and of the channels of the first layer.

    >>> only = torch.zeros(1, 2, 3, 3)
    >>> only[0, 0, 1, 1] = 1.0
    >>> paraphrase(torch.tensor([[[[1.0, 2.0]], [[0.0, 1.0]]]]), [only], [torch.zeros(1)])
    tensor([[0.2425, 0.9701]])

    Source: Kim, Park and Kwak, "Paraphrasing Complex Network", NeurIPS 2018 (arXiv 1802.04977), as in RepDistiller.
    """
    if features.ndim != 4 or features.shape[1] != weights[0].shape[1]:
        wish = f"maps [batch, {weights[0].shape[1]}, height, width], as the paraphraser takes"
        raise ConfigError(expected("features", wish, f"shape {list(features.shape)}", where="paraphrase"))
    factors = features.to(computing_dtype(features.dtype))
    with torch.autocast(features.device.type, enabled=False):
        for weight, bias in zip(weights, biases, strict=True):
            factors = leaky_relu(conv2d(factors, weight.to(factors), bias.to(factors), padding=1), 0.1)
    return attention_map(factors)


def without_scale(features: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Return features over their largest magnitude along `dim`, taken as a constant.

    For what does not depend on scale: neither a value nor its gradient changes, and fourth powers stay within float32.
    """
    largest = features.detach().abs().amax(dim, keepdim=True) if features.numel() else features.new_ones(())
    return features / torch.where(largest > 0, largest, 1)


def _flat(features: Tensor, where: str) -> Tensor:
    """Return maps as [batch, channels, positions], in the computing dtype."""
    if features.ndim < 3 or not features.is_floating_point():
        got = f"{features.dtype} of shape {list(features.shape)}"
        raise ConfigError(expected("features", "floating maps [batch, channels, *positions]", got, where=where))
    return flat_positions(features.to(computing_dtype(features.dtype)))


def _grid(maps: Tensor, size: int) -> tuple[int, int]:
    """Return the cells along both sides of a grid of `size`, no more than there are positions."""
    return min(size, maps.shape[2]), min(size, maps.shape[3])


def _plane(features: Tensor, size: int, where: str) -> Tensor:
    at_least(size, 1, "size", where=where)
    if features.ndim != 4 or not features.is_floating_point():
        got = f"{features.dtype} of shape {list(features.shape)}"
        raise ConfigError(expected("features", "floating maps [batch, channels, height, width]", got, where=where))
    return features.to(computing_dtype(features.dtype))
