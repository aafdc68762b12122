"""A student of some of the teacher's classes: the card's numbers, what is refused, and learning from one full book."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bookkd.book import TopK
from bookkd.core.errors import ConfigError, FidelityError, UnknownNameError
from bookkd.knowledge import LiveKnowledge, StoredKnowledge
from bookkd.learning import Training, learn, measure_network
from bookkd.losses import CombinedTarget, DenseTarget, SparseTarget, soft_target_kl
from bookkd.methods import CSKD, VanillaKD
from bookkd.tasks import Classification
from bookkd.views import CutMix
from bookkd.zoo import SubsetDataset, class_subset, create_network, find_classes, open_dataset

NAMES = tuple("abcde")
Z_T, Z_S = torch.tensor([[3, 1, 0.2, -1, 2]], dtype=torch.float64), torch.tensor([[0.5, 0, 1]], dtype=torch.float64)
TASK = Classification(("b", "d", "e"), whole=NAMES)
TASK_OF_ALL = Classification(tuple("0123456789"))
HYPER = {"t_squared": True, "class_reduction": "sum"}


def said(task=TASK, logits=Z_T):
    return task.targets({"logits": DenseTarget(logits)}, {})["logits"]


@pytest.mark.parametrize(
    ("temperature", "expected", "kl"),
    [(1.0, (0.259496, 0.035119, 0.705385), 0.131271), (4.0, (0.345954, 0.209832, 0.444214), 0.307276)],
)
def test_the_numbers_of_the_card(temperature, expected, kl):
    found = said().log_probabilities(temperature).exp()[0]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    whole = (Z_T.softmax(1) ** (1 / temperature))[0, [1, 3, 4]]
    torch.testing.assert_close(found, whole / whole.sum())
    loss = soft_target_kl(Z_S, said(), temperature=temperature, **HYPER)
    assert loss.item() == pytest.approx(kl, abs=1e-6)


def test_classes_outside_and_constants_play_no_part():
    changed = Z_T.clone()
    changed[0, [0, 2]] = 50.0
    torch.testing.assert_close(said(logits=changed).log_probabilities(1.0), said().log_probabilities(1.0))
    torch.testing.assert_close(said(logits=Z_T + 7).log_probabilities(1.0), said().log_probabilities(1.0))


def test_the_order_is_the_students():
    turned = Classification(("e", "b", "d"), whole=NAMES)
    one = soft_target_kl(Z_S, said(), temperature=1.0, **HYPER)
    two = soft_target_kl(Z_S[:, [2, 0, 1]], said(turned), temperature=1.0, **HYPER)
    torch.testing.assert_close(one, two)


def test_all_classes_are_ordinary_distillation():
    every = Classification(NAMES, whole=NAMES)
    torch.testing.assert_close(said(every).log_probabilities(2.0), (Z_T / 2).log_softmax(1))


def test_several_teachers_are_each_renormalised():
    both = CombinedTarget.of([DenseTarget(Z_T), DenseTarget(-Z_T)])
    found = TASK.targets({"logits": both}, {})["logits"].log_probabilities(1.0).exp()
    each = [sign * Z_T[:, [1, 3, 4]] for sign in (1, -1)]
    torch.testing.assert_close(found, sum(z.softmax(1) for z in each) / 2)


def test_a_network_of_all_classes_is_read_for_some():
    assert TASK.fields(Z_T, {})["logits"].tolist() == [[1.0, -1.0, 2.0]]


def test_sparse_targets_are_refused():
    with pytest.raises(
        FidelityError, match=r"every class, to renormalise over 3 of 5, got .?a SparseTarget, which may have left"
    ):
        TASK.targets({"logits": SparseTarget.from_logits(Z_T, 2, (1.0,))}, {})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (["a", "f"], UnknownNameError, r"Unknown class 'f' \(pets\)\. Nearest: a"),
        ([1, 9], UnknownNameError, r"`class` to be a number from 0 to 4, or a name, got '9' \(pets\)"),
        (["a", "0"], ConfigError, r"`classes` to be each given once, got .?a twice.? \(pets\)"),
        (["a"], ConfigError, r"`classes` to be at least two, to tell apart"),
    ],
)
def test_unknown_and_repeated_classes_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        find_classes(given, NAMES, "pets")


def test_samples_keep_their_rows_and_get_new_labels():
    whole = open_dataset("digits", limit=60)
    some = class_subset(whole, [7, 3])
    assert some.class_names == (whole.class_names[7], whole.class_names[3])
    for row in range(len(some)):
        view, label = some[row]
        other, old = whole[int(some.indices[row])]
        assert (int(old), bool((view == other).all())) == ({0: 7, 1: 3}[int(label)], True)
    assert some.labels.tolist() == [int(some[row][1]) for row in range(len(some))]


@pytest.mark.parametrize("method", [VanillaKD(), CSKD()], ids=lambda method: method.name)
def test_one_full_book_serves_a_subset_as_its_live_teacher_does(method, stored):
    from tests.learning.digits import TRAIN, teacher, to_float, views

    some = class_subset(TRAIN, [1, 4, 6])
    task, rows = Classification.of(some), some.indices.tolist()
    students = []
    for knowledge in (StoredKnowledge(stored), LiveKnowledge(teacher(), task)):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            student = create_network("digits-small", n_classes=3)
        learn(
            student, some, views(), task=task, method=method, knowledge=knowledge, preprocess=to_float, rows=rows,
            training=Training(epochs=2, batch_size=6, accelerator="cpu", seed=1),
        )  # fmt: skip
        students.append(student)
    for one, two in zip(*(student.parameters() for student in students), strict=True):
        torch.testing.assert_close(one, two, rtol=2e-3, atol=1e-4)
    measured = measure_network(teacher(), some, task, device="cpu", replicates=0)
    with torch.no_grad():
        logits = teacher().network(to_float(torch.stack([view for view, _ in some])))
    right = logits[:, [1, 4, 6]].argmax(1).numpy() == some.labels
    assert measured.metrics["accuracy"].value == pytest.approx(right.mean())


class Listed(torch.utils.data.Dataset):
    """Labels as a user's own data have them: a list, and a tensor for each sample."""

    name, class_names, labels = "listed", NAMES, [0, 3, 1, 3, 4]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return torch.zeros(1, 2, 2), torch.tensor(self.labels[row])


