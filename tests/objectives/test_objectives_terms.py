"""Binding: what is checked when a term is put together, and what is resolved when it is used."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

from bookkd.core.errors import ConfigError, DataError, FidelityError, UnknownNameError
from bookkd.core.schedules import Clock, Cosine, Linear, Steps
from bookkd.losses import LOSSES, DenseTarget, SparseTarget, cross_entropy, soft_target_kl, softened_mse
from bookkd.objectives import Objective, bind, labelled, masked, scheduled, selected, weighted

SOFT = {"temperature": 4.0, "t_squared": True, "class_reduction": "sum"}
Z = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
V = torch.tensor([[2.0, 3.5, -1.0]], dtype=torch.float64)
LABELS = ("label", "partner_label", "ratio")


def test_a_bound_term_calls_its_loss_with_fields_batch_and_hyper():
    seen = []

    def loss(student, teacher, first, second=None, *, temperature, kind):
        seen.append((student, teacher, first, second, temperature, kind))
        return student

    term = bind(
        loss, "features/a", teacher="features/b", batch=("label", "ratio"), temperature=Linear(2.0, 4.0), kind="sum"
    )
    given = term.value({"features/a": Z}, {"features/b": V}, {"label": 7}, Clock(step=5, total_steps=10))
    assert given is Z
    assert seen == [(Z, V, 7, None, 3.0, "sum")]
    assert (term.name, term.weight, term.mask) == ("loss", 1.0, None)


@pytest.mark.parametrize(
    ("error", "message", "loss", "given"),
    [
        (
            UnknownNameError,
            r"Unknown hyper-parameter 'temprature' \(term soft_target_kl, loss soft_target_kl\)\. Nearest: temperature",
            soft_target_kl,
            {"teacher": "logits", "temprature": 4.0},
        ),
        (
            ConfigError,
            "`hyper` to be complete, with t_squared, class_reduction, got",
            soft_target_kl,
            {"teacher": "logits", "temperature": 4.0},
        ),
        (ConfigError, "`teacher` to be a field, since the loss takes one, got None", soft_target_kl, SOFT),
        (
            ConfigError,
            "`teacher` to be None, since the loss takes none, got 'logits'",
            cross_entropy,
            {"teacher": "logits", "batch": LABELS, "label_smoothing": 0.0},
        ),
        (
            ConfigError,
            r"`batch` to be 1 to 3 keys for the parameters labels, partner_labels, ratio, got \(\)",
            cross_entropy,
            {"label_smoothing": 0.0},
        ),
        (
            ConfigError,
            r"`batch` to be 0 keys for the parameters none, got \('label',\)",
            soft_target_kl,
            {"teacher": "logits", "batch": ("label",), **SOFT},
        ),
        (ConfigError, "`field` to be a name such as", cross_entropy, {"field": "Logits!"}),
        (
            ConfigError,
            "`weight` to be a finite number, got nan",
            soft_target_kl,
            {"teacher": "logits", "weight": math.nan, **SOFT},
        ),
        (
            ConfigError,
            r"`loss` to be a function whose every parameter has a name, got '\*\*rest' \(free\)",
            "free",
            {},
        ),
    ],
)
def test_what_does_not_fit_is_refused_when_put_together(error, message, loss, given):
    def free(student, **rest):
        return student

    with pytest.raises(error, match=message):
        bind(free if loss == "free" else loss, **given)


def test_a_loss_without_a_signature_is_refused():
    with pytest.raises(
        ConfigError, match=r"`loss` to be a function whose every parameter has a name, got no signature"
    ):
        bind(torch.nn.functional.cosine_similarity, teacher="logits")


def test_own_fields_teach_together_and_without_gradient():
    names = {"teacher": "peers/1/logits", "own": True, "beside": ("peers/2/logits",)}
    hyper = {"temperature": 2.0, "t_squared": False, "class_reduction": "sum"}
    term = bind(soft_target_kl, "peers/0/logits", **names, **hyper)
    fields = {f"peers/{place}/logits": torch.randn(4, 3, requires_grad=True) for place in range(3)}
    value = term.value(fields, {}, {}, Clock())
    student, one, other = (field.detach() / 2 for field in fields.values())
    target = (one.softmax(-1) + other.softmax(-1)) / 2
    wanted = torch.nn.functional.kl_div(student.log_softmax(-1), target, reduction="none").sum(-1)
    torch.testing.assert_close(value.detach(), wanted)
    slopes = torch.autograd.grad(value.sum(), list(fields.values()), allow_unused=True)
    assert [slope is None for slope in slopes] == [False, True, True]
    with pytest.raises(UnknownNameError, match=r"Unknown teacher field 'peers/2/logits'"):
        term.value({name: fields[name] for name in ("peers/0/logits", "peers/1/logits")}, {}, {}, Clock())
    for other_names in ({**names, "own": False}, {**names, "gradient": True}):
        with pytest.raises(ConfigError, match=r"`own` to be True, and `gradient` False, with fields beside"):
            bind(soft_target_kl, "peers/0/logits", **other_names, **hyper)


def test_terms_travel_between_processes():
    term = masked(bind(cross_entropy, batch=LABELS, mask=labelled, label_smoothing=0.0), labelled)
    copy = pickle.loads(pickle.dumps(term))
    assert copy == term
    assert copy.mask({"label": torch.tensor([0, -1])}).tolist() == [True, False]


def test_missing_fields_and_entries_are_named():
    term = bind(soft_target_kl, teacher="logits", **SOFT)
    with pytest.raises(UnknownNameError, match=r"Unknown student field 'logits' \(term .*\)\. Nearest: logit"):
        term.value({"logit": Z}, {"logits": V}, {}, Clock())
    with pytest.raises(UnknownNameError, match=r"Unknown teacher field 'logits' .* Nearest: none"):
        term.value({"logits": Z}, {}, {}, Clock())
    hard = bind(cross_entropy, batch=LABELS, label_smoothing=0.0)
    with pytest.raises(DataError, match="`batch` to be one with `label`, got the keys sample, view"):
        hard.value({"logits": Z}, {}, {"sample": 0, "view": 0}, Clock())
    with pytest.raises(DataError, match="`batch` to be one with `label`"):
        labelled({"sample": 0})


def test_variations_leave_the_term_alone():
    term = bind(soft_target_kl, teacher="logits", weight=0.9, name="kd", **SOFT)
    warm = scheduled(term, temperature=Linear(1.0, 4.0))
    assert term.hyper["temperature"] == 4.0
    assert warm.hyper == {**SOFT, "temperature": Linear(1.0, 4.0)}
    assert (weighted(term, 2.0).weight, term.weight, warm.name) == (2.0, 0.9, "kd")
    with pytest.raises(UnknownNameError, match="Unknown hyper-parameter 'tau'"):
        scheduled(term, tau=Linear(1.0, 4.0))


def test_a_scheduled_temperature_is_the_temperature():
    term = scheduled(bind(soft_target_kl, teacher="logits", **SOFT), temperature=Linear(1.0, 4.0))
    at_start = term.value({"logits": Z}, {"logits": V}, {}, Clock(step=0, total_steps=9))
    at_end = term.value({"logits": Z}, {"logits": V}, {}, Clock(step=9, total_steps=9))
    assert (at_start.item(), at_end.item()) == pytest.approx((0.136520, 0.636975), abs=1e-6)


def test_a_scheduled_temperature_meets_the_promise_of_a_sparse_target_when_used():
    term = scheduled(bind(soft_target_kl, teacher="logits", **SOFT), temperature=Linear(1.0, 4.0))
    assert Objective((term,)).needs() == {"logits": ()}
    target = SparseTarget.from_logits(V, 2, (1.0,))
    assert term.value({"logits": Z}, {"logits": target}, {}, Clock(step=0, total_steps=9)).isfinite()
    with pytest.raises(FidelityError, match=r"promises \(1\), got 2\.5"):
        term.value({"logits": Z}, {"logits": target}, {}, Clock(step=1, total_steps=2))


def test_masks_multiply():
    term = bind(cross_entropy, batch=LABELS, mask=labelled, label_smoothing=0.0)
    both = masked(term, lambda batch: batch["sample"] > 0)
    found = both.mask({"label": torch.tensor([0, 1, -1]), "sample": torch.tensor([0, 5, 5])})
    assert found.tolist() == [False, True, False]
    assert term.mask is labelled


def test_a_mixed_view_counts_where_both_labels_are_known():
    batch = {"label": torch.tensor([0, 1, -1]), "partner_label": torch.tensor([2, -1, 2])}
    assert labelled(batch).tolist() == [True, False, False]


def test_needs_of_a_temperature_that_moves():
    """Steps can be promised one by one; a line passes through more values than any target promises."""
    steps = Objective((bind(soft_target_kl, teacher="logits", **{**SOFT, "temperature": Steps((4.0, 1), (3,))}),))
    assert (steps.needs(), steps.dense_only()) == ({"logits": (1.0, 4.0)}, ())
    for moving in (Linear(4.0, 1.0), Cosine(4.0, 1.0), lambda clock: 4.0 - clock.epoch):
        line = Objective((bind(soft_target_kl, teacher="logits", **{**SOFT, "temperature": moving}),))
        assert (line.needs(), line.dense_only()) == ({"logits": ()}, ("logits",))


def test_needs_gather_temperatures_and_dense_fields():
    objective = Objective(
        (
            bind(cross_entropy, batch=LABELS, label_smoothing=0.0),
            bind(soft_target_kl, teacher="logits", name="a", **SOFT),
            bind(soft_target_kl, teacher="logits", name="b", **{**SOFT, "temperature": 1}),
            bind(softened_mse, teacher="members/0/logits", temperature=2.0, t_squared=True),
        )
    )
    assert objective.needs() == {"logits": (1.0, 4.0), "members/0/logits": (2.0,)}
    assert objective.dense_only() == ("members/0/logits",)


def test_selections_add_up_and_relate_no_rows():
    first, second = torch.tensor([True, True, False]), torch.tensor([False, True, True])
    soft = bind(soft_target_kl, teacher="logits", temperature=1.0, t_squared=False, class_reduction="sum")
    twice = selected(selected(soft, lambda target, batch: first), lambda target, batch: second)
    target = DenseTarget(torch.zeros(3, 4))
    assert twice.left_out({}, {"logits": target}, {}).tolist() == [True, False, True]
    related = bind(LOSSES["correlation_intra"], teacher="logits", temperature=1.0, t_squared=False)
    with pytest.raises(ConfigError, match=r"`only` to be no selection, got .*term correlation_intra relates the rows"):
        selected(related, lambda target, batch: first)
