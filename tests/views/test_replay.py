from __future__ import annotations

import multiprocessing
import os
import random
import threading

import numpy as np
import pytest
import torch
from tests.views.cases import PIPELINES, SIZE, Dispatch, Images, Masks, N, pixels
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from bookkd.core.errors import ConfigError, DataError
from bookkd.core.fields import IGNORE_LABEL
from bookkd.views import CachedViews, CutMix, Pick, Replay, Views, ViewSampler, collate, isolated, seed_all

PICKS = [Pick(sample, view) for sample in range(N) for view in range(3)]


def replay_of(name: str, **options) -> Replay:
    kind, transform = PIPELINES[name]
    return Replay(Images(kind), Views(transform, n_views=3, seed=5), **options)


def by_pick(loader) -> dict[tuple[int, int], tuple]:
    found = {}
    for batch in loader:
        for row, key in enumerate(zip(batch["sample"].tolist(), batch["view"].tolist(), strict=True)):
            found[key] = (batch["input"][row], batch["probe/hash"][row], batch["probe/projections"][row])
    return found


def global_states():
    numpy_state = np.random.get_state()
    return (torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2], random.getstate())


# --- the same bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPELINES)
def test_same_bits_in_any_order_and_alone(name):
    replay = replay_of(name)
    reference = {(item["sample"], item["view"]): item for item in replay.__getitems__(PICKS)}
    shuffled = random.Random(0).sample(PICKS, len(PICKS))
    for item in replay.__getitems__(shuffled):
        assert torch.equal(item["input"], reference[item["sample"], item["view"]]["input"])
    for pick in shuffled[:10]:
        item = replay[pick]
        assert torch.equal(item["input"], reference[pick[:2]]["input"])
        assert item["probe/hash"] == reference[pick[:2]]["probe/hash"]
        assert torch.equal(item["probe/projections"], reference[pick[:2]]["probe/projections"])
    assert len({item["probe/hash"] for item in reference.values()}) > 2 * N


@pytest.mark.parametrize("name", PIPELINES)
def test_apply_is_what_replay_gives(name):
    replay = replay_of(name)
    view = replay.views.apply(replay.dataset[4][0], 4, 2)
    assert torch.equal(view, replay[Pick(4, 2)]["input"])


# Forking a process that has threads is what DataLoader does by default on Linux; newer Pythons warn of it.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning", "ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(
    ("start", "workers"), [("fork", 1), ("fork", 4), ("spawn", 1), pytest.param("spawn", 4, marks=pytest.mark.slow)]
)
def test_same_bits_in_any_worker(start, workers):
    replay = Replay(Images(), Views(Dispatch(), n_views=3, seed=5))
    reference = by_pick(DataLoader(replay, batch_sampler=[PICKS[:7], PICKS[7:]], collate_fn=collate))
    shuffled = random.Random(workers).sample(PICKS, len(PICKS))
    batches = [shuffled[start : start + 10] for start in range(0, len(shuffled), 10)]
    loader = DataLoader(
        replay, batch_sampler=batches, collate_fn=collate, num_workers=workers, multiprocessing_context=start
    )
    found = by_pick(loader)
    assert found.keys() == reference.keys()
    for key, parts in found.items():
        assert all(torch.equal(part, other) for part, other in zip(parts, reference[key], strict=True))


def test_does_not_depend_on_the_number_of_threads():
    transform = v2.ColorJitter(0.9, 0.9, 0.9, 0.3)
    images = [(torch.rand(3, 257, 255), 0)]
    replay = Replay(images, Views(transform, n_views=2, seed=1))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(replay[Pick(0, 1)]["input"])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_threads_do_not_disturb_each_other():
    replay = replay_of("float")
    reference = [item["input"] for item in replay.__getitems__(PICKS)]
    found: dict[int, list] = {}

    def run(number: int) -> None:
        found[number] = [replay[pick]["input"] for pick in PICKS]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for views in found.values():
        assert all(map(torch.equal, views, reference))
    assert len(found) == 3


@pytest.mark.parametrize("name", PIPELINES)
def test_global_generators_are_left_alone(name):
    replay = replay_of(name)
    before = global_states()
    replay.__getitems__(PICKS[:5])
    assert global_states() == before


def test_global_generators_are_put_back_after_an_error():
    def broken(image):
        torch.rand(3), np.random.rand(), random.random()
        raise ValueError("no such crop")

    before, threads = global_states(), torch.get_num_threads()
    with pytest.raises(ValueError, match="no such crop") as caught:
        Replay(Images(), Views(broken, n_views=3))[Pick(7, 2)]
    assert caught.value.__notes__ == ["While replaying sample 7, view 2."]
    assert global_states() == before
    assert torch.get_num_threads() == threads


