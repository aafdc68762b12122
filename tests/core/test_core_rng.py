"""Draws: the published generator computed by hand, the same number in any order, and streams that do not meet."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bookkd.core.errors import ConfigError
from bookkd.core.rng import draw64, generator, philox4x32, stream_id

WORD = 2**64 - 1
WORDS = st.integers(0, WORD)


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 (Salmon et al., 2011) in whole numbers."""
    key = list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * counter[0], 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * counter[2], 2**64)
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B97F4A7C15) & WORD, (key[1] + 0xBB67AE8584CAA73B) & WORD]
    return counter


def test_the_reference_gives_the_published_numbers():
    # The known answers that come with the authors' Random123.
    assert philox([0] * 4, [0] * 2) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox([WORD] * 4, [WORD] * 2) == [
        *(0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ]


@given(WORDS, st.text(max_size=5), st.integers(0, 2**63 - 1), st.integers(0, 2**31))
def test_draws_are_philox(seed: int, stream: str, sample: int, view: int):
    key = [seed, zlib.crc32(stream.encode())]
    # numpy counts up before each block of four.
    expected = philox([1, 0, sample, view], key) + philox([2, 0, sample, view], key)
    assert draw64(seed, stream, [sample], [view], 8)[0].tolist() == expected
    assert generator(seed, stream, sample, view).bit_generator.random_raw(8).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**16)), min_size=1, max_size=12), st.randoms())
def test_the_order_of_draws_does_not_count(pairs: list[tuple[int, int]], shuffler):
    samples, views = zip(*pairs, strict=True)
    rows = draw64(7, "view", samples, views, 3)
    assert rows.shape == (len(pairs), 3)
    assert rows.dtype == np.uint64
    order = list(range(len(pairs)))
    shuffler.shuffle(order)
    again = draw64(7, "view", [samples[i] for i in order], [views[i] for i in order], 3)
    np.testing.assert_array_equal(again, rows[order])
    # Fewer numbers of a pair are the first of more.
    np.testing.assert_array_equal(draw64(7, "view", samples, views)[:, 0], rows[:, 0])


def test_seeds_beyond_int64_keep_every_bit():
    seeds = [2**63 - 1, 2**63, 2**63 + 1, WORD - 1, WORD]
    assert len({int(draw64(seed, "x", [0], [0])[0, 0]) for seed in seeds}) == len(seeds)
    large = int(draw64(0, "x", np.array([2**63], dtype=np.uint64), [0])[0, 0])
    assert large == philox([1, 0, 2**63, 0], [0, stream_id("x")])[0]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_other_seeds_are_refused(seed: int):
    for draw in (lambda: generator(seed, "x"), lambda: draw64(seed, "x", [0], [0])):
        with pytest.raises(ConfigError, match=rf"`seed` to be between 0 and 2\*\*64 - 1, got {seed}"):
            draw()


def test_samples_and_views_come_in_pairs():
    assert draw64(0, "x", [], []).shape == (0, 1)
    with pytest.raises(ValueError, match="shorter"):
        draw64(0, "x", [0, 1], [0])


def test_draws_leave_the_global_generator_alone():
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    generator(0, "x").random()
    draw64(0, "x", [1], [1])
    assert np.random.random() == expected


def test_neighbours_look_independent():
    bits = np.unpackbits(draw64(0, "x", np.arange(2000), np.zeros(2000, dtype=int)).view(np.uint8), axis=1)
    # 64 shares of 2000 coins: five standard deviations are 0.056.
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.056
    assert np.abs((bits[1:] == bits[:-1]).mean(axis=0) - 0.5).max() < 0.056


# The known answers that Random123 publishes for philox4x32 with 10 rounds: counter, key, result.
ALL = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_of_32_bits_gives_the_known_answers(counter, key, answer):
    assert tuple(int(word) for word in philox4x32(counter, key)) == answer


def test_philox_of_32_bits_over_arrays_is_that_of_each():
    columns = [np.array(words, dtype=np.uint32) for words in zip(*(counter for counter, _, _ in KNOWN), strict=True)]
    for _, key, answer in KNOWN:
        found = np.stack(philox4x32(tuple(columns), key), axis=1)
        assert found.max() < 2**32
        place = KNOWN.index(next(known for known in KNOWN if known[1] == key))
        np.testing.assert_array_equal(found[place], answer)
    wide = philox4x32((columns[0][:, None], columns[1][None], 0, 1), (5, 6))
    assert wide[0].shape == (3, 3)
    for row, column in np.ndindex(3, 3):
        one = philox4x32((columns[0][row], columns[1][column], 0, 1), (5, 6))
        assert [int(word) for word in one] == [int(word[row, column]) for word in wide]
