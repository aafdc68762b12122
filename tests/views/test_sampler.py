from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from bookkd.core.errors import CheckpointError, ConfigError
from bookkd.views import BlockWindow, Pick, ViewSampler


@st.composite
def configurations(draw):
    views_per_sample = draw(st.integers(1, 3))
    block_rows = draw(st.integers(1, 50))
    divisors = [rows for rows in range(1, block_rows + 1) if block_rows % rows == 0]
    windows = st.builds(BlockWindow, st.integers(1, 6), st.sampled_from(divisors))
    return {
        "n_samples": draw(st.integers(1, 40)),
        "n_views": draw(st.integers(views_per_sample, 5)),
        "batch_size": views_per_sample * draw(st.integers(1, 5)),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "world_size": draw(st.integers(1, 3)),
        "views_per_sample": views_per_sample,
        "shuffle": draw(st.booleans() | windows),
        "block_rows": block_rows,
    }


def epoch_of(options, epoch: int, **changes) -> list[list[list[Pick]]]:
    """All batches of all ranks: [rank][batch][pick]."""
    found = []
    for rank in range(options["world_size"]):
        sampler = ViewSampler(**{**options, **changes}, rank=rank)
        sampler.set_epoch(epoch)
        found.append(list(sampler))
    return found


@settings(max_examples=60, deadline=None)
@given(configurations())
def test_each_view_is_seen_equally_often_over_as_many_epochs_as_views(options):
    counts = Counter()
    for epoch in range(options["n_views"]):
        for rank in epoch_of(options, epoch):
            counts.update(pick[:2] for batch in rank for pick in batch if pick.weight)
    pairs = {(sample, view) for sample in range(options["n_samples"]) for view in range(options["n_views"])}
    assert counts == dict.fromkeys(pairs, options["views_per_sample"])


@settings(max_examples=60, deadline=None)
@given(configurations(), st.integers(0, 7), st.data())
def test_ranks_share_out_the_samples_once_each_and_pad_with_weight_0(options, epoch, data):
    n = options["n_samples"]
    chosen = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    ranks = epoch_of(options, epoch, samples=chosen)
    k = options["views_per_sample"]
    assert len({len(rank) for rank in ranks}) == 1
    assert len(ranks[0]) == len(ViewSampler(**options, samples=chosen))
    seen = Counter()
    for rank in ranks:
        for batch in rank:
            assert len(batch) == options["batch_size"]
            assert all(0 <= pick.view < options["n_views"] for pick in batch)
            groups = [batch[start : start + k] for start in range(0, len(batch), k)]
            for group in groups:
                assert len({pick.sample for pick in group}) == 1
                assert len({pick.view for pick in group}) == k
                assert len({pick.weight for pick in group}) == 1
                seen[group[0].sample] += int(group[0].weight)
                assert group[0].sample in chosen
    assert seen == dict.fromkeys(chosen, 1)
    assert all(pick.weight == 1 for rank in ranks for batch in rank[:-1] for pick in batch)


@settings(max_examples=60, deadline=None)
@given(configurations(), st.data())
def test_resuming_is_the_same_as_not_stopping(options, data):
    """The trainer stops after any optimizer step, with batches fetched ahead, and goes on with other ranks."""
    epochs = 3
    whole = [epoch_of(options, epoch) for epoch in range(epochs)]
    stop_epoch = data.draw(st.integers(0, epochs - 1))
    stop = data.draw(st.integers(0, len(whole[0][0])))
    sampler = ViewSampler(**options)
    sampler.set_epoch(stop_epoch)
    ahead = iter(sampler)
    for _ in range(stop):
        next(ahead)
        sampler.consumed()
    next(ahead, None)
    state = json.loads(json.dumps(sampler.state_dict()))
    assert all(type(value) is int for value in state.values())

    for rank in range(options["world_size"]):
        resumed = ViewSampler(**options, rank=rank)
        resumed.load_state_dict(state)
        assert resumed.epoch == stop_epoch
        resumed.set_epoch(stop_epoch)
        assert list(resumed) == whole[stop_epoch][rank][stop:]
        resumed.set_epoch(stop_epoch + 1)
        assert list(resumed) == epoch_of(options, stop_epoch + 1)[rank]