def test_isolated_nests_and_seeds_draw_differently():
    with isolated():
        seed_all(3)
        outer = torch.rand(4)
        seed_all(3)
        with isolated():
            seed_all(4)
        assert torch.equal(torch.rand(4), outer)
    with isolated():
        # Equal 32-bit seeds would make torch and numpy draw the same words from the same algorithm.
        seed_all(2**40 + 3)
        words = torch.randint(2**32, (4,)).tolist(), np.random.randint(2**32, size=4, dtype=np.uint64).tolist()
        assert words[0] != words[1]


def _enter_isolated() -> None:
    with isolated():
        seed_all(1)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_worker_forked_while_another_thread_replays_does_not_hang():
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with isolated():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert inside.wait(60)
        worker = multiprocessing.get_context("fork").Process(target=_enter_isolated)
        worker.start()
        worker.join(20)
        hung = worker.is_alive()
        worker.kill()
        worker.join()
    finally:
        leave.set()
        thread.join()
    assert not hung
    assert worker.exitcode == 0


def test_seed_sample_and_view_each_change_the_view():
    def draw(seed, sample, view):
        views = Views(torch.rand_like, n_views=9, seed=seed)
        return views.apply(torch.zeros(4), sample, view)

    base = draw(1, 2, 3)
    assert torch.equal(base, draw(1, 2, 3))
    assert not any(torch.equal(base, other) for other in (draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4), draw(1, 3, 2)))


# --- what an item holds --------------------------------------------------------------------------------------------


def test_without_transform_a_view_is_the_image():
    item = Replay(Images(), Views(None, n_views=1))[Pick(3, 0, 0.0)]
    assert np.array_equal(item["input"].numpy(), pixels(3).transpose(2, 0, 1))
    assert {name: item[name] for name in ("sample", "view", "weight", "label")} == {
        "sample": 3,
        "view": 0,
        "weight": 0.0,
        "label": 3,
    }


def test_a_data_set_that_augments_by_itself_replays():
    class Augmenting(Images):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return v2.RandomCrop(6)(image), label

    replay = Replay(Augmenting(), Views(None, n_views=3))
    first = [replay[pick]["input"] for pick in PICKS]
    second = [replay[pick]["input"] for pick in reversed(PICKS)][::-1]
    assert all(map(torch.equal, first, second))
    assert not torch.equal(first[0], first[1])


def test_array_keeps_its_axes():
    view = replay_of("user numpy")[Pick(0, 0)]["input"]
    assert view.dtype == torch.uint8
    assert view.shape == (SIZE, SIZE, 3)


def test_reversed_and_read_only_arrays_are_taken():
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    array.flags.writeable = False
    for image in (array, array[:, ::-1], array.reshape(-1)[4]):
        view = Replay([np.asarray(image)], Views(None, 1))[Pick(0, 0)]["input"]
        assert np.array_equal(view.numpy(), image)


def test_mask_moves_with_the_image():
    transform = v2.Compose([v2.RandomResizedCrop(8, interpolation=0), v2.RandomHorizontalFlip()])
    for item in Replay(Masks(), Views(transform, n_views=2)).__getitems__([Pick(1, 0), Pick(2, 1)]):
        assert type(item["label"]) is torch.Tensor
        assert torch.equal(item["label"], item["input"][0].long())


@pytest.mark.parametrize(
    "transform",
    [v2.Compose([v2.RandAugment()]), v2.Compose([v2.ToImage(), lambda image: image])],
    ids=["policy", "function"],
)
def test_a_transform_of_images_alone_is_refused_where_masks_move_too(transform):
    said = r"Expected `views` to be a transform that moves image and mask alike, got painted \(.*\(replay\)\. Pass --views mask-affine"
    with pytest.raises(ConfigError, match=said):
        Replay(Masks(), Views(transform, n_views=2, name="painted"))[Pick(0, 0)]


def broken(image, mask):
    return image + "a", mask


def test_a_transform_of_a_users_own_that_goes_wrong_keeps_its_traceback():
    replay = Replay(Masks(), Views(broken, n_views=2, name=f"{__name__}:broken"))
    with pytest.raises(TypeError) as raised:
        replay[Pick(0, 0)]
    assert raised.traceback[-1].name == "broken" or any(each.name == "broken" for each in raised.traceback)


def test_rows_map_a_filtered_data_set_to_its_book():
    whole = replay_of("uint8")
    kept = [20, 3, 11]
    part = Replay([whole.dataset[row] for row in kept], whole.views, rows=np.array(kept))
    for row in kept:
        assert torch.equal(part[Pick(row, 2)]["input"], whole[Pick(row, 2)]["input"])
    with pytest.raises(DataError, match="Expected `sample` to be one of the 3 rows that the data set holds, got 4"):
        part[Pick(4, 0)]


