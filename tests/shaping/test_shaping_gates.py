"""The tree of gates and the tables of both: the card's numbers, and paths that are followed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bookkd.core.errors import ConfigError
from bookkd.losses import student_entropy
from bookkd.shaping import GateTree, ShapedTree, gate_record, gate_shares, table_of
from bookkd.zoo import load_weights, save_weights

A = torch.tensor([0.2, 0.9, 0.5], dtype=torch.float64)
SMALL = {"in_channels": 1, "channels": (8, 8, 4), "pool": 1, "hidden": 8}


def tree(**options):
    torch.manual_seed(0)
    return GateTree(10, **{**SMALL, **options})


@pytest.mark.parametrize(
    ("t", "shares", "entropy"),
    [
        (10, (0.311322, 0.358105, 0.330573), 1.096959),
        (1, (0.145406, 0.589648, 0.264946), 0.943753),
        (0.1, (0.000001, 0.999664, 0.000335), 0.003031),
    ],
)
def test_shares_and_entropies_of_the_card(t, shares, entropy):
    found = gate_shares(A, t / 2)
    torch.testing.assert_close(found, torch.tensor(shares, dtype=torch.float64), rtol=0, atol=1e-6)
    table = table_of("layer 1", found[None])
    assert table.entropy == pytest.approx(entropy, abs=1e-6)
    assert table.spread == pytest.approx(entropy / math.log(3), abs=1e-6)
    # The form of the released code.
    two_steps = ((A / 0.5).log_softmax(0) / t).softmax(0)
    torch.testing.assert_close(found, two_steps, rtol=0, atol=1e-12)


def test_gradient_of_the_entropy_of_the_card():
    logits = A.clone().requires_grad_()
    student_entropy(logits, temperature=1.0).backward()
    torch.testing.assert_close(logits.grad, torch.tensor([0.095298, -0.131134, 0.035836]).double(), rtol=0, atol=1e-6)
    assert float(logits.grad.sum()) == pytest.approx(0, abs=1e-12)


def test_a_table_of_one_choice_and_its_names():
    table = table_of("last", torch.eye(2), rows=["cat", "dog"], of_classes=True)
    assert table.entropies == (0.0, 0.0)
    assert gate_record("tree", [table])["gates"]["tables"][0]["rows"] == ["cat", "dog"]
    with pytest.raises(ConfigError, match=r"`names` to be 2, got 1 \(table of gates\)"):
        table_of("last", torch.eye(2), rows=["cat"])
    with pytest.raises(ConfigError, match=r"`temperature` to be a number above 0, got 0"):
        gate_shares(A, 0)


def test_what_classes_read_is_the_product_along_all_paths():
    network = tree()
    network.set_epoch(9)
    own, by_class = network.tables()[:3], network.tables()[3:]
    assert [table.layer for table in own] == ["layer 1", "layer 2", "layer 3"]
    assert [(table.layer, len(table.rows), len(table.columns)) for table in by_class] == [
        ("layer 2 by class", 10, 4),
        ("layer 1 by class", 10, 2),
    ]
    # Walking all paths one by one.
    one, two, three = (table.shares for table in own)
    for c in range(10):
        for i in range(2):
            total = sum(three[c][k] * two[k][j] * one[j][i] for k in range(8) for j in range(4))
            assert by_class[1].shares[c][i] == pytest.approx(total, abs=1e-6)


def test_a_hardened_tree_says_what_a_tree_of_very_sharp_gates_says():
    network = tree(head="nce")
    with torch.no_grad():
        for gates in network.gates:
            gates.mul_(1e4)
    hard = network.hardened()
    assert hard.hard
    assert len(hard.gates) == 0
    for name, value in hard.state_dict().items():  # the same weights, of the blocks that are there
        value.copy_(network.state_dict()[name])
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(hard.eval()(x), network.eval()(x))
    assert all(set(row) <= {0.0, 1.0} for table in hard.tables() for row in table.shares)
    with pytest.raises(ConfigError, match=r"`tree` to be one with trained gates, got a hardened one"):
        hard.hardened()


def test_hardening_draws_all_weights_anew_and_leaves_out_what_no_class_reads():
    network = tree()
    with torch.no_grad():
        for gates in network.gates:
            gates.zero_()[:, 0] = 1  # everybody reads the first parent
    hard = network.hardened()
    assert [list(layer) for layer in hard.layers] == [["0"], ["0"], ["0"]]
    weights = [module.weight for module in hard.modules() if isinstance(module, nn.Conv2d)]
    known = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert not any(torch.equal(mine, theirs) for mine in weights for theirs in known if mine.shape == theirs.shape)


def test_gates_that_do_not_move_yet_have_a_gradient_of_zero():
    network = tree()
    network.set_epoch(0, start=2)
    network(torch.randn(2, 1, 8, 8)).sum().backward()
    assert all(torch.equal(gates.grad, torch.zeros_like(gates)) for gates in network.gates)
    network.set_epoch(2, start=2)
    network(torch.randn(2, 1, 8, 8)).square().sum().backward()
    assert all(gates.grad.abs().max() > 0 for gates in network.gates)
    assert float(network.temperature) == pytest.approx(10 / 3)


def test_gradients_of_gates():
    network = tree(blocks=(2, 2), channels=(2, 2), hidden=2).double().eval()
    network.set_epoch(4)
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)

    def logits(*gates):
        return torch.func.functional_call(network, {f"gates.{i}": each for i, each in enumerate(gates)}, (x,))

    assert torch.autograd.gradcheck(logits, tuple(gates.detach().clone().requires_grad_() for gates in network.gates))


def test_a_tree_is_saved_and_loaded(tmp_path):
    network = tree()
    network.set_epoch(5)
    save_weights(network, tmp_path / "tree.safetensors")
    torch.manual_seed(1)
    other = GateTree(10, **SMALL)
    load_weights(other, tmp_path / "tree.safetensors")
    assert other.tables() == network.tables()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"channels": (8, 8)}, r"`channels` to be one number a layer, 3, got \(8, 8\) \(tree of gates\)"),
        ({"blocks": (2, 0, 4)}, r"`blocks` to be a whole number of at least 1, got 0"),
        ({"head": "bce"}, r"Unknown head 'bce'"),
        ({"paths": [[0] * 4, [0] * 8, [8] * 10]}, r"`paths` to be the parent of each child of layers of 4, 8, 10"),
    ],
)
def test_trees_that_cannot_be(options, match):
    with pytest.raises((ConfigError, LookupError), match=match):
        tree(**options)


def test_another_student_is_refused():
    with pytest.raises(ConfigError, match=r"`student` to be a tree of gates, got 'Linear' \(method kdexplainer\)"):
        ShapedTree(nn.Linear(2, 2))
