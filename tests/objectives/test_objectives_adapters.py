"""Adapters from the student's maps to the teacher's grid."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bookkd.core.errors import ConfigError
from bookkd.methods import build_method
from bookkd.objectives.adapters import map_adapter
from bookkd.tasks import Classification

TASK = Classification(("a", "b"))


@pytest.mark.parametrize(
    ("mine", "theirs", "kind", "kernel"),
    [
        ((4, 8, 8), (6, 8, 8), nn.Conv2d, (1, 1)),
        ((4, 8, 8), (6, 4, 4), nn.Conv2d, (3, 3)),
        ((4, 4, 4), (6, 8, 8), nn.ConvTranspose2d, (4, 4)),
        ((4, 7, 6), (6, 4, 5), nn.Conv2d, (4, 2)),  # 1 + h_S - h_T
    ],
)
def test_the_grid_is_brought_to_the_teachers(mine, theirs, kind, kernel):
    adapter = map_adapter(mine, theirs, form="fit")
    (fit,) = [module for module in adapter.modules() if isinstance(module, kind)]
    assert fit.kernel_size == kernel
    assert adapter(torch.zeros(2, *mine)).shape == (2, *theirs)


def test_a_grid_out_of_reach_is_refused():
    said = r"`layer` to be maps of half the teacher's 6 x 6, as large, or larger, got 4 x 4 \(adapter\)\. Name a layer"
    with pytest.raises(ConfigError, match=said):
        map_adapter((4, 4, 4), (6, 6, 6), form="fit")
    assert map_adapter((4, 4, 4), (6, 6, 6))(torch.zeros(2, 4, 4, 4)).shape == (2, 6, 4, 4)


@pytest.mark.parametrize("variance", [0.001, 5.0, 1e6])
def test_a_variance_begins_as_it_is_given(variance):
    (connector,) = build_method("vid", layers=("stage1",), variance=variance).objective(TASK).connectors
    shapes = {"features/stage1": (3, 4, 4), "teacher/features/stage1": (5, 4, 4)}
    _, found = connector.build(shapes)(torch.zeros(2, 3, 4, 4))
    assert found.shape == (2, 5)
    assert found[0, 0].item() == pytest.approx(variance, rel=2e-3)


def test_stages_are_numbers_in_their_order():
    named = [f"stage{place}" for place in range(12, 0, -1)] + ["last", "pooled", "pre1", "pre2"]
    assert build_method("nst").looking_at(named).layers == tuple(f"stage{place}" for place in range(1, 13))
    assert build_method("ofd").looking_at(named).layers == ("pre1", "pre2")
    assert build_method("fsp").looking_at(["stage1"]).layers is None  # which has no pair
    assert build_method("vanilla-kd").looking_at(named) == build_method("vanilla-kd")
