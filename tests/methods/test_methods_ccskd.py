"""CCSKD: its schedule, and what its terms do not see."""

from __future__ import annotations

import pytest
import torch
from tests.methods.feature_cases import S, T, identity

from bookkd.core.errors import ConfigError
from bookkd.core.fields import LABEL, PARTNER_LABEL, RATIO, SAMPLE_WEIGHT, WEIGHT
from bookkd.core.schedules import Clock, resolve
from bookkd.losses import DenseTarget
from bookkd.methods import build_method
from bookkd.tasks import Classification

TASK = Classification(("a", "b", "c"))
GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = (torch.randn(3, 3, generator=GENERATOR, dtype=torch.float64) for _ in range(2))


def total(method, clock, labels=(0, 1, 2), maps=None, **entries):
    objective = method.objective(TASK)
    maps = torch.tensor(S)[:, :, None, None] if maps is None else maps
    fields = {"logits": STUDENT, **{f"features/stage{stage}": maps for stage in (1, 2, 3)}}
    targets = {
        "logits": DenseTarget(TEACHER),
        **{f"features/stage{stage}/mean": torch.tensor(T) for stage in (1, 2, 3)},
    }
    shapes = {name: tuple(value.shape[1:]) for name, value in fields.items()}
    shapes |= {f"teacher/features/stage{stage}/mean": (2,) for stage in (1, 2, 3)}
    for connector in objective.connectors:
        fields |= connector.added(identity(connector.build(shapes)), fields, targets)
    batch = {LABEL: torch.tensor(labels), WEIGHT: torch.ones(3, dtype=torch.float64)}
    batch |= {SAMPLE_WEIGHT: batch[WEIGHT], **entries}
    sums = objective.sums(fields, targets, batch, batch[WEIGHT], clock)
    return objective.loss(sums, objective.totals(batch, batch[WEIGHT]), clock).item()


def test_labels_play_no_part_for_sixty_epochs():
    method = build_method("ccskd")
    first, last = Clock(epoch=0), Clock(epoch=59)
    assert total(method, first) == total(method, first, (2, 0, 1))
    assert total(method, last) == total(method, last, (2, 0, 1))
    assert total(method, Clock(epoch=60)) != pytest.approx(total(method, Clock(epoch=60), (2, 0, 1)))


def test_from_epoch_61_on_the_parts_are_those_of_the_release():
    """CE, 0.1 of the selective term at g = 0.81, 0.1 of KL, channels at 5.4 and relations at 6."""
    log_q, log_p = STUDENT.log_softmax(1), TEACHER.log_softmax(1)
    labels = torch.tensor([0, 1, 2])
    right = 0.81 * (1 + (log_p.argmax(1) == labels).double())
    selective = (right[:, None] * log_p.exp() * (right[:, None].log() + log_p - right[:, None] * log_q)).sum(1).mean()
    kl = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    ce = -log_q[torch.arange(3), labels].mean()
    expected = float(ce + 0.1 * selective + 0.1 * kl) + 3 * (5.4 * 1.0 + 6 * 0.355624)
    assert total(build_method("ccskd"), Clock(epoch=60)) == pytest.approx(expected, abs=2e-5)


def test_where_a_map_is_strong_plays_no_part():
    maps = torch.rand(3, 2, 2, 2, dtype=torch.float64)
    moved = maps.flatten(2)[:, :, [2, 0, 3, 1]].reshape(maps.shape)
    method, clock = build_method("ccskd"), Clock(epoch=80)
    assert total(method, clock, maps=maps) == pytest.approx(total(method, clock, maps=moved), abs=1e-12)


def test_relations_do_not_see_scale_and_shift_which_channel_means_see():
    relations = build_method("ccskd", kd_weight=0.0, channel_weight=0.0)
    maps = torch.tensor(S)[:, :, None, None]
    clock = Clock(epoch=0)
    assert total(relations, clock, maps=3 * maps + 7) == pytest.approx(total(relations, clock, maps=maps), abs=1e-9)
    both = build_method("ccskd")
    assert total(both, clock, maps=3 * maps + 7) > total(both, clock, maps=maps) + 1


def test_without_terms_of_its_own_it_is_no_method():
    nothing = dict.fromkeys(("channel_weight", "relation_weight", "selective_weight", "kd_weight"), 0.0)
    with pytest.raises(ConfigError, match=r"`channel_weight` to be above 0, or relation_weight or .*\(method ccskd\)"):
        build_method("ccskd", **nothing)
    with pytest.raises(ConfigError, match=r"`angle_weight` to be between 0 and inf, got -1"):
        build_method("ccskd", angle_weight=-1.0)
    logits = build_method("ccskd", **{**nothing, "kd_weight": 1.0})
    assert logits.objective(TASK).connectors == ()
    assert list(logits.needs(TASK).fields) == ["logits"]


@pytest.mark.parametrize("name", ["ccskd", "cskd"])
def test_mixed_views_are_refused_where_labels_tell_classes(name):
    batch = {PARTNER_LABEL: torch.tensor([1, 2, 0]), RATIO: torch.full((3,), 0.6)}
    if name == "ccskd":
        with pytest.raises(ConfigError, match=r"`views` to be not mixed.*\(selective_kl\)"):
            total(build_method(name), Clock(epoch=60), **batch)
        assert total(build_method(name, selective_weight=0.0), Clock(), **batch) > 0
        return
    batch |= {LABEL: torch.tensor([0, 1, 2])}
    own = [term for term in build_method(name).objective(TASK).terms if term.name in ("variance", "projection")]
    for term in own:
        with pytest.raises(ConfigError, match=r"`views` to be not mixed"):
            term.value({"features/pooled": STUDENT}, {}, batch, Clock())
    assert len(own) == 2


def test_the_other_schedule_of_the_release():
    """Card ccskd, "imagenet": labels from epoch 30 on (from 0), channels at 6 x 0.9^floor(epoch / 30) (from 1)."""
    method = build_method("ccskd", "imagenet")
    epochs = (0, 28, 29, 30, 59, 89)
    assert [resolve(method.ce_weight, Clock(epoch=epoch)) for epoch in epochs] == [0, 0, 0, 1, 1, 1]
    assert [resolve(method.selective_weight, Clock(epoch=epoch)) for epoch in epochs] == [0, 0, 0, 0.1, 0.1, 0.1]
    wanted = [6 * 0.9 ** ((epoch + 1) // 30) for epoch in epochs]
    assert [resolve(method.channel_weight, Clock(epoch=epoch)) for epoch in epochs] == pytest.approx(wanted)
