"""The table of codecs. `within` is written from the format's text with scipy and numpy float64, not with our code."""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy.special import logsumexp, softmax

from bookkd.book import Argmax, Dense, Int8, Pooled, Raw, Sampled, SampledArray, SparseArray, TopK
from bookkd.testing.codecs import CodecCase


def logits(shape, scale=4.0):
    return lambda rng, rows: (rng.normal(size=(rows, *shape)) * scale).astype(np.float32)


def masked(shape, classes):
    def make(rng, rows):
        out = logits(shape)(rng, rows)
        out[:, classes] = -np.inf
        return out

    return make


def relative(epsilon, tiny):
    def within(original, decoded):
        finite = np.isfinite(original)
        np.testing.assert_array_equal(original[~finite], decoded[~finite])
        error = np.abs(original[finite].astype(np.float64) - decoded[finite].astype(np.float64))
        assert (error <= np.abs(original[finite]) * epsilon + tiny).all()

    return within


def equal(original, decoded):
    np.testing.assert_array_equal(original, decoded)


def assert_within_half_a_step(original, decoded):
    """255 codes, one of them for -inf: a step is the range over 254; minimum and scale are float16, rounded outwards."""
    flat = original.reshape(len(original), -1).astype(np.float64)
    out = decoded.reshape(len(original), -1).astype(np.float64)
    finite = np.isfinite(flat)
    np.testing.assert_array_equal(out[~finite], flat[~finite])
    low = np.where(finite, flat, np.inf).min(axis=1)
    high = np.where(finite, flat, -np.inf).max(axis=1)
    widest = high - low + np.abs(low) * 2**-10 + 2**-24
    step = widest / 254 * (1 + 2**-10) + 2**-24
    error = np.where(finite, np.abs(np.where(finite, flat, 0) - np.where(finite, out, 0)), 0)
    # The last term is the rounding of the decoded float32.
    assert (error <= step[:, None] / 2 + np.abs(np.where(finite, flat, 0)) * 2**-22 + 2**-26).all()


def assert_bucket(original, decoded: SparseArray, always=()):
    """Kept p = (1 - tail) softmax(kept / T) equals the softmax of all logits at the kept classes, at each promised T."""
    wide = original.astype(np.float64)
    assert decoded.n_classes == wide.shape[1]
    kept = np.take_along_axis(wide, decoded.indices.astype(np.int64), axis=1)
    k = kept.shape[1]
    others = np.delete(wide, always, axis=1)
    chosen = [
        [*row[list(always)], *sorted(rest)[::-1][: k - len(always)]] for row, rest in zip(wide, others, strict=True)
    ]
    np.testing.assert_array_equal(kept, -np.sort(-np.array(chosen), axis=1))
    assert all(set(always) <= set(row) for row in decoded.indices.tolist())
    assert (decoded.values[:, 1:] <= decoded.values[:, :-1]).all()
    assert (decoded.values[:, 0] == 0).all()
    for column, temperature in enumerate(decoded.temperatures):
        true = np.exp(kept / temperature - logsumexp(wide / temperature, axis=1, keepdims=True))
        tail = np.exp(decoded.log_tail_mass[:, column].astype(np.float64))
        np.testing.assert_allclose(tail, 1 - true.sum(axis=1), atol=1e-6)
        if k == wide.shape[1]:
            assert (tail == 0).all()
        stored = (1 - tail)[:, None] * softmax(decoded.values.astype(np.float64) / temperature, axis=1)
        # float16 moves a centred logit by 2**-11 of itself; p changes by that much over T, relatively.
        away = np.where(np.isfinite(kept), kept[:, :1] - kept, 0.0)
        drift = (away.max(axis=1, keepdims=True) * 2**-11) / temperature
        assert (np.abs(stored - true) <= true * (np.exp(2 * drift) - 1) + 1e-6).all()


