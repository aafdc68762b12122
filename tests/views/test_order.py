"""Blocks inside a window: which rows come together, how well they are mixed, and what is told ahead."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bookkd.core.errors import ConfigError
from bookkd.views import BlockWindow, ViewSampler
from bookkd.zoo import open_dataset

ROWS = 64


def order(n_samples, window, *, seed=0, epoch=0, **options):
    sampler = ViewSampler(n_samples, 1, 16, seed=seed, shuffle=window, block_rows=ROWS, **options)
    sampler.set_epoch(epoch)
    return np.array([pick.sample for batch in sampler for pick in batch if pick.weight])


def same_block(rows):
    return float(np.mean(rows[1:] // ROWS == rows[:-1] // ROWS))


def serial(values):
    """Return the correlation of each value with the next one."""
    return float(np.corrcoef(values[1:], values[:-1])[0, 1])


@pytest.mark.parametrize(("blocks", "widths"), [(4, [4, 4, 4, 4, 4]), (6, [5, 5, 5, 5]), (7, [6, 7, 7]), (50, [20])])
def test_a_window_takes_its_blocks_whole_and_windows_are_even(blocks, widths):
    rows = order(20 * ROWS, BlockWindow(blocks, ROWS))
    place, found, seen = 0, [], set()
    for width in sorted(widths):
        here = set((rows[place : place + width * ROWS] // ROWS).tolist())
        found.append(len(here))
        place += width * ROWS
        if len(set(widths)) == 1:
            assert not here & seen
            seen |= here
    if len(set(widths)) == 1:
        assert found == widths
    # Whatever their order: a block is begun and ended within the rows of one window.
    spread = [np.flatnonzero(rows // ROWS == block) for block in range(20)]
    assert max(places[-1] - places[0] for places in spread) < max(widths) * ROWS


@pytest.mark.parametrize("blocks", [1, 2, 8, 32])
def test_neighbours_are_of_one_block_as_often_as_the_window_is_narrow(blocks):
    """Without replacement from `blocks` blocks of ROWS rows: (ROWS - 1) / (blocks ROWS - 1), but from window to window."""
    shares = [same_block(order(64 * ROWS, BlockWindow(blocks, ROWS), seed=seed)) for seed in range(4)]
    inside = 1 - (64 // blocks - 1) / (64 * ROWS - 1)
    assert np.mean(shares) == pytest.approx(inside * (ROWS - 1) / (blocks * ROWS - 1), abs=0.015)


def test_all_blocks_in_one_window_mix_as_all_rows_do():
    """Wald's runs test cannot tell them apart; a window of two blocks is seen at once."""

    def p_value(rows):
        above = rows > np.median(rows)
        n, ups = len(above), int(above.sum())
        runs = 1 + int(np.count_nonzero(above[1:] != above[:-1]))
        mean = 1 + 2 * ups * (n - ups) / n
        deviation = np.sqrt((mean - 1) * (mean - 2) / (n - 1))
        return 2 * stats.norm.sf(abs(runs - mean) / deviation)

    assert p_value(order(64 * ROWS, True)) > 0.001
    assert p_value(order(64 * ROWS, BlockWindow(64, ROWS))) > 0.001
    assert p_value(order(64 * ROWS, BlockWindow(2, ROWS))) < 1e-12


def test_serial_correlation_of_labels_sorted_by_class_falls_with_the_window():
    """A data set in the order of its classes, the worst case; blocks of a window are drawn, so that classes mix across it."""
    labels = np.sort(np.asarray(open_dataset("digits").labels))
    rows_of = 8  # 1437 samples are 180 blocks

    def correlation(window):
        found = []
        for seed in range(5):
            sampler = ViewSampler(len(labels), 1, 16, seed=seed, shuffle=window)
            rows = np.array([pick.sample for batch in sampler for pick in batch if pick.weight])
            found.append(serial(labels[rows]))
        return float(np.mean(found))

    unshuffled, narrow, wide, uniform = map(
        correlation, (False, BlockWindow(2, rows_of), BlockWindow(45, rows_of), True)
    )
    assert unshuffled > 0.99
    assert narrow == pytest.approx(0.5, abs=0.1)  # the neighbour is of the same of two blocks half of the time
    assert wide == pytest.approx(1 / 45, abs=0.04)
    assert uniform == pytest.approx(0, abs=0.04)


def test_epochs_seeds_and_windows_are_other_orders_and_each_is_repeated():
    window = BlockWindow(4, ROWS)
    orders = [order(20 * ROWS, window), order(20 * ROWS, window, seed=1), order(20 * ROWS, window, epoch=1)]
    orders.append(order(20 * ROWS, BlockWindow(5, ROWS)))
    assert len({tuple(rows) for rows in orders}) == 4
    assert (order(20 * ROWS, window) == orders[0]).all()


def test_a_part_of_the_samples_in_any_order_is_read_by_blocks():
    chosen = np.random.default_rng(0).permutation(30 * ROWS)[:500]
    rows = order(30 * ROWS, BlockWindow(3, ROWS), samples=chosen)
    assert sorted(rows) == sorted(chosen)
    blocks = rows // ROWS
    begun = [np.flatnonzero(blocks == block)[[0, -1]] for block in np.unique(blocks)]
    assert max(last - first for first, last in begun) <= 3 * np.bincount(blocks).max()


@pytest.mark.parametrize("views_per_sample", [1, 2])
@pytest.mark.parametrize("start", [0, 7, 19])
def test_blocks_are_told_once_before_they_are_read_and_not_a_window_too_early(views_per_sample, start):
    told, window = [], BlockWindow(3, ROWS)
    sampler = ViewSampler(
        20 * ROWS - 5,
        4,
        32,
        shuffle=window,
        block_rows=2 * ROWS,
        views_per_sample=views_per_sample,
        ahead=lambda *block: told.append(block),
    )
    if start:
        sampler.consumed(start)
    read = []
    for batch in sampler:
        for pick in batch:
            if pick.weight:
                first = pick.sample // ROWS * ROWS
                block = (first, min(first + ROWS, 20 * ROWS - 5), pick.view)
                assert block in told
                if block not in read:
                    read.append(block)
        assert len(told) - len(read) <= 2 * 3 * views_per_sample
    assert len(told) == len(set(told))
    assert set(read) <= set(told)
    if not start:
        assert len(told) == 20 * views_per_sample


def test_without_a_window_nothing_is_told():
    told = []
    list(ViewSampler(100, 2, 10, ahead=lambda *block: told.append(block)))
    assert not told


@pytest.mark.parametrize("options", [{"blocks": 0}, {"blocks": 2, "rows": 0}, {"blocks": 1.5}])
def test_refused(options):
    with pytest.raises(ConfigError, match=r"a whole number of at least 1.*BlockWindow"):
        BlockWindow(**options)
