"""FKD and TinyViT: a view for each crop or epoch, from bytes built after the published layouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.interchange import builders

from bookkd.book import Book, verify
from bookkd.core.errors import BookMismatchError, DataError, FidelityError
from bookkd.interchange import import_book, sample_key


def fkd(tmp_path, out="book", **options):
    return import_book(tmp_path / out, tmp_path / "fkd", source_format="fkd", **{"n_classes": 20, **options}).book


@pytest.mark.parametrize("new", [True, False], ids=["zip", "stream"])
def test_fkd_marginal_smoothing(tmp_path, new):
    p, box, flip = builders.fkd(tmp_path / "fkd", new=new)
    book = fkd(tmp_path)
    assert (book.n_samples, book.n_views, verify(book.path)) == (5, 3, [])
    for view in range(3):
        classes, kept, tail = builders.decoded(book, view=view)
        wanted, values = builders.top(p[:, view], 5)
        np.testing.assert_array_equal(classes, wanted)
        np.testing.assert_allclose(kept, values, rtol=2e-3, atol=1e-7)
        np.testing.assert_allclose(tail, 1 - values.sum(axis=1), rtol=1e-4, atol=1e-7)
        # What FKD's reader makes of the tail: even over the other classes.
        dense = np.full((5, 20), (tail / 15)[:, None])
        np.put_along_axis(dense, classes, kept, axis=1)
        np.testing.assert_allclose(dense.sum(axis=1), 1, rtol=1e-6)
        raw = book.read(np.arange(5), view, ["view/box", "view/flip"])
        np.testing.assert_array_equal(raw["view/box"], box[:, view])
        np.testing.assert_array_equal(raw["view/flip"], flip[:, view])


@pytest.mark.parametrize("kind", ["hard", "smoothing", "marginal k10"])
def test_fkd_other_labels(tmp_path, kind):
    p, _, _ = builders.fkd(tmp_path / "fkd", kind=kind)
    classes, kept, tail = builders.decoded(fkd(tmp_path), view=1)
    assert classes[:, 0].tolist() == p[:, 1].argmax(axis=1).tolist()
    if kind == "hard":
        assert (kept == 1).all()
        assert (tail == 0).all()
    else:
        np.testing.assert_allclose(tail, 1 - np.sort(p[:, 1])[:, -kept.shape[1] :].sum(axis=1), rtol=1e-4, atol=1e-7)


def test_fkd_renormalised_and_in_half_precision(tmp_path):
    p, _, _ = builders.fkd(tmp_path / "fkd", dtype=np.float16)
    _, kept, tail = builders.decoded(fkd(tmp_path, renormalise=True), view=2)
    values = builders.top(p[:, 2], 5)[1]
    np.testing.assert_allclose(kept, values / values.sum(axis=1, keepdims=True), rtol=5e-3)
    assert (tail == 0).all()


def test_fkd_keeps_fewer_classes_with_their_mass_in_the_tail(tmp_path):
    p, _, _ = builders.fkd(tmp_path / "fkd")
    _, kept, tail = builders.decoded(fkd(tmp_path, k=2), view=0)
    values = np.sort(p[:, 0])[:, ::-1][:, :2]
    np.testing.assert_allclose(kept, values, rtol=2e-3)
    np.testing.assert_allclose(tail, 1 - values.sum(axis=1), rtol=1e-4)


def test_fkd_other_temperatures_are_refused(tmp_path):
    builders.fkd(tmp_path / "fkd")
    with pytest.raises(FidelityError, match="promises"):
        fkd(tmp_path).fields["logits"].codec.check_temperature(4.0)


def test_fkd_samples_are_those_of_a_folder_of_classes(tmp_path):
    builders.fkd(tmp_path / "fkd")
    book = fkd(tmp_path)
    names = ["train/n00000000/image_0", "train/n00000000/image_2", "train/n00000000/image_4", "train/n00000001/image_1"]
    assert book.rows_of(np.array([sample_key(name) for name in names], dtype=np.uint64)).tolist() == [0, 1, 2, 3]


def test_an_interrupted_import_goes_on_to_an_equal_book(tmp_path, monkeypatch):
    monkeypatch.setattr("bookkd.interchange.convert._UNIT_BYTES", 700)  # units of 2 images
    builders.fkd(tmp_path / "fkd")
    whole = fkd(tmp_path, "whole")

    def stop(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fkd(tmp_path, progress=stop)
    told = []
    book = fkd(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told[0][0] > 7
    assert told[-1] == (15, 15)
    assert book.content_digest == whole.content_digest
    assert verify(book.path) == []


def test_a_book_of_another_source_is_refused(tmp_path):
    builders.fkd(tmp_path / "fkd")
    fkd(tmp_path)
    with pytest.raises(BookMismatchError, match="teachers"):
        fkd(tmp_path, teacher="another")


def test_the_loss_is_measured_and_said(tmp_path):
    p, _, _ = builders.fkd(tmp_path / "fkd", kind="marginal k5")
    made = import_book(tmp_path / "book", tmp_path / "fkd", source_format="fkd", n_classes=20)
    measured = made.book.fidelity["logits"]
    assert measured["n"] == 15
    assert measured["top1_agreement"] == 1
    assert measured["temperatures"]["1"]["kept_mass"] == pytest.approx(
        np.sort(p)[..., -5:].sum(axis=-1).mean(), abs=1e-5
    )
    assert 0 < measured["temperatures"]["1"]["max"] < 1e-5
    assert any("one tail" in note for note in made.notes)
    assert made.book.cost["notes"] == list(made.notes)


def test_an_imported_book_teaches(tmp_path):
    from bookkd.knowledge import StoredKnowledge
    from bookkd.losses import soft_target_kl

    p, _, _ = builders.fkd(tmp_path / "fkd")
    targets = StoredKnowledge(fkd(tmp_path)).targets(
        {"sample": torch.arange(5), "view": torch.full((5,), 1)}, ["logits"]
    )
    options = {"temperature": 1.0, "t_squared": True, "class_reduction": "sum"}
    exact = soft_target_kl(torch.log(torch.from_numpy(p[:, 1])), targets["logits"], **options)
    assert exact.abs().max() < 1e-4  # the teacher itself is where the loss is 0
    assert soft_target_kl(torch.zeros(5, 20), targets["logits"], **options).min() > 0.1


BOX = np.array([[0.1, 0.1, 0.5, 0.5]] * 3, dtype=np.float32)
FLIP = np.array([True, False, True])
LABELS = np.stack([np.tile(np.arange(5.0), (3, 1)), np.full((3, 5), 0.1)], axis=1).astype(np.float32)


def changed(array, value):
    found = array.copy()
    found.flat[0] = value
    return found


@pytest.mark.parametrize(
    ("box", "flip", "labels", "said"),
    [
        (BOX[:, :3], FLIP, LABELS, r"`coordinates` to be float \[crops, 4\]"),
        (changed(BOX, np.nan), FLIP, LABELS, "`coordinates` to be shares of the image, got nan"),
        (changed(BOX, 7.0), FLIP, LABELS, "`coordinates` to be shares of the image, got 7"),
        (BOX, FLIP[:2], LABELS, r"`flips` to be bool \[3\]"),
        (BOX, np.array([0, 1, 2]), LABELS, "`flips`"),
        (BOX, FLIP, LABELS[:2], "`labels`"),
        (BOX, FLIP, changed(LABELS, 0.5), "`classes` to be whole numbers"),
        (BOX, FLIP, changed(LABELS, np.nan), "`classes` to be whole numbers"),
        (BOX, FLIP, changed(LABELS, 20), "`class` to be from 0 to 19, got 20"),
        (BOX, FLIP, changed(LABELS, -1), "`class` to be from 0 to 19, got -1"),
        (BOX, FLIP, changed(LABELS, 1), "`classes` to be without repeats, got class 1 twice"),
        (BOX, FLIP, LABELS * np.array([[[1], [3]]], np.float32), "at most 1 together"),
        (BOX, FLIP, LABELS * np.array([[[1], [-1]]], np.float32), "`probabilities` to be from 0"),
        (BOX, FLIP, LABELS * np.array([[[1], [0]]], np.float32), "above 0 for one class"),
        (BOX, FLIP, LABELS.astype(np.float16) + np.array([[[4096], [0]]], np.float16), "whole numbers below 2048"),
        (BOX, FLIP, np.array([0, 1, 20]), "got 20"),
    ],
)
def test_fkd_files_that_say_something_else(tmp_path, box, flip, labels, said):
    builders.fkd_file(tmp_path / "fkd" / "image.tar", box, flip, labels)
    with pytest.raises(DataError, match=said) as caught:
        fkd(tmp_path)
    assert "image.tar" in str(caught.value)


def test_fkd_folders_that_do_not_fit(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        fkd(tmp_path)
    (tmp_path / "fkd").mkdir()
    with pytest.raises(DataError, match=r"files of FKD .* got none there"):
        fkd(tmp_path)
    builders.fkd_file(tmp_path / "fkd" / "a.tar", BOX, FLIP, LABELS)
    with pytest.raises(DataError, match="Pass --n_classes"):
        fkd(tmp_path, n_classes=None)
    builders.fkd_file(tmp_path / "fkd" / "b.tar", BOX[:2], FLIP[:2], LABELS[:2])
    with pytest.raises(DataError, match=r"3 crops with labels marginal k5, as a.tar has, got 2 crops"):
        fkd(tmp_path)
    whole = (tmp_path / "fkd" / "a.tar").read_bytes()
    (tmp_path / "fkd" / "b.tar").write_bytes(whole[:-200])
    with pytest.raises(DataError, match=r"b\.tar"):
        fkd(tmp_path, "other")


KEYS = [f"n{i % 3:08d}/n{i % 3:08d}_{i}" for i in range(7)]


def tinyvit(tmp_path, out="book", **options):
    found = import_book(tmp_path / out, tmp_path / "logits", source_format="tinyvit", **{"n_classes": 50, **options})
    return found.book


def test_tinyvit(tmp_path):
    p, seeds = builders.tinyvit(tmp_path / "logits", keys=KEYS)
    book = tinyvit(tmp_path)
    assert (book.n_samples, book.n_views, verify(book.path)) == (7, 2, [])
    assert book.plan.views["epochs"] == [0, 1]
    rows = book.rows_of(np.array([sample_key(key) for key in KEYS], dtype=np.uint64))
    assert rows.tolist() == np.argsort(np.argsort(KEYS)).tolist()  # the order of a folder of classes
    for epoch in range(2):
        classes, kept, tail = builders.decoded(book, rows, epoch)
        wanted, values = builders.top(p[epoch], 4)
        np.testing.assert_array_equal(classes, wanted)
        halves = values.astype(np.float16).astype(np.float64)
        np.testing.assert_allclose(kept, halves, rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(tail, 1 - halves.sum(axis=1), rtol=1e-4, atol=1e-6)
        assert book.read(rows, epoch, ["view/seed"])["view/seed"].tolist() == seeds[epoch].tolist()


def test_tinyvit_partners_are_the_pairs_of_a_rank(tmp_path):
    """Its mode "pair2" mixes samples 2i and 2i + 1 of a batch, by the exclusive or of both seeds."""
    builders.tinyvit(tmp_path / "logits", keys=KEYS)  # 7 keys over two ranks: 4 and 3
    book = tinyvit(tmp_path)
    for epoch in range(2):
        folder = tmp_path / "logits" / f"logits_top4_epoch{epoch}"
        said = book.read(np.arange(7), epoch, ["view/seed", "view/partner", "view/partner_seed"])
        for rank in range(2):
            keys = [sample_key(key) for key in (folder / f"rank{rank}-keys.txt").read_text().split()]
            values = (folder / f"rank{rank}-values.bin").read_bytes()
            seeds = [int.from_bytes(values[20 * i : 20 * i + 4], "little", signed=True) for i in range(len(keys))]
            for i, row in enumerate(book.rows_of(np.array(keys, np.uint64))):
                other = i + 1 if i % 2 == 0 else i - 1
                alone = other == len(keys)
                assert said["view/partner"][row] == (keys[i] if alone else keys[other])
                assert said["view/partner_seed"][row] == (-1 if alone else seeds[other])
                assert said["view/seed"][row] == seeds[i]
    assert book.plan.views["fields"] == ["view/seed", "view/partner", "view/partner_seed"]


def test_tinyvit_numbered_samples_stand_at_their_number(tmp_path):
    builders.tinyvit(tmp_path / "logits", keys=[str(i) for i in range(12)], epochs=1)
    assert tinyvit(tmp_path).keys.tolist() == list(range(12))


def test_tinyvit_a_key_of_two_ranks_is_taken_from_the_lower(tmp_path):
    _, seeds = builders.tinyvit(tmp_path / "logits", keys=["0", "1", "2"], epochs=1, ranks=1)
    folder = tmp_path / "logits" / "logits_top4_epoch0"
    (folder / "rank1-keys.txt").write_text("2\n0\n")
    (folder / "rank1-values.bin").write_bytes(builders.tinyvit_record(5, [1, 2, 3, 4], [0.1] * 4) * 2)
    said = tinyvit(tmp_path).read([0, 1, 2], 0, ["view/seed", "view/partner_seed"])
    assert said["view/seed"].tolist() == seeds[0].tolist()
    assert 5 not in said["view/partner_seed"]  # a partner is of the same rank as its sample


def test_tinyvit_one_folder_alone(tmp_path):
    builders.tinyvit(tmp_path / "logits", keys=KEYS)
    made = import_book(
        tmp_path / "b", tmp_path / "logits" / "logits_top4_epoch1", source_format="tinyvit", n_classes=50
    )
    assert made.book.plan.views["epochs"] == [1]


def write(path, text):
    return lambda folder: (folder / path).write_text(text)


def cut(path, by):
    return lambda folder: (folder / path).write_bytes((folder / path).read_bytes()[:-by])


def record(path, *, place=0, classes=(1, 2, 3, 4), p=(0.4, 0.3, 0.2, 0.1)):
    def change(folder):
        data = (folder / path).read_bytes()
        found = builders.tinyvit_record(1, classes, p)
        (folder / path).write_bytes(data[: place * 20] + found + data[place * 20 + 20 :])

    return change


FIRST, SECOND = "logits_top4_epoch0/rank0", "logits_top4_epoch1/rank0"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut(f"{SECOND}-values.bin", 1), r"records of 20 bytes, one for each key .* It is cut"),
        (cut(f"{SECOND}-values.bin", 20), "It is cut"),
        (record(f"{FIRST}-values.bin", classes=(1, -5, 3, 4)), "class -5.*does not fit int16"),
        (record(f"{FIRST}-values.bin", classes=(1, 50, 3, 4)), "`class` to be from 0 to 49, got 50"),
        (record(f"{FIRST}-values.bin", classes=(1, 1, 3, 4)), "class 1 twice"),
        (record(f"{FIRST}-values.bin", p=(0.9, 0.9, 0.1, 0.1)), "at most 1 together"),
        (record(f"{FIRST}-values.bin", p=(float("nan"), 0.1, 0.1, 0.1)), "from 0"),
        (record(f"{FIRST}-values.bin", p=(float("inf"), 0.1, 0.1, 0.1)), "up to 0, got inf"),
        (write(f"{SECOND}-keys.txt", "".join(f"{i}\n" for i in (0, 1, 3))), "got another in line 3"),
        (write(f"{SECOND}-keys.txt", "0\n1\n1\n"), "one twice in one rank"),
        (write(f"{FIRST}-keys.txt", "0\n\n2\n"), "1 to 4096 bytes"),
        (write(f"{FIRST}-keys.txt", "0" * 5000 + "\n"), "1 to 4096 bytes"),
        (lambda folder: (folder / f"{FIRST}-keys.txt").unlink(), "`keys` to be readable"),
        (lambda folder: (folder / "logits_top9_epoch3").mkdir(), "of one k, got k 4, 9"),
    ],
)
def test_tinyvit_that_is_damaged(tmp_path, change, said):
    builders.tinyvit(tmp_path / "logits", keys=["0", "1", "2"], ranks=1)
    change(tmp_path / "logits")
    with pytest.raises(DataError, match=said):
        tinyvit(tmp_path)


def test_tinyvit_a_sample_that_an_epoch_lacks(tmp_path):
    builders.tinyvit(tmp_path / "logits", keys=["0", "1", "2"], ranks=1)
    folder = tmp_path / "logits" / "logits_top4_epoch1"
    (folder / "rank0-keys.txt").write_text("2\n0\n")
    (folder / "rank0-values.bin").write_bytes((folder / "rank0-values.bin").read_bytes()[:40])
    with pytest.raises(DataError, match="1 missing, first with key 1"):
        tinyvit(tmp_path)


def test_tinyvit_more_classes_than_int16_holds(tmp_path):
    builders.tinyvit(tmp_path / "logits", keys=["0"])
    with pytest.raises(DataError, match="at most 32768: TinyViT keeps classes as int16"):
        tinyvit(tmp_path, n_classes=40000)


def test_links_are_not_followed(tmp_path):
    builders.tinyvit(tmp_path / "elsewhere", keys=["0"], epochs=1)
    (tmp_path / "logits").mkdir()
    (tmp_path / "logits" / "logits_top4_epoch0").symlink_to(tmp_path / "elsewhere" / "logits_top4_epoch0")
    with pytest.raises(DataError, match="got none"):
        tinyvit(tmp_path)


def test_books_open_without_the_source(tmp_path):
    builders.tinyvit(tmp_path / "logits", keys=KEYS)
    book = tinyvit(tmp_path)
    (tmp_path / "logits").rename(tmp_path / "gone")
    assert Book(book.path, verify="all").n_samples == 7
