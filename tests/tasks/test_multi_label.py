"""Multi-label: torch's binary cross-entropy and divergence, labels in every form, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, rel_entr
from tests.tasks.test_tasks import loss_of
from torch.nn.functional import binary_cross_entropy_with_logits

from bookkd.core.errors import ConfigError, DataError, FidelityError, TeacherOutputError
from bookkd.losses import BakedTarget, CombinedTarget, DenseTarget, SparseTarget
from bookkd.objectives import Combine, Correct, Objective, transformed
from bookkd.tasks import Classification, MultiLabel

TASK = MultiLabel(("a", "b", "c"))
Z = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]], dtype=torch.float64)
V = torch.tensor([[2.0, -1.0, -0.5], [1.0, 1.0, -4.0]], dtype=torch.float64)
Y = torch.tensor([[1, 0, 1], [0, 1, 0]])
ONES = torch.ones(2, dtype=torch.float64)


def soft(temperature=3.0, **options):
    options = {"t_squared": True, "class_reduction": "sum", "soft_loss": "kl", **options}
    return TASK.soft_term(weight=1.0, temperature=temperature, **options)


def labelled_loss(labels, label_smoothing=0.0, **batch):
    objective = Objective((TASK.label_term(weight=1.0, label_smoothing=label_smoothing),))
    return float(loss_of(TASK, objective, {"logits": Z}, {}, {"label": labels, "weight": ONES, **batch}))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.float32, torch.float64])
def test_label_term_is_torchs_binary_cross_entropy(dtype):
    expected = binary_cross_entropy_with_logits(Z, Y.double())
    assert labelled_loss(Y.to(dtype)) == pytest.approx(float(expected), rel=1e-6)


def test_label_smoothing_moves_labels_towards_a_half():
    expected = binary_cross_entropy_with_logits(Z, 0.8 * Y.double() + 0.1)
    assert labelled_loss(Y, 0.2) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("hidden", [-1, float("nan")])
def test_unknown_classes_are_left_out(hidden):
    labels = Y.double()
    labels[0, 1] = labels[1, 2] = hidden
    known = torch.tensor([[True, False, True], [True, True, False]])
    expected = binary_cross_entropy_with_logits(Z[known], Y.double()[known])
    assert labelled_loss(labels) == pytest.approx(float(expected), rel=1e-6)


def test_mixed_views_use_both_labels():
    ratio = torch.tensor([0.3, 1.0])
    target = ratio[:, None] * Y + (1 - ratio[:, None]) * Y.flip(0)
    expected = binary_cross_entropy_with_logits(Z, target.double())
    assert labelled_loss(Y, partner_label=Y.flip(0), ratio=ratio) == pytest.approx(float(expected), rel=1e-6)


def test_images_without_labels_have_none():
    assert labelled_loss(torch.tensor([-1, -1])) == 0


def test_soft_term_is_the_binary_divergence_of_each_class():
    targets = {"logits": DenseTarget(V)}
    found = loss_of(TASK, Objective((soft(),)), {"logits": Z}, targets, {"label": Y, "weight": ONES})
    q, p = expit(Z.numpy() / 3), expit(V.numpy() / 3)
    assert float(found) == pytest.approx(9 * (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).mean(), rel=1e-10)


def test_a_sample_that_only_pads_weighs_nothing():
    batch = {"label": Y, "weight": torch.tensor([1.0, 0.0], dtype=torch.float64)}
    found = loss_of(TASK, Objective((soft(),)), {"logits": Z}, {"logits": DenseTarget(V)}, batch)
    one = {"label": Y[:1], "weight": ONES[:1]}
    alone = loss_of(TASK, Objective((soft(),)), {"logits": Z[:1]}, {"logits": DenseTarget(V[:1])}, one)
    assert float(found) == pytest.approx(float(alone), rel=1e-12)


def test_several_teachers_are_combined_class_by_class():
    both = CombinedTarget.of([DenseTarget(V), DenseTarget(Z.flip(0))])
    term = transformed(soft(temperature=1.0), Combine("probability"))
    found = loss_of(TASK, Objective((term,)), {"logits": Z}, {"logits": both}, {"label": Y, "weight": ONES})
    q, p = expit(Z.numpy()), (expit(V.numpy()) + expit(Z.flip(0).numpy())) / 2
    assert float(found) == pytest.approx((rel_entr(p, q) + rel_entr(1 - p, 1 - q)).mean(), rel=1e-10)


def test_a_wrong_teacher_is_corrected_class_by_class():
    target = TASK.targets({"logits": DenseTarget(torch.tensor([[3.0, 0.0, -3.0]]))}, {})["logits"]
    corrected = Correct().teacher(target, {"label": torch.tensor([[0, 1, 0]])}).log_probabilities(1.0).exp()
    torch.testing.assert_close(corrected[0, 0], torch.tensor([0.5, 0.5]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(corrected[0, 2], torch.tensor([expit(3.0), expit(-3.0)]).float())


def test_what_a_peer_says_is_shown_alike_and_features_are_not():
    seen = TASK.student({"logits": Z, "peers/1/logits": V, "logits/scaled": Z, "features/last": Z})
    assert {name: value.shape[1:] for name, value in seen.items()} == {
        "logits": (3, 2),
        "peers/1/logits": (3, 2),
        "logits/scaled": (3, 2),
        "features/last": (3,),
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_book_in_half_precision_is_shown_under_autocast(dtype):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        shown = TASK.targets({"logits": DenseTarget(V.to(dtype))}, {})["logits"]
    assert torch.equal(shown.logits, torch.stack([torch.zeros(2, 3), V], -1).to(dtype))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (SparseTarget.from_logits(V, 2, (1.0,)), r"the logit of every class, got a SparseTarget .*codec dense or int8"),
        (BakedTarget(DenseTarget(V), 2.0), r"got a BakedTarget .*baked from"),
    ],
)
def test_targets_that_lack_logits_are_refused(target, message):
    with pytest.raises(FidelityError, match=message):
        TASK.targets({"logits": target}, {})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([1, 0]), r"Expected `label` to be \[batch, 3\], got shape \[2\]"),
        (torch.zeros(2, 4), r"got shape \[2, 4\]"),
        (torch.full((2, 3), 0.5), r"0, 1, or -1 where not known, got 0\.5"),
        (torch.full((2, 3), 2), r"`label` to be 0 to 1"),
    ],
)
def test_labels_of_another_form_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        labelled_loss(labels)


def test_labels_of_a_data_set_are_checked():
    TASK.check_labels(np.array([[0, 1, -1]]), "toy")
    TASK.check_labels(np.array([[0.0, 1.0, np.nan]]), "toy")
    with pytest.raises(DataError, match=r"got 2 \(sample 1 of toy, class c\)"):
        TASK.check_labels(np.array([[0, 1, 0], [0, 1, 2]]), "toy")
    with pytest.raises(DataError, match=r"\[samples, 3\], got shape \[2\]"):
        TASK.check_labels(np.array([0, 1]), "toy")


def test_shapes_are_checked():
    assert MultiLabel(("only",)).n_classes == 1
    with pytest.raises(ConfigError, match="at least one name"):
        MultiLabel(())
    with pytest.raises(TeacherOutputError, match=r"\[batch, 3\], got shape \(2, 4\)"):
        TASK.fields(torch.zeros(2, 4), {})


@pytest.mark.parametrize("soft_loss", ["kl", "mse"])
def test_classification_matches_its_teacher_as_before(soft_loss):
    from bookkd.losses import soft_target_kl, softened_mse
    from bookkd.objectives import bind

    task = Classification(("a", "b", "c"))
    hyper = {"temperature": 2.0, "t_squared": True}
    loss = softened_mse if soft_loss == "mse" else soft_target_kl
    kl = {"class_reduction": "mean"} if soft_loss == "kl" else {}
    expected = bind(loss, "logits", teacher="logits", weight=0.9, name="soft_target", **hyper, **kl)
    assert task.soft_term(weight=0.9, class_reduction="mean", soft_loss=soft_loss, **hyper) == expected