def test_labels_may_be_lists_and_tensors():
    some = class_subset(Listed(), ["d", "a"])
    assert (some.labels.tolist(), [some[row][1] for row in range(3)]) == ([1, 0, 0], [1, 0, 0])
    assert some.labels is some.labels  # worked out once
    part = SubsetDataset(some, np.array([2, 0]))
    assert Classification.of(part) == Classification(("d", "a"), whole=NAMES)


def test_a_full_book_of_mixed_views_teaches_a_part(tmp_path):
    from tests.learning.digits import TRAIN, book, to_float, views

    mixed = views(mix=CutMix(1.0))
    stored, some = StoredKnowledge(book(tmp_path / "b", views=mixed)), class_subset(TRAIN, [1, 4, 6])
    options = {"method": VanillaKD(), "knowledge": stored, "preprocess": to_float}
    options |= {"training": Training(epochs=1, batch_size=6, accelerator="cpu")}
    rows = some.indices.tolist()
    # Of labels by row of the book those behind the last one of the part are not known either.
    labels = np.full(max(rows) + 1, -1)
    labels[rows] = some.labels
    for given in (None, labels):
        student = create_network("digits-small", n_classes=3)
        found = learn(student, some, mixed, task=Classification.of(some), rows=rows, labels=given, **options)
        assert np.isfinite(found.history[0]["train/loss"])
    plain = [some.whole[row] for row in rows]
    with pytest.raises(ConfigError, match=rf"`rows` to be of all 60 samples, .*, got {len(rows)} of them"):
        learn(create_network("digits-small", n_classes=10), plain, mixed, task=TASK_OF_ALL, rows=rows, **options)


def test_a_top_k_book_is_refused_with_the_reason(tmp_path):
    from tests.learning.digits import TRAIN, book, to_float, views

    sparse, some = book(tmp_path / "b", codec=TopK(3, (1.0, 4.0))), class_subset(TRAIN, [1, 4, 6])
    with pytest.raises(FidelityError, match="'logits' to be dense for method vanilla-kd, got a sparse codec"):
        learn(
            create_network("digits-small", n_classes=3), some, views(), task=Classification.of(some), method=VanillaKD(),
            knowledge=StoredKnowledge(sparse), rows=some.indices.tolist(), preprocess=to_float,
        )  # fmt: skip