def drawn(draws, temperature=1.0, spread=5.0):
    """Counts of classes that can come, and over all rows as often as their probabilities say: within `spread` deviations.

    Rare classes are counted together, so that a normal deviation means something.
    """

    def within(original, decoded: SampledArray):
        p = softmax(original.astype(np.float64) / temperature, axis=1)
        assert (decoded.draws, decoded.temperature, decoded.n_classes) == (draws, temperature, p.shape[1])
        counts = np.rint(decoded.probabilities() * draws)
        np.testing.assert_array_equal(counts.sum(axis=1), draws)
        assert (p[counts > 0] > 0).all()
        order = np.argsort(-p.sum(axis=0))
        group = np.empty(len(order), dtype=np.int64)
        group[order] = np.cumsum(p.sum(axis=0)[order]) * 8 / len(p)
        grouped = [
            np.stack([each[:, group == g].sum(axis=1) for g in np.unique(group)], axis=1) for each in (counts, p)
        ]
        came, chance = grouped
        # The sum over rows of a group's count has mean draws sum p and variance draws sum p (1 - p).
        away = np.abs(came.sum(axis=0) - draws * chance.sum(axis=0))
        assert (away <= spread * np.sqrt(draws * (chance * (1 - chance)).sum(axis=0).clip(0)) + 1).all()

    return within


def likeliest(original, decoded):
    assert decoded.n_classes == original.shape[1]
    first = [list(row).index(max(row)) for row in original.tolist()]
    np.testing.assert_array_equal(decoded.classes, first)