@settings(max_examples=40, deadline=None)
@given(configurations(), st.integers(1, 4))
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(options, world_size):
    per_rank = options["batch_size"]
    many = epoch_of({**options, "world_size": world_size}, 1)
    one = epoch_of({**options, "world_size": 1, "batch_size": per_rank * world_size}, 1)[0]
    together = [sorted(pick for rank in many for pick in rank[batch]) for batch in range(len(many[0]))]
    assert together == [sorted(batch) for batch in one]


def test_a_state_goes_to_another_number_of_ranks():
    first = ViewSampler(20, 2, 6)
    first.consumed(2)
    halves = [ViewSampler(20, 2, 3, world_size=2, rank=rank) for rank in range(2)]
    for half in halves:
        half.load_state_dict(first.state_dict())
    rest = [sorted(a + b) for a, b in zip(*map(list, halves), strict=True)]
    assert rest == [sorted(batch) for batch in list(first)]
    assert len(rest) == 2


def test_drop_last_leaves_out_what_does_not_fill_a_batch():
    sampler = ViewSampler(11, 1, 2, world_size=2, drop_last=True)
    batches = list(sampler)
    assert len(sampler) == len(batches) == 2
    assert all(pick.weight == 1 for batch in batches for pick in batch)
    sampler.consumed(2)
    other = ViewSampler(11, 1, 2, world_size=2, drop_last=True)
    other.load_state_dict(sampler.state_dict())
    assert list(other) == []


def test_epochs_and_seeds_shuffle_differently_and_order_is_kept_on_request():
    def order(**options):
        epoch = options.pop("epoch", 0)
        sampler = ViewSampler(50, 1, 50, **options)
        sampler.set_epoch(epoch)
        return [pick.sample for pick in next(iter(sampler))]

    assert order(shuffle=False) == list(range(50))
    assert order(shuffle=False, samples=[4, 2, 9])[:3] == [4, 2, 9]
    assert len({tuple(order()), tuple(order(seed=1)), tuple(order(epoch=1))}) == 3
    assert order() == order()


