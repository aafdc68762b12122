"""Deep mutual learning: the worked numbers of card online-mutual, and peers against a loop written by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.learning.digits import (
    TASK,
    TEST,
    TRAIN,
    StopError,
    assert_equal,
    run,
    stopped_after,
    student,
    to_float,
    training,
    views,
)

from bookkd.core.errors import ConfigError
from bookkd.core.fields import INPUT, LABEL, WEIGHT
from bookkd.core.protocols import Needs
from bookkd.core.schedules import Clock
from bookkd.learning import Cohort, Learner, Step
from bookkd.learning.data import make_groups
from bookkd.methods import DML, Supervised
from bookkd.tasks import Classification, MultiLabel, Tagging
from bookkd.views import Pick, Replay, Views
from bookkd.zoo import GRUTagger, SequenceDataset

THREE = Classification(("a", "b", "c"))
Z1, Z2, Z3 = [2.0, 1.0, 0.0], [1.0, 1.5, -0.5], [0.5, 2.0, 1.0]
CE = (0.407606, 1.054957, 1.964369)  # the third: log(e^0.5 + e^2 + e) - 0.5
KL_21, KL_12 = 0.252642, 0.235243


def leaves(*rows):
    return [torch.tensor([row], dtype=torch.float64, requires_grad=True) for row in rows]


def losses(method, peers, y=0):
    """What each peer minimises: its own terms, by their names."""
    objective = method.objective(THREE)
    batch = {LABEL: torch.tensor([y]), WEIGHT: torch.ones(1, dtype=torch.float64)}
    fields = {f"peers/{i}/logits": peer for i, peer in enumerate(peers)}
    totals = objective.totals(batch, batch[WEIGHT])
    parts = objective.sums(fields, {}, batch, batch[WEIGHT], Clock()) / totals
    own = [[], [], []]
    for term, part in zip(objective.terms, parts, strict=True):
        own[int(term.name[-1])].append(part * term.weight)
    return [sum(parts) for parts in own[: len(peers)]]


def test_losses_and_gradients_of_two_peers():
    peers = leaves(Z1, Z2)
    one, two = losses(DML(), peers)
    assert one.item() == pytest.approx(CE[0] + KL_21, abs=1e-6)
    assert two.item() == pytest.approx(CE[1] + KL_12, abs=1e-6)
    assert (one.item(), two.item()) == (pytest.approx(0.660248, abs=1e-6), pytest.approx(1.290200, abs=1e-6))
    mine, theirs = torch.autograd.grad(one, peers)
    assert mine[0].tolist() == pytest.approx([-0.017726, -0.084640, 0.102366], abs=1e-6)
    # Without detach it would be [-0.313384, 0.344462, -0.031078].
    assert theirs.count_nonzero() == 0
    p1, p2 = (F.softmax(peer.detach(), -1)[0] for peer in peers)
    onehot = torch.tensor([1.0, 0.0, 0.0])
    torch.testing.assert_close(mine[0], (p1 - onehot) + (p1 - p2), rtol=0, atol=1e-12)


def test_the_objective_is_the_sum_of_the_peers_losses():
    peers = leaves(Z1, Z2)
    objective = DML().objective(THREE)
    batch = {LABEL: torch.tensor([0]), WEIGHT: torch.ones(1, dtype=torch.float64)}
    fields = {f"peers/{i}/logits": peer for i, peer in enumerate(peers)}
    sums = objective.sums(fields, {}, batch, batch[WEIGHT], Clock())
    whole = objective.loss(sums, objective.totals(batch, batch[WEIGHT]), Clock())
    assert whole.item() == pytest.approx(0.660248 + 1.290200, abs=2e-6)
    each = [torch.autograd.grad(losses(DML(), peers)[m], peers[m])[0] for m in range(2)]
    torch.testing.assert_close(torch.autograd.grad(whole, peers), tuple(each), rtol=0, atol=1e-12)


def test_swapping_the_peers_swaps_their_losses():
    assert [x.item() for x in losses(DML(), leaves(Z2, Z1))] == [x.item() for x in losses(DML(), leaves(Z1, Z2))][::-1]


def test_peers_that_agree_learn_from_labels_alone():
    peers = leaves(Z1, Z1)
    one, _ = losses(DML(), peers)
    assert one.item() == pytest.approx(CE[0], abs=1e-6)
    (gradient,) = torch.autograd.grad(one, peers[0])
    wanted = F.softmax(peers[0].detach(), -1) - torch.tensor([[1.0, 0.0, 0.0]])
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-12)


def test_three_peers_are_averaged_or_added():
    p = [F.softmax(torch.tensor(z, dtype=torch.float64), -1) for z in (Z1, Z2, Z3)]
    kl = [[float((a * (a / b).log()).sum()) for b in p] for a in p]
    assert (kl[1][0], kl[0][1]) == (pytest.approx(KL_21, abs=1e-6), pytest.approx(KL_12, abs=1e-6))
    for average, share in ((True, 0.5), (False, 1.0)):
        found = losses(DML(peers=3, average=average), leaves(Z1, Z2, Z3))
        wanted = [CE[m] + share * sum(kl[other][m] for other in range(3)) for m in range(3)]
        assert [loss.item() for loss in found] == pytest.approx(wanted, abs=1e-6)
    # With two peers both are one.
    assert [term.weight for term in DML(average=False).objective(THREE).terms] == [1.0] * 4


def test_peers_of_a_multi_label_task():
    task, labels = MultiLabel(("a", "b", "c")), torch.tensor([[1, 0, 1]])
    logits = [torch.tensor([z], dtype=torch.float64) for z in (Z1, Z2)]
    seen = task.batch({LABEL: labels, WEIGHT: torch.ones(1, dtype=torch.float64)})
    fields = task.student({f"peers/{i}/logits": z for i, z in enumerate(logits)})
    objective, weights = DML().objective(task), task.weights(seen)
    sums = objective.sums(fields, {}, seen, weights, Clock())
    found = objective.loss(sums, objective.totals(seen, weights), Clock())
    hard = sum(F.binary_cross_entropy_with_logits(z, labels.double()) for z in logits)
    p, q = (torch.distributions.Bernoulli(logits=z) for z in logits)
    soft = torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(found, hard + soft.mean())


def test_what_it_asks_for():
    assert (DML().cohort, DML(peers=4).cohort) == (2, 4)
    assert DML(peers=3).needs(TASK) == Needs()
    names = [term.name for term in DML().objective(THREE).terms]
    assert names == ["cross_entropy_0", "peer_1_to_0", "cross_entropy_1", "peer_0_to_1"]


def cohort(*seeds):
    return Cohort([student("digits-small", seed=seed) for seed in seeds])


# 60 samples in batches of 12: no batch has rows that only fill it up.
OPTIONS = {"batch_size": 12, "schedule": "constant"}


def by_hand(peers, settings):
    """Mutual learning as two optimizers that step at once, on the batches that `learn` would draw."""
    peers = [copy.deepcopy(peer).train() for peer in peers]
    sgd = {"lr": settings.lr, "momentum": 0.9, "nesterov": True, "weight_decay": settings.weight_decay}
    optimizers = [torch.optim.SGD(peer.parameters(), **sgd) for peer in peers]
    groups = make_groups(Replay(TRAIN, views()), settings, samples=len(TRAIN), n_views=2)
    for epoch in range(settings.epochs):
        groups.sampler.set_epoch(epoch)
        for (batch,) in groups:
            assert batch[WEIGHT].min() == 1
            logits = [peer(to_float(batch[INPUT])) for peer in peers]
            told = [F.log_softmax(each, -1).detach() for each in reversed(logits)]
            for z, teacher in zip(logits, told, strict=True):
                soft = F.kl_div(F.log_softmax(z, -1), teacher, reduction="batchmean", log_target=True)
                (F.cross_entropy(z, batch[LABEL]) + soft).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    return peers


@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_peers_are_those_of_a_loop_written_by_hand(door):
    settings, network = training(**OPTIONS), cohort(1, 2)
    wanted = by_hand(network.peers, settings)
    learned = run(None, method=DML(), network=network, training=settings, door=door)
    assert learned.student is network.peers[0]
    assert learned.peers == (network.peers[1],)
    assert learned.teacher_forwards == 0
    for peer, other in zip((learned.student, *learned.peers), wanted, strict=True):
        assert_equal(peer, other, tolerance=1e-6)
    assert set(learned.history[-1]) >= {"train/peer_1_to_0", "train/cross_entropy_1", "train/loss"}


@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_the_order_of_the_peers_plays_no_part(door):
    one = run(None, method=DML(), network=cohort(1, 2), training=training(**OPTIONS), door=door)
    other = run(None, method=DML(), network=cohort(2, 1), training=training(**OPTIONS), door=door)
    assert_equal(one.student, other.peers[0], tolerance=1e-6)
    assert_equal(one.peers[0], other.student, tolerance=1e-6)


@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_a_cohort_goes_on_from_its_folder(tmp_path, monkeypatch, door):
    options = {"method": DML(), "training": training(**OPTIONS, checkpoint_steps=3), "door": door, "validation": TEST}
    whole = run(None, network=cohort(1, 2), **options)
    with monkeypatch.context() as patch:
        stopped_after(patch, 8)
        with pytest.raises(StopError):
            run(tmp_path / "cut", network=cohort(1, 2), **options)
    # Other networks, once to go on from step 6 and once to read what is finished: all comes from the folder.
    for seeds in ((5, 6), (7, 8)):
        learned = run(tmp_path / "cut", network=cohort(*seeds), **options)
        assert_equal(learned.student, whole.student)
        assert_equal(learned.peers[0], whole.peers[0])
    assert sorted(path.name for path in (tmp_path / "cut").glob("*.safetensors")) == [
        "student-1.safetensors",
        "student.safetensors",
    ]
    assert learned.metrics == whole.metrics


def test_as_many_networks_as_peers():
    with pytest.raises(
        ConfigError, match=r"`students` to be 2 for method dml, got 1 \(learn\)\. Pass a bookkd\.learning"
    ):
        run(None, method=DML(), network=student())
    with pytest.raises(ConfigError, match=r"`students` to be 3 for method dml, got 2 "):
        run(None, method=DML(peers=3), network=cohort(1, 2))
    with pytest.raises(ConfigError, match=r"`students` to be 1 for method supervised, got 2 .*Pass one network"):
        run(None, method=Supervised(), network=cohort(1, 2))


def test_peers_of_sequences_are_taught_step_by_step():
    """Of tags: mean over steps that are there, of the labels over those that are known; and peers are told apart by place alone."""
    task = Tagging(("a", "b", "c"))
    data = SequenceDataset.of(
        "tags", [[1, 2, 3], [4, 0, 2, 1, 3, 3]], [[0, 2, -1], [1, 1, 0, 2, 0, 1]], class_names=task.class_names
    )
    torch.manual_seed(0)
    one, other = (GRUTagger(3, tokens=5, width=width).eval() for width in (4, 6))
    batch = Replay(data, Views(None, n_views=1)).batch([Pick(0, 0), Pick(1, 0)])

    def found(*networks):
        terms = Step(DML().objective(task), task, None).loss(Learner(Cohort(networks), task), batch, Clock()).terms
        return {name: float(value) for name, value in terms.items()}

    said = [
        torch.cat([network(data[row][0][None], torch.tensor([len(data[row][0])]))[0] for row in (0, 1)]).detach()
        for network in (one, other)
    ]
    labels = torch.cat([data[row][1] for row in (0, 1)])
    wanted = {}
    for place, (mine, theirs) in enumerate((said, said[::-1])):
        wanted[f"cross_entropy_{place}"] = float(F.cross_entropy(mine, labels.long(), ignore_index=-1))
        kl = F.kl_div(mine.log_softmax(-1), theirs.softmax(-1), reduction="batchmean")
        wanted[f"peer_{1 - place}_to_{place}"] = float(kl)
    straight, swapped = found(one, other), found(other, one)
    assert straight == pytest.approx(wanted, rel=1e-5)
    for name, value in straight.items():
        assert swapped[name.translate(str.maketrans("01", "10"))] == pytest.approx(value, rel=1e-6)
    # What stands behind the end of a sequence is about nothing.
    batch["input"][0, 3:], batch["label"][0, 3:] = 4, 2
    assert found(one, other) == pytest.approx(wanted, rel=1e-5)
