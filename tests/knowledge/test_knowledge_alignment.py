"""A book is used for the data and views that it is about, and for nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.learning.digits import TASK, TRAIN, assert_equal, book, run, student, teacher, to_float, training, views

from bookkd.book import TopK
from bookkd.core.errors import BookMismatchError, ConfigError, DataError, FidelityError, ViewMismatchError
from bookkd.core.schedules import Linear, Steps
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, check_alignment, with_pool_of
from bookkd.learning import learn
from bookkd.methods import VanillaKD
from bookkd.tasks import Classification
from bookkd.views import CutMix, MixUp, Pick, Replay, Views, collate
from bookkd.zoo import ArrayDataset, SubsetDataset, create_transform, open_dataset

KEYS = np.arange(60, dtype=np.uint64) * 7 + 1000


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return StoredKnowledge(book(tmp_path_factory.mktemp("book") / "book", keys=KEYS))


def brighter():
    images = torch.stack([image for image, _ in TRAIN])
    changed = images.clone()
    changed[7, 0, 0, 0] ^= 255
    return ArrayDataset("digits", changed, np.asarray(TRAIN.labels), TRAIN.class_names)


@pytest.mark.parametrize(
    ("dataset", "seen", "match"),
    [
        (open_dataset("digits", limit=50), views(), r"data samples is 50, the book's is 60"),
        (brighter(), views(), r"data content is '[0-9a-f]{32}', the book's is"),
        (TRAIN, views(seed=1), r"seed"),
        (TRAIN, views(n_views=3), r"3 views are asked for, the book has 2"),
        (TRAIN, Views(create_transform("none", {}), 2, 0, name="none"), r"transform"),
        (TRAIN, views(mix=MixUp(1.0)), r"mix"),
    ],
    ids=["length", "content", "seed", "views", "transform", "mix"],
)
def test_another_data_set_or_recipe_is_refused(stored, dataset, seen, match):
    with pytest.raises(BookMismatchError, match=f"{match}.*Pass the data set, transform and seed"):
        check_alignment(stored, dataset, seen, class_names=TASK.class_names)


def test_the_books_own_data_and_fewer_views_pass(stored):
    check_alignment(stored, TRAIN, views(), class_names=TASK.class_names)
    check_alignment(stored, TRAIN, views(n_views=1), class_names=TASK.class_names)


def test_the_same_data_under_another_name_passes(stored):
    images = torch.stack([image for image, _ in TRAIN])
    renamed = ArrayDataset("my.code:Digits", images, np.asarray(TRAIN.labels), TRAIN.class_names)
    assert stored.book.plan.data["name"] != renamed.name
    check_alignment(stored, renamed, views(), class_names=TASK.class_names)


def test_classes_in_another_order_are_refused(stored):
    """Also where `rows` say that the data is another part: labels and logits would be of other classes."""
    names = TASK.class_names
    swapped = Classification((names[1], names[0], *names[2:]))
    for rows in (None, range(60)):
        with pytest.raises(BookMismatchError, match=f"class 0 is '{names[1]}', the book's is '{names[0]}'"):
            check_alignment(stored, TRAIN, views(), class_names=swapped.class_names, rows=rows)
    with pytest.raises(BookMismatchError, match="9 classes, the book has 10"):
        check_alignment(stored, TRAIN, views(), class_names=names[:9])
    with pytest.raises(BookMismatchError, match="class 0 is"):
        learn(student(), TRAIN, views(), task=swapped, knowledge=stored, method=VanillaKD(), training=training())


@dataclasses.dataclass
class Keyed:
    """A part of the digits in an order of its own."""

    positions: np.ndarray
    keys: np.ndarray | None = None

    def __len__(self):
        return len(self.positions)

    def __getitem__(self, index):
        return TRAIN[int(self.positions[index])]


@pytest.mark.parametrize("where", ["argument", "attribute"])
def test_shuffled_and_filtered_data_learn_from_their_own_records_by_key(stored, where):
    positions = np.random.default_rng(1).permutation(60)[:40]
    options = {"task": TASK, "knowledge": stored, "method": VanillaKD(), "preprocess": to_float}
    options["training"] = training(probe_share=1.0)
    by_rows = learn(student(), Keyed(positions), views(), rows=positions.tolist(), **options)
    mine = Keyed(positions, KEYS[positions] if where == "attribute" else None)
    given = {} if where == "attribute" else {"keys": KEYS[positions]}
    by_keys = learn(student(), mine, views(), **given, **options)
    assert_equal(by_keys.student, by_rows.student)
    with pytest.raises(ViewMismatchError, match="Expected the replayed view"):
        learn(student(), Keyed(positions), views(), keys=np.roll(KEYS[positions], 1), **options)


def test_keys_that_fit_nothing_are_refused(stored, tmp_path):
    def by(keys, knowledge=stored, **options):
        options = {"task": TASK, "knowledge": knowledge, "training": training(epochs=1), **options}
        return learn(student(), TRAIN, views(), keys=keys, preprocess=to_float, **options)

    with pytest.raises(ConfigError, match="`keys` to be absent where rows are given or there is no book, got 60 keys"):
        by(KEYS, rows=range(60))
    with pytest.raises(ConfigError, match="`keys` to be absent"):
        by(KEYS, knowledge=None)
    with pytest.raises(DataError, match=r"to have sample keys, got none"):
        by(KEYS, knowledge=StoredKnowledge(book(tmp_path / "book")))
    with pytest.raises(DataError, match="unknown key 1001"):
        by(KEYS + 1)
    with pytest.raises(ConfigError, match=r"`rows` to be whole numbers of shape \(60,\)"):
        by(KEYS[:50])


def test_a_scheduled_temperature_meets_the_promises_before_the_folder_is_made(tmp_path):
    sparse = StoredKnowledge(book(tmp_path / "book", codec=TopK(3, (1.0, 4.0))))

    def by(temperature):
        return run(tmp_path / "run", knowledge=sparse, method=VanillaKD(temperature=temperature), training=training())

    with pytest.raises(FidelityError, match="to be dense for method vanilla-kd, got a sparse codec"):
        by(Linear(4.0, 1.0))
    with pytest.raises(FidelityError, match="honour temperature 2 for method vanilla-kd"):
        by(Steps((4.0, 2.0), (1,)))
    assert not (tmp_path / "run").exists()
    assert len(by(Steps((4.0, 1.0), (1,))).history) == 2


class Brighter(torch.nn.Module):
    """Draws as the transform of the book does, and adds one grey level, as another library version might not."""

    def __init__(self):
        super().__init__()
        self.inner = create_transform("digits", {})

    def forward(self, image):
        view = self.inner(image)
        return torch.where(view < 128, view + 60, view)

    def __repr__(self):
        return repr(self.inner)


def test_a_transform_of_the_same_words_that_draws_otherwise_is_refused(stored):
    tampered = dataclasses.replace(views(), transform=Brighter())
    with pytest.raises(ViewMismatchError, match=r"got another one in 64 of 64 records, first sample \d+, view \d"):
        check_alignment(stored, TRAIN, tampered, class_names=TASK.class_names)
    with pytest.raises(ViewMismatchError, match=r"Expected the replayed view to be the input that the teacher saw"):
        run(None, knowledge_of=stored.book.path, views=tampered)


def test_a_view_that_changes_while_learning_is_refused(stored, monkeypatch):
    """The check before the start is not the last: a share of every batch is compared."""
    from bookkd.views import Views as Class

    calls = []
    real = Class.seeds

    def shifted(self, samples, views):
        calls.append(len(samples))
        return [seed + 1 if sum(calls) > 150 else seed for seed in real(self, samples, views)]

    monkeypatch.setattr(Class, "seeds", shifted)
    with pytest.raises(ViewMismatchError, match="Expected the replayed view"):
        run(None, knowledge_of=stored.book.path, training=training(epochs=20, probe_share=0.2))


@pytest.mark.parametrize("order", ["reversed", "filtered"])
def test_reordered_and_filtered_data_find_their_records(stored, order):
    positions = np.arange(60)[::-1] if order == "reversed" else np.flatnonzero(np.asarray(TRAIN.labels) < 4)
    mine = SubsetDataset(TRAIN, positions.tolist())
    rows = stored.book.rows_of(KEYS[positions])
    assert rows.tolist() == positions.tolist()
    check_alignment(stored, mine, views(), class_names=TASK.class_names, rows=rows)
    replay = Replay(mine, views(), rows=rows)
    batch = collate([replay[Pick(int(row), 1)] for row in rows])
    live = LiveKnowledge(teacher(), TASK).targets(batch)["logits"].logits
    torch.testing.assert_close(stored.targets(batch)["logits"].logits.float(), live, rtol=2e-3, atol=2e-3)
    assert batch["label"].tolist() == np.asarray(TRAIN.labels)[positions].tolist()
    # The rows of another order are other samples.
    with pytest.raises(ViewMismatchError, match="Expected the replayed view"):
        check_alignment(stored, mine, views(), class_names=TASK.class_names, rows=np.roll(rows, 1))


def test_learning_from_a_part_of_the_book_in_any_order(stored):
    positions = np.random.default_rng(0).permutation(60)[:40]
    learned = []
    for order in (positions, np.sort(positions)):
        options = {"task": TASK, "knowledge": stored, "method": VanillaKD(), "training": training()}
        mine = SubsetDataset(TRAIN, order.tolist())
        learned.append(learn(student(), mine, views(), rows=order, preprocess=lambda x: x.float() / 255, **options))
    # The order of samples comes from the rows that are given, so the two see other batches, of the same samples.
    assert [record["step"] for record in learned[0].history] == [5, 10]
    losses = [one.history[-1]["train/soft_target"] for one in learned]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


@pytest.mark.parametrize("mix", [MixUp(1.0), CutMix(1.0)], ids=["mixup", "cutmix"])
def test_mixed_views_hold_the_teachers_word_on_the_mixture(tmp_path, mix):
    seen = views(mix=mix)
    stored = StoredKnowledge(book(tmp_path / "book", views=seen))
    replay = Replay(TRAIN, seen)
    batch = collate([replay[Pick(sample, 1)] for sample in range(60)])
    with torch.no_grad():
        said = teacher()(batch["input"])
    torch.testing.assert_close(stored.targets(batch)["logits"].logits.float(), said, rtol=2e-3, atol=2e-3)
    assert (batch["partner"] != batch["sample"]).all()

    learned = run(None, knowledge=stored, views=seen)
    assert np.isfinite(learned.history[-1]["train/cross_entropy"])
    with pytest.raises(BookMismatchError, match="mix alpha"):
        run(None, knowledge=stored, views=views(mix=dataclasses.replace(mix, alpha=0.5)))
    with pytest.raises(BookMismatchError, match="mix pool"):
        run(None, knowledge=stored, views=views(mix=dataclasses.replace(mix, pool=30)))
    with pytest.raises(BookMismatchError, match="mix"):
        run(None, knowledge=stored, views=views())
    other = CutMix(1.0) if mix.name == "mixup" else MixUp(1.0)
    with pytest.raises(BookMismatchError, match="mix name"):
        run(None, knowledge=stored, views=views(mix=other))


def test_the_pool_of_partners_is_the_books(tmp_path):
    stored = StoredKnowledge(book(tmp_path / "book", views=views(mix=MixUp(1.0, pool=20))))
    assert with_pool_of(stored, views(mix=MixUp(1.0))).mix == MixUp(1.0, pool=20)
    assert with_pool_of(stored, views()).mix is None
    assert np.isfinite(run(None, knowledge=stored, views=views(mix=MixUp(1.0))).history[-1]["train/loss"])


def test_rows_that_fit_nothing(stored):
    with pytest.raises(ConfigError, match=r"Expected `rows` to be whole numbers of shape \(60,\)"):
        check_alignment(stored, TRAIN, views(), class_names=TASK.class_names, rows=[1, 2])


def test_labels_of_another_length_are_refused(stored):
    with pytest.raises(
        ConfigError, match=r"`labels` to be numbers, one or one vector a row of the book \(at least 60\)"
    ):
        run(None, knowledge=stored, labels=np.zeros(10, dtype=np.int64))


def test_a_copy_of_the_data_learns_the_same(stored):
    copied = ArrayDataset(
        "digits", torch.stack([image for image, _ in TRAIN]), np.asarray(TRAIN.labels), TRAIN.class_names
    )
    options = {"task": TASK, "knowledge": stored, "method": VanillaKD(), "training": training(epochs=1)}
    learned = [learn(student("digits-small"), data, views(), **options, preprocess=_scale) for data in (TRAIN, copied)]
    assert_equal(learned[0].student, learned[1].student)


def _scale(view):
    return view.float() / 255