def averages(*grid):
    """Means over cells, one at a time."""

    def within(original, decoded):
        size = [axis // cells for axis, cells in zip(original.shape[2:], grid, strict=True)]
        for place in np.ndindex(*grid):
            cell = tuple(slice(at * step, (at + 1) * step) for at, step in zip(place, size, strict=True))
            inside = original.astype(np.float64)[(slice(None), slice(None), *cell)]
            mean = inside.reshape(*inside.shape[:2], -1).mean(axis=2)
            got = decoded[(slice(None), slice(None), *place)] if decoded.ndim > 2 else decoded
            assert (np.abs(got - mean) <= np.abs(mean) * 2**-11 + 2**-25).all()

    return within


def integers(dtype):
    info = np.iinfo(dtype)
    return lambda rng, rows: rng.integers(info.min, info.max, size=(rows, 2), dtype=dtype, endpoint=True)


CASES = (
    CodecCase("dense", Dense(), (10,), logits((10,)), relative(2**-11, 2**-25), 20),
    CodecCase("dense/float32", Dense("float32"), (10,), logits((10,), 1e6), equal, 40),
    CodecCase("dense/one number", Dense(), (), logits(()), relative(2**-11, 2**-25), 2),
    CodecCase("dense/map", Dense(), (3, 4, 5), logits((3, 4, 5)), relative(2**-11, 2**-25), 120),
    CodecCase("dense/masked", Dense(), (10,), masked((10,), [0, 7]), relative(2**-11, 2**-25), 20),
    CodecCase("int8", Int8(), (10,), logits((10,)), assert_within_half_a_step, 14),
    CodecCase("int8/map", Int8(), (3, 4, 5), logits((3, 4, 5), 100.0), assert_within_half_a_step, 64),
    CodecCase("int8/masked", Int8(), (10,), masked((10,), [0, 7]), assert_within_half_a_step, 14),
    CodecCase("int8/tiny range", Int8(), (6,), logits((6,), 1e-7), assert_within_half_a_step, 10),
    CodecCase(
        "int8/constant", Int8(), (6,), lambda rng, rows: np.full((rows, 6), -30.1), assert_within_half_a_step, 10
    ),
    CodecCase(
        "int8/far", Int8(), (6,), lambda rng, rows: rng.normal(size=(rows, 6)) + 1000.3, assert_within_half_a_step, 10
    ),
    CodecCase("top_k", TopK(4), (10,), logits((10,)), assert_bucket, 4 * 2 + 4 * 2 + 4),
    CodecCase("top_k/two temperatures", TopK(16, (1.0, 4.0)), (1000,), logits((1000,)), assert_bucket, 16 * 4 + 8),
    CodecCase("top_k/all classes", TopK(10, (1.0, 4.0)), (10,), logits((10,)), assert_bucket, 40 + 8),
    CodecCase("top_k/masked", TopK(4, (1.0, 4.0)), (10,), masked((10,), [0, 7]), assert_bucket, 16 + 8),
    CodecCase("top_k/mostly masked", TopK(4), (10,), masked((10,), list(range(2, 10))), assert_bucket, 16 + 4),
    CodecCase(
        "top_k/always", TopK(4, always=(7, 2)), (10,), logits((10,)), partial(assert_bucket, always=(7, 2)), 16 + 4
    ),
    CodecCase(
        "top_k/always masked",
        TopK(3, always=(1,)),
        (10,),
        masked((10,), [1, 4]),
        partial(assert_bucket, always=(1,)),
        12 + 4,
    ),
    CodecCase(
        "top_k/ties", TopK(3), (8,), lambda rng, rows: rng.integers(0, 2, (rows, 8)).astype(float), assert_bucket, 16
    ),
    CodecCase("top_k/confident", TopK(2), (10,), logits((10,), 100.0), assert_bucket, 12),
    CodecCase("top_k/wide", TopK(2), (70_000,), logits((70_000,)), assert_bucket, 2 * 2 + 2 * 4 + 4),
    CodecCase("sampled", Sampled(50), (10,), logits((10,)), drawn(50), 10 * 2 + 4),
    CodecCase("sampled/one draw", Sampled(1, seed=3), (10,), logits((10,), 1.0), drawn(1), 1 + 4),
    CodecCase("sampled/language", Sampled(50), (70_000,), logits((70_000,)), drawn(50), 50 * 3 + 4),
    CodecCase("sampled/hot", Sampled(100, 4.0, 2**64 - 1), (10,), logits((10,)), drawn(100, 4.0), 10 * 2 + 4),
    CodecCase("sampled/masked", Sampled(50), (10,), masked((10,), [0, 7, 9]), drawn(50), 10 * 2 + 4),
    CodecCase("sampled/confident", Sampled(50), (10,), logits((10,), 100.0), drawn(50), 10 * 2 + 4),
    CodecCase("sampled/one class", Sampled(7), (1,), logits((1,)), drawn(7), 1 + 4),
    CodecCase("sampled/wide entries", Sampled(4096), (70_000,), logits((70_000,), 0.1), drawn(4096), 4096 * 4 + 4),
    CodecCase("argmax", Argmax(), (10,), logits((10,)), likeliest, 1),
    CodecCase("argmax/two bytes", Argmax(), (257,), logits((257,)), likeliest, 2),
    CodecCase("argmax/four bytes", Argmax(), (70_000,), logits((70_000,)), likeliest, 4),
    CodecCase(
        "argmax/ties", Argmax(), (8,), lambda rng, rows: rng.integers(0, 2, (rows, 8)).astype(float), likeliest, 1
    ),
    CodecCase("pooled", Pooled(), (3, 4, 6), logits((3, 4, 6)), averages(1, 1), 6),
    CodecCase("pooled/grid", Pooled((2, 3)), (3, 4, 6), logits((3, 4, 6)), averages(2, 3), 3 * 6 * 2),
    CodecCase("pooled/line", Pooled((2,)), (3, 8), logits((3, 8)), averages(2), 12),
    CodecCase("raw", Raw("uint64"), (2,), integers(np.uint64), equal, 16),
    CodecCase("raw/float32", Raw("float32"), (2,), logits((2,)), equal, 8),
    CodecCase("raw/int8", Raw("int8"), (2,), integers(np.int8), equal, 2),
    CodecCase("raw/bool", Raw("bool"), (2,), lambda rng, rows: rng.random((rows, 2)) < 0.5, equal, 2),
)