@pytest.mark.parametrize(
    ("label", "found"),
    [(None, IGNORE_LABEL), (4, 4), (np.int32(4), 4), (torch.tensor(4), 4), (np.array(4), 4)],
)
def test_labels_of_the_data_set(label, found):
    item = Replay([(torch.zeros(1), label)], Views(None, n_views=1))[Pick(0, 0)]
    assert item["label"] == found
    assert type(item["label"]) is int


def test_labels_of_an_array_and_images_without_label():
    replay = Replay([torch.zeros(1), torch.ones(1)], Views(None, n_views=1))
    assert replay[Pick(1, 0)]["label"] == IGNORE_LABEL
    replay = Replay(Images(), Views(None, n_views=1), labels=np.arange(N) * 0 + IGNORE_LABEL)
    assert replay[Pick(3, 0)]["label"] == IGNORE_LABEL
    replay = Replay([(torch.zeros(1), 8)], Views(None, n_views=1), rows=[2], labels=[5, 6, 7])
    assert replay[Pick(2, 0)]["label"] == 7


def test_labels_that_are_arrays_stay_arrays():
    item = Replay([(torch.zeros(1), np.ones((2, 2), np.int64))], Views(None, n_views=1))[Pick(0, 0)]
    assert torch.equal(item["label"], torch.ones(2, 2, dtype=torch.int64))


@pytest.mark.parametrize("label", [0.5, np.float32(0.5), torch.tensor(0.5), np.array(0.5)])
def test_a_number_stays_a_number(label):
    item = Replay([(torch.zeros(1), label)], Views(None, n_views=1))[Pick(0, 0)]
    assert (item["label"], type(item["label"])) == (0.5, float)
    assert collate([item, item])["label"].dtype == torch.float32


@pytest.mark.parametrize("vector", [torch.tensor([[1, 0, -1], [0, 0, 1]]), torch.tensor([[0.5, np.nan], [2.0, 1.0]])])
def test_vectors_and_numbers_survive_replay_mixing_and_caching(vector):
    data = [(torch.zeros(1, 4, 4), row) for row in vector]
    replay = Replay(data, Views(None, n_views=1, mix=CutMix(1.0)))
    batch = collate(replay.__getitems__([Pick(1, 0), Pick(0, 0)]))
    torch.testing.assert_close(batch["label"], vector.flip(0), equal_nan=True)
    torch.testing.assert_close(batch["partner_label"], vector[batch["partner"]], equal_nan=True)
    cached = CachedViews(replay, max_bytes=10_000).__getitems__([Pick(1, 0), Pick(0, 0)])
    torch.testing.assert_close(cached["label"], batch["label"], equal_nan=True)
    given = Replay([torch.zeros(1)], Views(None, n_views=1), rows=[1], labels=vector.numpy())[Pick(1, 0)]["label"]
    torch.testing.assert_close(given, vector[1], equal_nan=True)


def test_share_of_probes():
    everything = by_pick([collate(replay_of("uint8").__getitems__(PICKS))])
    items = replay_of("uint8", probe_share=0.5).__getitems__(PICKS)
    taken = [item for item in items if item["probe_taken"]]
    assert 0.25 * len(PICKS) < len(taken) < 0.75 * len(PICKS)
    for item in items:
        expected = everything[item["sample"], item["view"]][1] if item["probe_taken"] else 0
        assert item["probe/hash"] == expected
    alone = [replay_of("uint8", probe_share=0.5)[pick]["probe_taken"] for pick in PICKS]
    assert alone == [item["probe_taken"] for item in items]
    assert not any("probe" in name for name in replay_of("uint8", probe_share=0.0)[PICKS[0]])


# --- what is refused -----------------------------------------------------------------------------------------------

