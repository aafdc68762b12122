"""ULD on sparse targets: how far it may be from the dense value, and what does not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bookkd.book import RowIds, TopK
from bookkd.core.errors import ConfigError
from bookkd.losses import SparseTarget, uld


def logits(rows, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


def kept(teacher, k, always=()):
    codec = TopK(k, (1.0,), always=always)
    said = codec.decode(codec.encode(teacher.numpy(), RowIds(np.arange(len(teacher)), 0, "logits")), teacher.shape[1:])
    parts = (torch.from_numpy(each) for each in (said.values, said.indices.astype(np.int64), said.log_tail_mass))
    return SparseTarget(*parts, (1.0,), teacher.shape[1])


@pytest.mark.parametrize("classes", [30, 50])
def test_a_sparse_target_is_below_the_dense_value_by_no_more_than_its_tails(classes):
    student, teacher = logits(200, 40, 1), logits(200, classes, 2)
    dense = uld(student, teacher, temperature=1.0)
    q = student.softmax(-1).sort(descending=True).values
    p = teacher.softmax(-1).sort(descending=True).values
    for k in (1, 4, 12, classes):
        value = uld(student, SparseTarget.from_logits(teacher, k, (1.0,)), temperature=1.0)
        tails = torch.minimum(p[:, k:].sum(-1), q[:, k:].sum(-1))
        assert (value <= dense + 1e-12).all()
        assert (value >= dense - 2 * tails - 1e-12).all()
        assert k < 30 or torch.allclose(value, dense)


def test_classes_that_are_always_kept_stay_within_the_tails():
    student, teacher = logits(200, 40, 1), logits(200, 50, 2)
    target = kept(teacher, 8, always=(3, 9, 11))
    dense = uld(student, teacher, temperature=1.0)
    tails = target.log_tail(1.0).exp() + 1 - student.softmax(-1).topk(8).values.sum(-1)
    assert ((uld(student, target, temperature=1.0) - dense).abs() <= 2 * tails + 1e-3).all()


def test_names_of_classes_mean_nothing():
    student, teacher = logits(20, 9, 1), logits(20, 7, 2)
    value = uld(student, teacher, temperature=2.0)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(uld(student[:, order], teacher.flip(1), temperature=2.0), value)


def test_positions_must_be_paired():
    with pytest.raises(ConfigError, match=r"floating logits at the teacher's positions \[3\], got .*\[4, 9\] \(uld\)"):
        uld(logits(4, 9, 1), logits(3, 9, 1), temperature=1.0)