def test_views_mix_inside_an_epoch_and_a_block_has_one_view():
    sampler = ViewSampler(1000, 8, 100, block_rows=10)
    views = {}
    for batch in sampler:
        for pick in batch:
            views.setdefault(pick.sample // 10, set()).add(pick.view)
    assert all(len(block) == 1 for block in views.values())
    # Offsets are uniform over the views: with 100 blocks every view is some block's.
    assert {view for block in views.values() for view in block} == set(range(8))


def test_iterating_does_not_move_the_state_and_a_loader_reads_it():
    sampler = ViewSampler(10, 2, 4)
    state = sampler.state_dict()
    first, second = list(sampler), list(sampler)
    assert first == second
    assert sampler.state_dict() == state
    loader = DataLoader(list(range(10)), batch_sampler=sampler, collate_fn=list)
    assert len(loader) == 3


def test_set_epoch_keeps_the_place_in_the_epoch_under_way():
    sampler = ViewSampler(10, 2, 4)
    sampler.consumed()
    sampler.set_epoch(0)
    assert sampler.state_dict()["consumed"] == 4
    sampler.set_epoch(1)
    assert sampler.state_dict()["consumed"] == 0
    sampler.consumed(3)
    assert sampler.state_dict()["consumed"] == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_samples": 0}, "`n_samples` to be a whole number of at least 1, got 0"),
        ({"n_views": 0}, "`n_views` to be a whole number of at least 1"),
        ({"batch_size": 0}, "`batch_size` to be a whole number of at least 1"),
        ({"seed": -1}, "`seed` to be between 0 and"),
        ({"rank": 2, "world_size": 2}, "`rank` to be between 0 and 1, got 2"),
        ({"world_size": 0}, "`world_size` to be a whole number of at least 1"),
        ({"views_per_sample": 4}, "`views_per_sample` to be between 1 and 3, got 4.*Make a book of more views"),
        ({"views_per_sample": 3}, "`batch_size` to be a multiple of views_per_sample = 3, got 4"),
        ({"block_rows": 0}, "`block_rows` to be a whole number of at least 1"),
        ({"drop_last": True, "world_size": 4}, "`drop_last` to be off for 10 samples"),
        ({"shuffle": BlockWindow(2, 6), "block_rows": 16}, "`rows` to be a divisor of block_rows = 16.*got 6"),
        ({"samples": []}, "`samples` to be a list of rows, not empty"),
        ({"samples": [0.5]}, "`samples` to be a list of rows"),
        ({"samples": [3, 10]}, "`samples` to be rows from 0 to 9, got 10"),
        ({"samples": [3, 1, 3]}, "`samples` to be without repeats, got 3 twice"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        ViewSampler(**{"n_samples": 10, "n_views": 3, "batch_size": 4, **changes})


def test_refuses_to_consume_more_than_there_is():
    sampler = ViewSampler(10, 1, 4)
    sampler.consumed(2)
    with pytest.raises(ConfigError, match=r"at most the 1 batches that epoch 0 has left, got 2.*set_epoch"):
        sampler.consumed(2)
    with pytest.raises(ConfigError, match="`n_batches` to be a whole number of at least 1"):
        sampler.consumed(0)
    with pytest.raises(ConfigError, match="`epoch` to be a whole number of at least 0"):
        sampler.set_epoch(-1)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("n_samples", {"n_samples": 11, "samples": np.arange(10)}),
        ("n_views", {"n_views": 4}),
        ("seed", {"seed": 1}),
        ("global_batch", {"world_size": 2}),
        ("views_per_sample", {"views_per_sample": 2}),
        ("shuffle", {"shuffle": False}),
        ("shuffle", {"shuffle": BlockWindow(2)}),
        ("drop_last", {"drop_last": True}),
        ("block_rows", {"block_rows": 5}),
        ("samples", {"samples": np.arange(9)}),
        ("samples_digest", {"samples": np.arange(10)[::-1]}),
    ],
)
def test_a_state_of_another_sampler_is_refused(name, changes):
    base = {"n_samples": 10, "n_views": 3, "batch_size": 4}
    with pytest.raises(CheckpointError, match=f"Expected `{name}` to be .* as in this run, got .*Resume with"):
        ViewSampler(**{**base, **changes}).load_state_dict(ViewSampler(**base).state_dict())


def test_a_state_of_another_window_is_refused():
    state = ViewSampler(10, 3, 4, shuffle=BlockWindow(2, 4)).state_dict()
    for name, window in [("window_blocks", BlockWindow(3, 4)), ("window_rows", BlockWindow(2, 8))]:
        with pytest.raises(CheckpointError, match=f"Expected `{name}` to be .* as in this run"):
            ViewSampler(10, 3, 4, shuffle=window).load_state_dict(state)
    with pytest.raises(CheckpointError, match="Expected `shuffle` to be 1 as in this run, got 2"):
        ViewSampler(10, 3, 4).load_state_dict(state)


def test_a_state_from_before_there_were_windows_is_taken():
    old = {"n_samples": 10, "n_views": 3, "seed": 0, "global_batch": 4, "views_per_sample": 1, "shuffle": 1}
    old |= {
        "drop_last": 0,
        "block_rows": 4096,
        "samples": 10,
        "samples_digest": ViewSampler(10, 3, 4).state_dict()["samples_digest"],
    }
    sampler = ViewSampler(10, 3, 4)
    sampler.load_state_dict({**old, "epoch": 2, "consumed": 8})
    assert (sampler.epoch, len(list(sampler))) == (2, 1)


@pytest.mark.parametrize("wrong", [{"consumed": 3}, {"consumed": 12}, {"consumed": -4}, {"epoch": -1}])
def test_a_damaged_state_is_refused(wrong):
    sampler = ViewSampler(10, 3, 4)
    with pytest.raises(CheckpointError, match="Expected `consumed` to be whole batches of 4 of 10 samples"):
        sampler.load_state_dict({**sampler.state_dict(), **wrong})
