"""Presets of teacher-free distillation: every row of the table on card tfkd, held against the released code's own losses in torch."""

from __future__ import annotations

import pytest
import torch
from tests.methods.test_methods_contract import LABELS, STUDENT, TEACHER, total
from torch.nn import KLDivLoss
from torch.nn.functional import cross_entropy

from bookkd.methods import TfKDReg, TfKDSelf, build_method

# Card tfkd, the files of the released code for CIFAR-100: network -> alpha, tau, m of self and of reg.
TABLE = {
    "mobilenetv2": ((0.95, 20, 1), (0.95, 40, 1)),
    "shufflenetv2": ((0.95, 20, 1), (0.95, 10, 1)),
    "resnet18": ((0.95, 6, 50), (0.1, 20, 100)),
    "googlenet": ((0.4, 20, 50), (0.1, 40, 50)),
    "densenet121": ((0.9, 20, 50), (0.1, 40, None)),
    "resnext29": ((0.9, 20, 100), (0.5, 40, None)),
}
REVERSED = (0.6, 20, 1)  # the same card: "Re-KD and large students alpha 0.6, tau 20"


def released(alpha, multiplier, student, teacher):
    """KLDivLoss of torch with its default reduction, over classes too, as the released code calls it."""
    with pytest.warns(UserWarning, match="reduction: 'mean' divides"):
        divergence = KLDivLoss()(student.log_softmax(-1), teacher.softmax(-1))
    return (1 - alpha) * cross_entropy(STUDENT, LABELS) + alpha * multiplier * divergence


@pytest.mark.parametrize(("name", "values"), [*((name, row[0]) for name, row in TABLE.items()), ("reversed", REVERSED)])
def test_presets_of_self(name, values):
    alpha, tau, multiplier = values
    reference = released(alpha, multiplier * tau**2, STUDENT / tau, TEACHER / tau)
    torch.testing.assert_close(total(build_method("tfkd-self", name)), reference, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "values"), [(name, row[1]) for name, row in TABLE.items() if row[1][2] is not None])
def test_presets_of_reg(name, values):
    alpha, tau, multiplier = values
    virtual = torch.tensor([[0.005, 0.99, 0.005]], dtype=torch.float64)
    reference = released(alpha, multiplier, STUDENT, virtual / tau)
    torch.testing.assert_close(total(build_method("tfkd-reg", name)), reference, rtol=1e-6, atol=1e-7)


def test_every_whole_row_of_the_card_has_its_preset():
    assert set(TfKDSelf.presets) == {*TABLE, "reversed"}
    assert set(TfKDReg.presets) == {name for name, row in TABLE.items() if row[1][2] is not None} | {"paper"}
