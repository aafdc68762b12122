"""Regression: torch's losses, what every kind of network returns, who gives a variance, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.tasks.test_tasks import loss_of
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import gaussian_nll_loss, mse_loss

from bookkd.core.errors import ConfigError, DataError, TeacherOutputError, UnknownNameError
from bookkd.losses import DenseTarget
from bookkd.methods import METHODS, VanillaKD, build_method
from bookkd.objectives import Objective
from bookkd.tasks import Classification, Regression

NAMES = ("x", "y")
M = torch.tensor([[0.5, -2.0], [1.5, 0.0]], dtype=torch.float64)
S = torch.tensor([[0.5, 2.0], [1.0, 0.1]], dtype=torch.float64)
N = torch.tensor([[1.0, -1.0], [0.5, 0.25]], dtype=torch.float64)
T = torch.tensor([[0.25, 4.0], [2.0, 0.3]], dtype=torch.float64)
Y = torch.tensor([[0.0, -1.5], [2.0, 0.75]], dtype=torch.float64)
ONES = torch.ones(2, dtype=torch.float64)


def student(task):
    return {"mean": M, "variance": S} if task.variance == "both" else {"mean": M}


def labelled_loss(variance="nobody", labels=Y, **batch):
    task = Regression(NAMES, variance)
    objective = Objective((task.label_term(weight=1.0, label_smoothing=0.0),))
    return float(loss_of(task, objective, student(task), {}, {"label": labels, "weight": ONES, **batch}))


def soft_loss(who, **said):
    task = Regression(NAMES, who)
    term = task.soft_term(weight=1.0, temperature=4.0, t_squared=True, class_reduction="sum", soft_loss="kl")
    targets = {name: DenseTarget(value) for name, value in said.items()}
    return float(loss_of(task, Objective((term,)), student(task), targets, {"label": Y, "weight": ONES}))


def test_label_terms_are_torchs():
    assert labelled_loss("nobody") == labelled_loss("teacher") == pytest.approx(float(mse_loss(M, Y)), rel=1e-12)
    assert labelled_loss("both") == pytest.approx(float(gaussian_nll_loss(M, Y, S)), rel=1e-12)


@pytest.mark.parametrize("variance", ["nobody", "both"])
def test_hidden_numbers_are_left_out(variance):
    labels = Y.clone()
    labels[0, 1] = torch.nan
    known = ~labels.isnan()
    expected = mse_loss(M[known], Y[known]) if variance == "nobody" else gaussian_nll_loss(M[known], Y[known], S[known])
    assert labelled_loss(variance, labels) == pytest.approx(float(expected), rel=1e-12)


def test_mixed_views_mix_the_labels():
    ratio = torch.tensor([0.25, 1.0], dtype=torch.float64)
    mixed = ratio[:, None] * Y + (1 - ratio[:, None]) * Y.flip(0)
    found = labelled_loss(partner_label=Y.flip(0), ratio=ratio)
    assert found == pytest.approx(float(mse_loss(M, mixed)), rel=1e-12)


def test_images_without_labels_have_none():
    assert labelled_loss(labels=torch.tensor([-1, -1])) == 0


def test_who_gives_a_variance_decides_how_the_teacher_is_matched():
    assert soft_loss("nobody", mean=N) == pytest.approx(float(mse_loss(M, N)), rel=1e-12)
    borrowed = kl_divergence(Normal(N, T.sqrt()), Normal(M, T.sqrt())).mean()
    assert soft_loss("teacher", mean=N, variance=T) == pytest.approx(float(borrowed), rel=1e-12)
    both = kl_divergence(Normal(N, T.sqrt()), Normal(M, S.sqrt())).mean()
    assert soft_loss("both", mean=N, variance=T) == pytest.approx(float(both), rel=1e-12)
    # A book keeps the mean in half precision and the variance in single.
    half = soft_loss("both", mean=N.half(), variance=T.float())
    assert half == pytest.approx(float(both), rel=1e-6)


@pytest.mark.parametrize(
    ("variance", "needs"),
    [("nobody", {"mean": ()}), ("teacher", {"mean": (), "variance": ()}), ("both", {"mean": (), "variance": ()})],
)
def test_a_method_needs_what_the_task_says(variance, needs):
    found = VanillaKD().needs(Regression(NAMES, variance))
    assert found.fields == needs
    assert set(found.dense) == set(needs)


def test_the_teachers_task_gives_its_variance():
    assert set(Regression(NAMES, "teacher").field_infos) == {"mean"}
    assert set(Regression(NAMES, "teacher").of_teacher().field_infos) == {"mean", "variance"}
    assert set(Regression(NAMES).of_teacher().field_infos) == {"mean"}
    assert Classification(NAMES).of_teacher() == Classification(NAMES)


@pytest.mark.parametrize(
    "output",
    [
        (M, S),
        [M, S],
        {"mean": M, "variance": S, "loss": 1},
        SimpleNamespace(mean=M, variance=S),
        Normal(M, S.sqrt()),
    ],
    ids=["tuple", "list", "mapping", "object", "distribution"],
)
def test_outputs_of_common_networks_are_understood(output):
    found = Regression(NAMES, "both").fields(output, {})
    torch.testing.assert_close(found, {"mean": M, "variance": S})
    assert set(Regression(NAMES).fields(output, {})) == {"mean"}


def test_one_output_may_be_flat():
    one = Regression(("angle",))
    assert one.fields(M[:, 0], {})["mean"].shape == (2, 1)
    assert one.fields((M[:, 0],), {})["mean"].shape == (2, 1)
    assert one.batch({"label": Y[:, 0]})["label"].shape == (2, 1)


@pytest.mark.parametrize(
    ("variance", "output", "message"),
    [
        ("nobody", torch.zeros(2, 3), r"`mean` to be \[batch, 2\], got shape \(2, 3\)"),
        ("nobody", torch.zeros(2), r"got shape \(2,\)"),
        ("nobody", None, "got a NoneType without it"),
        ("both", M, r"`variance` to be \[batch, 2\], got a Tensor without it .*\(mean, variance\)"),
        ("both", (M,), "a tuple without it"),
        ("both", (M, S - 0.1), r"`variance` to be above 0, got 0\.0 .*softplus"),
    ],
)
def test_other_outputs_are_refused(variance, output, message):
    with pytest.raises(TeacherOutputError, match=message):
        Regression(NAMES, variance).fields(output, {})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([[1, 2], [3, 4]]), r"`label` to be floating, got 'torch\.int64' .*as floats; NaN hides one"),
        (torch.zeros(2), r"`label` to be \[batch, 2\], got shape \[2\]"),
        (torch.zeros(2, 3), r"got shape \[2, 3\]"),
    ],
)
def test_labels_of_another_form_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        labelled_loss(labels=labels)


def test_labels_of_a_data_set_are_checked():
    task = Regression(NAMES)
    task.check_labels(np.array([[0.0, np.nan]]), "toy")
    Regression(("angle",)).check_labels(np.array([0.5, 1.0]), "toy")
    with pytest.raises(DataError, match=r"finite, or NaN where hidden, got inf \(sample 1 of toy\)"):
        task.check_labels(np.array([[0.0, 1.0], [np.inf, 0.0]]), "toy")
    with pytest.raises(DataError, match=r"floating \[samples, 2\], got int64 of shape \[1, 2\]"):
        task.check_labels(np.array([[0, 1]]), "toy")


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match="at least one name"):
        Regression(())
    with pytest.raises(UnknownNameError, match="Unknown variance 'student'"):
        Regression(NAMES, "student")
    with pytest.raises(ConfigError, match=r"`label_smoothing` to be 0 for numbers, got 0\.1"):
        VanillaKD(label_smoothing=0.1).objective(Regression(NAMES))
    with pytest.raises(ConfigError, match="`soft_loss` to be kl, got"):
        VanillaKD(soft_loss="mse", class_reduction="mean").objective(Regression(NAMES))


def test_methods_name_the_tasks_that_they_serve():
    serve = {name for name in METHODS if "regression" in build_method(name).tasks}
    assert serve == {"supervised", "vanilla-kd"}