CROP = Views(v2.RandomCrop(6), n_views=2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Replay(iter([]), CROP), ConfigError, "Expected `dataset` to be indexable, with a length, got 'list_i"),
        (lambda: Replay(Images(), CROP, rows=[0]), ConfigError, r"`rows` to be whole numbers of shape \(24,\)"),
        (lambda: Replay(Images(n=2), CROP, rows=[0.5, 1]), ConfigError, "`rows` to be whole numbers"),
        (lambda: Replay(Images(n=2), CROP, rows=[4, 4]), ConfigError, "`rows` to be without repeats, got 4 twice"),
        (lambda: Replay(Images(n=2), CROP, rows=[-1, 4]), ConfigError, "`rows` to be at least 0, got -1"),
        (lambda: Replay(Images(n=2), CROP, labels=[1]), ConfigError, "`labels` to be numbers.*at least 2"),
        (lambda: Replay(Images(n=2), CROP, probe_share=1.5), ConfigError, "`probe_share` to be between 0 and 1"),
        (
            lambda: Replay(Images(n=1), Views(None, 1, mix=CutMix(1.0)), rows=[3]),
            ConfigError,
            "Expected `pool` to be given where `rows` maps",
        ),
        (lambda: Replay(Images(), CROP)[3], ConfigError, r"`index` to be a Pick\(sample, view\), got 3.*batch_sampler"),
        (lambda: Replay(Images(), CROP)[Pick(3, 2)], ConfigError, "`view` to be between 0 and 1, got 2"),
        (lambda: Replay(Images(), CROP)[Pick(24, 0)], DataError, "`sample` to be one of the 24 rows .* got 24"),
        (lambda: Replay(Images(), CROP)[Pick(-1, 0)], DataError, "`sample` to be one of the 24 rows .* got -1"),
        (lambda: Replay([], CROP)[Pick(0, 0)], DataError, "`sample` to be one of the 0 rows"),
        (
            lambda: Replay(Images("pil"), CROP)[Pick(3, 1)],
            ConfigError,
            r"a PIL.Image.Image object \(sample 3, view 1\). End the transform with .*ToImage",
        ),
        (
            lambda: Replay([torch.zeros(2).to_sparse()], Views(None, 1))[Pick(0, 0)],
            ConfigError,
            "a dense CPU tensor or a numpy array, got a torch.sparse_coo tensor on cpu",
        ),
        (lambda: Replay([np.array(["a"])], Views(None, 1))[Pick(0, 0)], ConfigError, "got a numpy array of <U1"),
        (lambda: Replay([(1, 2, 3)], CROP)[Pick(0, 0)], DataError, r"`dataset\[i\]` to be \(image, label\).*3 parts"),
        (lambda: Replay([{"x": 1}], CROP)[Pick(0, 0)], DataError, r"got a dict of \['x'\]"),
        (
            lambda: Replay([(torch.zeros(1), "cat")], Views(None, 1))[Pick(0, 0)],
            DataError,
            "`label` to be a number, a tensor or None, got 'cat'",
        ),
    ],
)
def test_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# --- batches -------------------------------------------------------------------------------------------------------


def test_collate_names_and_dtypes():
    mixed = Views(v2.RandomCrop(6), n_views=3, mix=CutMix(1.0))
    loader = DataLoader(Replay(Images(), mixed), batch_sampler=ViewSampler(N, 3, 5, shuffle=False), collate_fn=collate)
    *_, batch = loader
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "input": (torch.uint8, (5, 3, 6, 6)),
        "label": (torch.int64, (5,)),
        "ratio": (torch.float32, (5,)),
        "partner": (torch.int64, (5,)),
        "partner_label": (torch.int64, (5,)),
        "probe/hash": (torch.int64, (5,)),
        "probe/projections": (torch.float64, (5, 2)),
        "probe_taken": (torch.bool, (5,)),
        "sample": (torch.int64, (5,)),
        "view": (torch.int64, (5,)),
        "weight": (torch.float32, (5,)),
    }
    assert batch["weight"].tolist() == [1, 1, 1, 1, 0]
    assert torch.equal(batch["partner_label"], batch["partner"] % 5)


def test_a_ready_batch_passes_through():
    batch = {"input": torch.zeros(2, 3)}
    assert collate(batch)["input"] is batch["input"]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [(torch.zeros(3, 4), 0), (torch.zeros(3, 5), 0)],
            r"`input` to be torch.float32 \(3, 4\).*\(3, 5\) \(sample 1",
        ),
        ([(torch.zeros(3), 0), (torch.zeros(3, dtype=torch.uint8), 0)], "got torch.uint8"),
        ([(torch.zeros(3), 0), (torch.zeros(3), torch.zeros(2))], "`label` to be a number for all records"),
        ([(torch.zeros(3), torch.zeros(2)), (torch.zeros(3), 0)], r"`label` to be torch.float32 \(2,\).*got 'int'"),
    ],
)
def test_collate_refuses_records_of_two_forms(records, message):
    replay = Replay(records, Views(None, n_views=1))
    with pytest.raises(DataError, match=message):
        collate(replay.__getitems__([Pick(0, 0), Pick(1, 0)]))


def test_collate_refuses_records_of_two_recipes():
    plain, mixed = (Replay(Images(), Views(None, 1, mix=mix))[Pick(0, 0)] for mix in (None, CutMix(1.0)))
    with pytest.raises(
        DataError, match=r"Expected `records` to be all with .*'weight'.*, got .*'ratio'.*sample 0, view 0"
    ):
        collate([plain, mixed])
