"""A step does not depend on how its batch is split, and counts what it should."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.learning.digits import TASK, TEST, TRAIN, assert_equal, book, run, student, to_float, training, views

from bookkd.core.errors import ConfigError
from bookkd.core.fields import IGNORE_LABEL
from bookkd.core.schedules import Clock
from bookkd.knowledge import StoredKnowledge
from bookkd.learning import Learner, Step, make_groups, predictions_of, to_device, visible_labels
from bookkd.methods import Handler, Supervised, VanillaKD
from bookkd.views import CachedViews, Pick, Replay, collate


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return StoredKnowledge(book(tmp_path_factory.mktemp("book") / "book"))


@pytest.fixture(scope="module")
def batch():
    replay = Replay(TRAIN, views())
    whole = collate([replay[Pick(sample, sample % 2, 0.0 if sample in (3, 29) else 1.0)] for sample in range(30)])
    whole["label"][::4] = -1
    return whole


def gradients(step, groups):
    learner = Learner(student(dropout=0.0).double(), TASK, preprocess=lambda view: view.double() / 255)
    totals = step.totals(groups)
    value = 0.0
    for part in groups:
        losses = step.loss(learner, part, Clock(), totals)
        losses.loss.backward()
        value += float(losses.loss.detach())
    return value, [parameter.grad for parameter in learner.parameters()]


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(1, 29), max_size=4, unique=True))
def test_splits_equal_one_batch(stored, batch, cuts):
    """Rows of weight 0 and hidden labels fall into parts of their own, too; the mean is over the whole all the same."""
    step = Step(VanillaKD().objective(TASK), TASK, stored)
    bounds = [0, *sorted(cuts), 30]
    parts = [{key: value[a:b] for key, value in batch.items()} for a, b in itertools.pairwise(bounds)]
    whole, split = gradients(step, [batch]), gradients(step, parts)
    assert split[0] == pytest.approx(whole[0], abs=1e-10)
    for mine, theirs in zip(whole[1], split[1], strict=True):
        torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-10)


def test_rows_that_only_pad_count_nothing(stored, batch):
    step = Step(VanillaKD().objective(TASK), TASK, stored)
    kept = batch["weight"] > 0
    assert int(kept.sum()) == 28
    real = {key: value[kept] for key, value in batch.items()}
    whole, without = gradients(step, [batch]), gradients(step, [real])
    assert whole[0] == pytest.approx(without[0], abs=1e-12)
    for mine, theirs in zip(whole[1], without[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_loss_is_the_weighted_sum_of_its_terms(stored, batch):
    step = Step(VanillaKD().objective(TASK), TASK, stored)
    learner = Learner(student(dropout=0.0), TASK, preprocess=to_float)
    losses = step.loss(learner, batch, Clock())
    assert losses.loss.requires_grad
    assert not any(value.requires_grad for value in losses.terms.values())
    expected = 0.1 * losses.terms["cross_entropy"] + 0.9 * losses.terms["soft_target"]
    torch.testing.assert_close(losses.loss.detach(), expected)


def test_accumulated_batches_learn_what_one_batch_learns(stored):
    options = {"network": student(dropout=0.0), "knowledge": stored}
    one = run(None, **options, training=training(batch_size=16))
    other = run(None, **{**options, "network": student(dropout=0.0)}, training=training(batch_size=4, accumulate=4))
    assert_equal(one.student, other.student, 1e-6)
    assert len(one.history) == len(other.history)
    assert one.history[-1]["step"] == other.history[-1]["step"] == 8


def test_clipping_bounds_the_gradient():
    """One step of plain SGD at rate 1 moves the weights by the norm that was clipped to."""
    network = student(dropout=0.0)
    before = torch.cat([value.flatten() for value in network.state_dict().values()])
    options = training(
        epochs=1, batch_size=60, lr=1.0, momentum=0.0, weight_decay=0.0, clip_norm=0.01, schedule="constant"
    )
    run(None, network=network, training=options)
    after = torch.cat([value.flatten() for value in network.state_dict().values()])
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_every_pair_is_seen_once(stored):
    groups = make_groups(Replay(TRAIN, views()), training(accumulate=3), samples=60, n_views=2)
    assert len(groups) == 3
    seen = []
    for epoch in range(2):
        groups.sampler.set_epoch(epoch)
        found = list(groups)
        assert [len(group) for group in found] == [3, 3, 2]
        for group in found:
            for one in group:
                rows = zip(one["sample"].tolist(), one["view"].tolist(), one["weight"].tolist(), strict=True)
                seen += [row[:2] for row in rows if row[2]]
    assert len(seen) == len(set(seen)) == 120


def test_several_views_of_a_sample_stand_together():
    groups = make_groups(Replay(TRAIN, views()), training(), samples=60, n_views=2, views_per_sample=2)
    first = next(iter(groups))[0]
    samples, numbers = first["sample"].reshape(-1, 2), first["view"].reshape(-1, 2)
    assert (samples[:, 0] == samples[:, 1]).all()
    assert (numbers[:, 0] != numbers[:, 1]).all()


@pytest.mark.parametrize("options", [{"workers": 2}, {"cache_views": True}], ids=["workers", "cached"])
def test_how_views_come_does_not_matter(stored, options):
    expected = run(None, knowledge=stored, training=training(epochs=1))
    assert_equal(run(None, knowledge=stored, training=training(epochs=1, **options)).student, expected.student)


def test_cached_views_that_students_share(stored):
    cached = CachedViews(Replay(TRAIN, views(), probe_share=0.0), max_bytes=2**24)
    expected = run(None, knowledge=stored, training=training(epochs=1))
    assert_equal(run(None, knowledge=stored, training=training(epochs=1), cached=cached).student, expected.student)
    with pytest.raises(ConfigError, match=r"Expected `cached` to be of the same views, got another .*seed"):
        run(None, knowledge=None, views=views(seed=1), training=training(epochs=1), cached=cached)
    with pytest.raises(ConfigError, match=r"`cached` to be of the same views, got another rows of the data set"):
        run(None, knowledge=None, rows=np.arange(60)[::-1].copy(), cached=cached)
    with pytest.raises(ConfigError, match="max_bytes"):
        run(None, training=training(cache_views=True, cache_bytes=10))


def test_visible_labels_are_a_share_of_each_class():
    labels = np.asarray(TRAIN.labels)
    for fraction in (0.1, 0.5, 1.0):
        shown = visible_labels(labels, fraction, seed=0)
        for label in range(10):
            there = int((labels == label).sum())
            assert int((shown == label).sum()) == max(1, round(fraction * there))
        assert ((shown == labels) | (shown == -1)).all()
    assert (visible_labels(labels, 0.5, 0) == visible_labels(labels, 0.5, 0)).all()
    assert (visible_labels(labels, 0.5, 0) != visible_labels(labels, 0.5, 1)).any()
    with pytest.raises(ConfigError, match="`label_fraction` to be"):
        visible_labels(labels, 0.0, 0)


@pytest.mark.parametrize("labels", [np.eye(20, 4, dtype=np.int64), np.arange(20) / 20, np.ones((20, 2), np.float32)])
def test_whole_samples_are_hidden_where_they_have_no_class(labels):
    shown = visible_labels(labels, 0.25, seed=0)
    hidden = np.isnan(shown) if shown.dtype.kind == "f" else shown == IGNORE_LABEL
    rows = hidden.reshape(20, -1)
    assert (rows.all(1) | ~rows.any(1)).all()
    assert (~rows.any(1)).sum() == 5
    assert (shown[~rows.any(1)] == labels[~rows.any(1)]).all()
    assert shown.dtype == labels.dtype
    np.testing.assert_array_equal(visible_labels(shown, 0.01, seed=1)[rows.all(1)], shown[rows.all(1)])


@pytest.mark.parametrize("labels", [np.eye(60, 4, dtype=np.int64), np.linspace(0, 1, 60)])
def test_labels_of_every_form_replace_those_of_the_data_set(labels):
    groups = make_groups(Replay(TRAIN, views()), training(), samples=60, n_views=2, labels=labels)
    (batch, *_) = next(iter(groups))
    found = batch["label"]
    assert found.dtype == (torch.float32 if labels.dtype.kind == "f" else torch.int64)
    np.testing.assert_allclose(found.numpy(), labels[batch["sample"].numpy()], rtol=1e-6)


def test_hidden_labels_are_not_learnt_from():
    """A step whose batch shows no label moves nothing."""
    shown = np.full(60, -1)
    shown[7] = 3
    network = student(dropout=0.0)
    moved = []

    class Watching(Supervised):
        def handlers(self):
            return (Weights(),)

    class Weights(Handler):
        def __init__(self):
            self.before = None

        def on(self, event, run):
            now = run.learner.student.layers[1].weight.detach().clone()
            if event == "step_end":
                moved.append(not torch.equal(now, self.before))
            self.before = now

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    plain = training(epochs=1, weight_decay=0.0, momentum=0.0)
    learned = run(None, network=network, method=Watching(), labels=shown, training=plain)
    assert sum(moved) == 1 < len(moved)
    assert learned.history[0]["train/cross_entropy"] > 0


def test_labels_take_the_place_of_the_data_sets():
    swapped = (np.asarray(TRAIN.labels) + 1) % 10
    groups = make_groups(Replay(TRAIN, views()), training(), samples=60, n_views=2, labels=swapped)
    one = next(iter(groups))[0]
    assert one["label"].tolist() == swapped[one["sample"].numpy()].tolist()


def test_addresses_and_probes_stay_on_the_cpu(batch):
    moved = to_device(batch, torch.device("meta"))
    stay = {"sample", "view", "probe/hash", "probe/projections", "probe_taken"}
    assert {key for key, value in moved.items() if value.device.type == "cpu"} == stay
    assert moved["input"].device.type == "meta"


def test_predictions_leave_the_mode_and_the_statistics_alone():
    learner = Learner(student("digits-small"), TASK, preprocess=to_float)
    learner.train()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    said = predictions_of(learner, TRAIN)
    assert learner.training
    for name, value in learner.state_dict().items():
        assert torch.equal(value, before[name]), name
    learner.eval()
    with torch.no_grad():
        expected = learner.compute(torch.stack([image for image, _ in TRAIN]))
    torch.testing.assert_close(said.fields["logits"], expected)


def test_torch_compile(stored, monkeypatch):
    """With dynamo's own backend: generated code would need a compiler and half a minute."""
    compiled = []
    real = torch.nn.Module.compile

    def light(self, *args, **kwargs):
        compiled.append(self)
        real(self, *args, **kwargs, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", light)
    expected = run(None, network=student(dropout=0.0), knowledge=stored, training=training(epochs=1))
    for door in ("plain", "lightning"):
        network = student(dropout=0.0)
        options = training(epochs=1, compile=True)
        learned = run(None, network=network, knowledge=stored, training=options, door=door, validation=TEST)
        assert compiled.pop() is network
        assert_equal(learned.student, expected.student, 1e-6)
        assert learned.metrics["accuracy"] > 0


def test_a_model_of_a_users_own(stored):
    class Mine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(64, 10)

        def forward(self, x):
            return {"logits": self.layer(x.flatten(1)), "other": x}

    for door in ("plain", "lightning"):
        learned = run(None, network=Mine(), knowledge=stored, training=training(epochs=1), door=door)
        assert np.isfinite(learned.history[0]["train/loss"])
