"""Deep interactive learning: the worked numbers of card dil-seq2seq, and what the live loop must keep to."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.learning.digits import TRAIN, assert_equal, run, student, training

from bookkd.core.errors import ConfigError
from bookkd.core.fields import LABEL, WEIGHT
from bookkd.core.schedules import Clock
from bookkd.learning import Cohort
from bookkd.losses import CombinedTarget, DenseTarget
from bookkd.methods import DIL, DML, build_method
from bookkd.objectives import Combine
from bookkd.tasks import Classification

THREE = Classification(("a", "b", "c"))
A1 = [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
A2 = [[1.0, 1.0, 0.0], [0.0, 2.0, 1.0]]
S = [[1.0, 0.5, 0.0], [0.2, 0.8, 0.0]]
Y = [0, 1]
Q = [[0.479884, 0.297797, 0.222319], [0.230196, 0.479172, 0.290632]]
CE_S, KL_S, CE_1, KL_1 = 0.686243, 0.046447, 0.395495, 0.115289
LOSS_S, LOSS_1 = 0.366345, 0.255392


def peers(*rows):
    return [torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in rows]


def losses(method, networks, *, labels=Y, weights=None, clock=None):
    """What each network minimises, the student first: its own terms, by their names."""
    objective, labels = method.objective(THREE), torch.tensor(labels)
    batch = {LABEL: labels, WEIGHT: torch.ones(len(labels)).double() if weights is None else torch.tensor(weights)}
    fields = {f"peers/{i}/logits": network for i, network in enumerate(networks)}
    clock = clock or Clock()
    parts = objective.sums(fields, {}, batch, batch[WEIGHT], clock) / objective.totals(batch, batch[WEIGHT])
    own = [[] for _ in networks]
    for term, part in zip(objective.terms, parts, strict=True):
        weight = term.weight(clock) if callable(term.weight) else term.weight
        own[int(term.name[-1])].append(part * weight)
    return [sum(each) for each in own]


def ensemble(*members, mode="probability", weights="uniform"):
    target = CombinedTarget.of([DenseTarget(torch.tensor(member, dtype=torch.float64)) for member in members])
    return Combine(mode, weights).teacher(target, {}).log_probabilities(2.0).exp()


def near(value, wanted):
    return torch.as_tensor(value).tolist() == pytest.approx(wanted, abs=1e-6)


def test_the_ensemble_of_the_card():
    found = ensemble(A1, A2)
    for row, wanted in zip(found, Q, strict=True):
        assert near(row, wanted)
    torch.testing.assert_close(ensemble(A2, A1), found)
    torch.testing.assert_close(ensemble(A1, A1, A2, weights=(0.25, 0.25, 0.5)), found)
    # The mean of log-probabilities is another distribution.
    mean = ((torch.tensor(A1) + torch.tensor(A2)).double() / 4).softmax(-1)
    torch.testing.assert_close(ensemble(A1, A2, mode="logit"), mean)
    assert float((mean - found).abs().max()) > 0.001


def test_losses_of_student_and_assistants():
    found = losses(DIL(assistants=2), peers(S, A1, A2))
    assert near(found[0], LOSS_S)
    assert near(found[1], LOSS_1)
    alone = losses(DIL(assistants=2, alpha=1.0, beta=1.0), peers(S, A1, A2))
    assert near(alone[0], KL_S)
    assert near(alone[1], KL_1)
    labels = losses(DIL(assistants=2, beta=0.0), peers(S, A1, A2))
    assert near(labels[1], CE_1)
    assert near(2 * found[0] - alone[0], CE_S)


def test_gradients_are_those_of_the_card_and_of_nobody_elses_network():
    networks = peers(S, A1, A2)
    found = losses(DIL(assistants=2), networks)
    onehot, q = F.one_hot(torch.tensor(Y), 3), torch.tensor(Q).double()
    s, first, _ = (network.detach() for network in networks)
    mine, *others = torch.autograd.grad(found[0], networks, retain_graph=True)
    # tau^2 times 1 / tau of the softened logits.
    wanted = (0.5 * (s.softmax(-1) - onehot) + 0.5 * 2 * ((s / 2).softmax(-1) - q)) / 2
    torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-6)
    assert not any(other.count_nonzero() for other in others)
    back, mine, other = torch.autograd.grad(found[1], networks)
    wanted = (0.5 * (first.softmax(-1) - onehot) + 0.5 * 2 * ((first / 2).softmax(-1) - (s / 2).softmax(-1))) / 2
    torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-6)
    assert (back.count_nonzero(), other.count_nonzero()) == (0, 0)


def test_networks_that_agree_learn_from_labels_alone():
    networks = peers(S, S, S)
    for network, found in zip(networks, losses(DIL(assistants=2), networks), strict=True):
        assert near(found, 0.5 * CE_S)
        (slope,) = torch.autograd.grad(found, network, retain_graph=True)
        wanted = 0.5 * (network.detach().softmax(-1) - F.one_hot(torch.tensor(Y), 3)) / 2
        torch.testing.assert_close(slope, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ensemble", ["probability", "logit"])
def test_positions_of_weight_0_contribute_nothing(ensemble):
    method = DIL(assistants=2, ensemble=ensemble)
    plain = losses(method, peers(S, A1, A2))
    more = [[*rows, [50.0, -50.0, float("inf")]] for rows in (S, A1, A2)]
    networks = peers(*more)
    padded = losses(method, networks, labels=[*Y, 2], weights=[1.0, 1.0, 0.0])
    assert [each.item() for each in padded] == [each.item() for each in plain]
    assert all(float(slope[2].abs().max()) == 0 for slope in torch.autograd.grad(sum(padded), networks))


def test_one_assistant_is_mutual_learning():
    mutual = build_method("dil-seq2seq", "mutual")
    assert [x.item() for x in losses(mutual, peers(S, A1))] == [x.item() for x in losses(DML(), peers(S, A1))]

    def cohort():
        return Cohort([student("digits-small", seed=seed) for seed in (1, 2)])

    one = run(None, method=mutual, network=cohort(), training=training(batch_size=12))
    other = run(None, method=DML(), network=cohort(), training=training(batch_size=12))
    assert_equal(one.student, other.student)
    assert_equal(one.peers[0], other.peers[0])


def test_an_ensemble_trains_live_and_by_the_worked_ramp():
    method = DIL(assistants=2, ramp_epochs=2, ensemble="logit", weights=(1.0, 3.0))
    learned = run(None, method=method, network=Cohort([student(seed=seed) for seed in (1, 2, 3)]))
    assert len(learned.peers) == 2
    assert {"train/ensemble_to_0", "train/peer_0_to_1", "train/peer_0_to_2"} <= set(learned.history[-1])
    # exp(-5 / 4) at the middle of the ramp.
    found = losses(DIL(assistants=2, ramp_epochs=2), peers(S, A1, A2), clock=Clock(epoch=1.0))
    share = 0.5 * 0.286505
    assert near(found[1], (1 - share) * CE_1 + share * KL_1)


def test_without_labels_networks_agree_on_anything():
    """Two networks that teach each other meet; the labels play no part, so that accuracy is what it was."""
    method, settings = DIL(assistants=1, alpha=1.0, beta=1.0, temperature=1.0), training(epochs=12, lr=0.1)
    networks = [student(seed=seed, dropout=0.0) for seed in (1, 2)]
    images = (torch.stack([image for image, _ in TRAIN]).float() / 255 - 0.3, torch.tensor(TRAIN.labels))

    @torch.no_grad()
    def apart_and_right():
        p, q = (network(images[0]).log_softmax(-1) for network in networks)
        return float(F.kl_div(q, p, reduction="batchmean", log_target=True)), float(
            (p.argmax(-1) == images[1]).double().mean()
        )

    before, _ = apart_and_right()
    run(None, method=method, network=Cohort(networks), training=settings)
    after, right = apart_and_right()
    assert after < 0.2 * before
    assert right < 0.4
    run(None, method=DIL(assistants=1, temperature=1.0), network=Cohort(networks), training=settings)
    assert apart_and_right()[1] > right + 0.3


def by_book(method, network, teacher):
    """What a network minimises that learns from a book."""
    objective = method.objective(THREE)
    batch = {LABEL: torch.tensor(Y), WEIGHT: torch.ones(2).double()}
    fields, weights = {"logits": torch.tensor(network).double()}, batch[WEIGHT]
    parts = objective.sums(fields, {"logits": teacher}, batch, weights, Clock()) / objective.totals(batch, weights)
    return sum(part * term.weight for term, part in zip(objective.terms, parts, strict=True))


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 1.0, "beta": 1.0}, {"convex": False}, {"ensemble": "logit"}, {"weights": (0.2, 0.8)}, {"beta": 0.0}],
)
def test_rounds_by_books_minimise_what_the_live_loop_does(options):
    method = DIL(assistants=2, **options)
    live = losses(method, peers(S, A1, A2))
    members = CombinedTarget.of([DenseTarget(torch.tensor(each).double()) for each in (A1, A2)])
    assert near(by_book(method.taught(), S, members), float(live[0].detach()))
    student = DenseTarget(torch.tensor(S).double())
    for place, assistant in enumerate((A1, A2), 1):
        assert near(by_book(method.fed_back(), assistant, student), float(live[place].detach()))
    if not options:  # the worked numbers, with half the feedback
        assert near(by_book(method.fed_back(0.5), A1, student), 0.75 * CE_1 + 0.25 * KL_1)
    assert DIL(assistants=5).cohort == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0, "ramp_epochs": 5}, r"`ramp_epochs` to be 0 with beta 0, got 5"),
        ({"weights": "accuracy"}, r"`weights` to be uniform or numbers, got 'accuracy' .*nobody measures peers"),
        ({"weights": (0.5, 0.5)}, r"`weights` to be one for each of 3 assistants, got \[0\.5, 0\.5\]"),
    ],
)
def test_other_weights_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DIL(**options)
