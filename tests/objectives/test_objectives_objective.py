"""The objective: worked sums, splits of the batch, masks, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bookkd.core.errors import ConfigError
from bookkd.core.schedules import Clock, During, Linear
from bookkd.losses import claims, cross_entropy, reverse_kl, soft_target_kl
from bookkd.objectives import Connector, Objective, bind, labelled, masked

SOFT = {"temperature": 4.0, "t_squared": True, "class_reduction": "sum"}
Z = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
V = torch.tensor([[2.0, 3.5, -1.0]], dtype=torch.float64)


def hard(weight):
    return bind(cross_entropy, batch=("label",), weight=weight, mask=labelled, label_smoothing=0.0)


def soft(weight, **changed):
    return bind(soft_target_kl, teacher="logits", weight=weight, **{**SOFT, **changed})


def run(objective, student, teacher, batch, weights, clock=None, totals=None):
    clock = clock or Clock()
    totals = objective.totals(batch, weights) if totals is None else totals
    return objective.loss(
        objective.sums({"logits": student}, {"logits": teacher}, batch, weights, clock), totals, clock
    )


@claims(scope="batch")
def gram(student, teacher):
    return (student @ student.T - teacher @ teacher.T).square().mean()


@pytest.mark.parametrize("copies", [1, 5])
@pytest.mark.parametrize(
    ("terms", "wanted"),
    [
        ((hard(0.1), soft(0.9)), 0.619714),
        ((hard(0.1), soft(0.9, class_reduction="mean")), 0.237529),
        ((hard(0.9), soft(0.1)), 0.481629),
        ((hard(0.1), soft(0.9, t_squared=False)), 0.082267),
        ((hard(1.0), soft(0.0)), 0.464369),
    ],
)
def test_worked_sums_for_one_row_and_for_a_batch_of_it(terms, wanted, copies):
    batch = {"label": torch.ones(copies, dtype=torch.int64)}
    found = run(Objective(terms), Z.expand(copies, 3), V.expand(copies, 3), batch, torch.ones(copies))
    assert found.item() == pytest.approx(wanted, abs=1e-6)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_the_loss_does_not_depend_on_the_split(data):
    rows = data.draw(st.integers(2, 9))
    cut = data.draw(st.integers(1, rows - 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    student, teacher = torch.randn(2, rows, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor(data.draw(st.lists(st.integers(-1, 3), min_size=rows, max_size=rows)))
    weights = torch.tensor(
        data.draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=rows, max_size=rows)), dtype=torch.float64
    )
    objective, clock = Objective((hard(0.1), soft(Linear(0.5, 1.5)))), Clock(step=3, total_steps=7)

    def loss_and_gradient(pieces):
        leaf = student.clone().requires_grad_()
        given = [({"label": labels[piece]}, weights[piece]) for piece in pieces]
        totals = sum(objective.totals(*each) for each in given)
        for piece, each in zip(pieces, given, strict=True):
            run(objective, leaf[piece], teacher[piece], *each, clock, totals).backward()
        parts = [
            run(objective, student[p], teacher[p], *each, clock, totals) for p, each in zip(pieces, given, strict=True)
        ]
        return sum(parts), leaf.grad

    whole, whole_slope = loss_and_gradient([slice(0, rows)])
    split, split_slope = loss_and_gradient([slice(0, cut), slice(cut, rows)])
    torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(split_slope, whole_slope, rtol=1e-12, atol=1e-12)


def test_the_mean_is_over_the_positions_that_count():
    student = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch = {"label": torch.tensor([0, -1, 2, 1])}
    weights = torch.tensor([1.0, 1.0, 2.0, 0.0], dtype=torch.float64)
    found = run(Objective((hard(1.0), soft(0.5))), student, student.flip(0), batch, weights)
    nll = torch.nn.functional.cross_entropy(student, torch.tensor([0, 0, 2, 1]), reduction="none")
    divergence = torch.nn.functional.kl_div(
        (student / 4).log_softmax(-1), (student.flip(0) / 4).softmax(-1), reduction="none"
    ).sum(-1)
    wanted = (nll[0] + 2 * nll[2]) / 3 + 0.5 * 16 * (divergence[0] + divergence[1] + 2 * divergence[2]) / 4
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("loss", [soft_target_kl, reverse_kl])
def test_positions_of_weight_zero_reach_nothing(loss, poison):
    hyper = SOFT if loss is soft_target_kl else {"temperature": 4.0, "t_squared": True}
    objective = Objective((bind(loss, teacher="logits", **hyper), hard(1.0)))
    weights, batch = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), {"label": torch.tensor([1, 0, -1])}
    for side in ("student", "teacher"):
        student, teacher = Z.repeat(3, 1), V.repeat(3, 1)
        (student if side == "student" else teacher)[1:, 0] = poison
        student.requires_grad_()
        value = run(objective, student, teacher, batch, weights)
        (slope,) = torch.autograd.grad(value, student)
        alone = run(objective, Z, V, {"label": torch.tensor([1])}, torch.ones(1))
        torch.testing.assert_close(value, alone)
        assert (slope[1:] == 0).all()
        assert (slope[0] != 0).all()


def test_a_term_without_positions_contributes_nothing():
    student = Z.clone().requires_grad_()
    batch = {"label": torch.tensor([-1])}
    only_hard = run(Objective((hard(1.0),)), student, V, batch, torch.ones(1))
    assert only_hard.item() == 0
    assert (torch.autograd.grad(only_hard, student)[0] == 0).all()
    both = run(Objective((hard(0.1), soft(0.9))), student, V, batch, torch.ones(1))
    assert both.item() == pytest.approx(0.9 * 0.636975, abs=1e-6)
    assert run(Objective((soft(1.0),)), student, V, batch, torch.zeros(1)).item() == 0


def test_positions_may_have_any_shape():
    student = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    labels = torch.arange(30).reshape(2, 3, 5) % 5 - 1
    found = run(Objective((hard(1.0),)), student, None, {"label": labels}, torch.ones(2, 3, 5))
    wanted = torch.nn.functional.cross_entropy(student.reshape(-1, 4), labels.reshape(-1), ignore_index=-1)
    torch.testing.assert_close(found, wanted)


def test_features_are_shielded_over_all_their_axes():
    def distance(student, teacher):
        return (student - teacher).square().mean((1, 2))

    objective = Objective((bind(distance, "features/a", teacher="features/a"),))
    student = torch.ones(2, 3, 4)
    student[1] = math.nan
    student.requires_grad_()
    weights = torch.tensor([1.0, 0.0])
    sums = objective.sums({"features/a": student}, {"features/a": torch.zeros(2, 3, 4)}, {}, weights, Clock())
    (slope,) = torch.autograd.grad(objective.loss(sums, objective.totals({}, weights), Clock()), student)
    assert sums.item() == pytest.approx(1)
    assert slope[0].flatten().tolist() == pytest.approx([2 / 12] * 12)
    assert (slope[1] == 0).all()


def test_half_precision_weights_are_added_in_float32():
    objective = Objective((soft(1.0),))
    assert objective.totals({}, torch.ones(4096, dtype=torch.bfloat16)).tolist() == [4096.0]


def test_a_relational_term_counts_once_whatever_the_number_of_rows():
    student, teacher = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    objective = Objective((bind(gram, teacher="logits", weight=2.0),))
    found = run(objective, student, teacher, {}, torch.ones(4))
    torch.testing.assert_close(found, 2 * gram(student, teacher))
    assert objective.totals({}, torch.ones(4)).tolist() == [4.0]


@pytest.mark.parametrize("weights", [[1.0, 1.0, 0.0], [1.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
def test_a_relational_term_refuses_unequal_weights(weights):
    objective = Objective((bind(gram, teacher="logits"),))
    with pytest.raises(ConfigError, match=r"equal and above 0 at every position.*term gram relates the rows"):
        objective.totals({}, torch.tensor(weights))


def test_a_relational_term_refuses_a_mask_and_a_split():
    term = masked(bind(gram, teacher="logits"), labelled)
    with pytest.raises(ConfigError, match="equal and above 0 at every position"):
        run(Objective((term,)), Z, V, {"label": torch.tensor([-1])}, torch.ones(1))
    with pytest.raises(ConfigError, match=r"`parts` to be 1, got 2 \(term gram relates the rows of a batch\)"):
        Objective((soft(1.0), term)).refuse_split(2)
    Objective((soft(1.0), term)).refuse_split(1)
    Objective((soft(1.0), hard(1.0))).refuse_split(8)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"`mask` to be of shape \[1, 2\], got shape \[1\] \(term cross_entropy\)"):
        Objective((hard(1.0),)).totals({"label": torch.tensor([1])}, torch.ones(1, 2))
    with pytest.raises(ConfigError, match=r"`loss` to be one value for each of \[2\], got shape \[1\]"):
        run(Objective((soft(1.0),)), Z, V, {}, torch.ones(2))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ((), "`terms` to be at least one"),
        ((soft(1.0), soft(2.0)), "`terms` to be without repeats, got soft_target_kl twice"),
    ],
)
def test_an_objective_that_cannot_be_is_refused(terms, message):
    with pytest.raises(ConfigError, match=message):
        Objective(terms)


def test_terms_that_weigh_nothing_now_are_left_out_with_what_only_they_read():
    """A connector stays where another that is read reads it; where nothing weighs anything, all is kept."""

    def connector(name, fields):
        return Connector(name, fields, (f"{name}/made",), lambda shapes: None)

    first, second, third = connector("a", ("logits",)), connector("b", ("a/made",)), connector("c", ("logits",))
    ends = bind(
        reverse_kl, "c/made", teacher="x", weight=During(2.0, 0, 1), name="ends", temperature=1.0, t_squared=True
    )
    starts = bind(
        reverse_kl, "b/made", teacher="y", weight=During(2.0, 1, None), name="starts", temperature=1.0, t_squared=True
    )
    objective = Objective((hard(1.0), ends, starts), (first, second, third))
    early, late = objective.at(Clock(0, 0.5, 4)), objective.at(Clock(2, 1.0, 4))
    assert [term.name for term in early.terms] == [hard(1.0).name, "ends"]
    assert early.connectors == (third,)
    assert set(early.needs()) == {"x"}
    assert [term.name for term in late.terms] == [hard(1.0).name, "starts"]
    assert late.connectors == (first, second)
    assert set(late.needs()) == {"y"}
    whole = Objective((hard(0.5), soft(1.0)))
    assert whole.at(Clock()) is whole
    silent = Objective((hard(0.0),))
    assert silent.at(Clock()) is silent
    logged = Objective((hard(1.0), soft(0.0), ends), (third,))  # the number 0 is for the log, and stays
    assert [term.name for term in logged.at(Clock(2, 1.0, 4)).terms] == [hard(1.0).name, soft(0.0).name]
