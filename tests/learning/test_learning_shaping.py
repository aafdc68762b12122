"""Students that a method shapes: gates survive an interruption, and what is returned and written is the plain network."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.learning.digits import (
    StopError,
    assert_equal,
    run,
    stopped_after,
    student,
    to_float,
    training,
    weights,
    without_seconds,
)

from bookkd.core.errors import ConfigError
from bookkd.core.fields import INPUT
from bookkd.learning import Learner
from bookkd.methods import VAM, KDExplainer, VanillaKD
from bookkd.shaping import GatedStudent, GateTree, VirtualGates, gates_of, insert_gates
from bookkd.tasks import Classification
from bookkd.zoo import create_network

FAST = {"epochs": 2, "checkpoint_steps": 3}


def resnet(seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_network("resnet8", n_classes=10, args={"in_channels": 1, "width": 8})


def tree(seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GateTree(10, in_channels=1, channels=(8, 8, 4), pool=1, hidden=8)


def test_a_pass_of_the_learner_works_all_gated_weights_out_at_once():
    network, taken = resnet(), []
    insert_gates(network)
    for path, gates in gates_of(network).items():
        weight = network.get_submodule(path).parametrizations.weight.original
        network.get_submodule(path).register_forward_pre_hook(
            lambda *_, gates=gates, weight=weight: taken.append(gates.ready.take(weight, gates.logits))
        )
    learner = Learner(network, Classification(tuple("0123456789")), shaping=GatedStudent(network), preprocess=to_float)
    learner({INPUT: torch.zeros(2, 1, 8, 8, dtype=torch.uint8)})
    assert len(taken) == len(gates_of(network))
    assert all(each is not None for each in taken)


def test_the_student_is_plain_again_and_says_what_the_gated_one_said(tmp_path, stored, monkeypatch):
    network, x = resnet(), to_float(torch.arange(128).reshape(2, 1, 8, 8).byte())
    said = []
    finish = GatedStudent.finish

    def watched(self):
        said.append(self.student.eval()(x).detach().clone())
        return finish(self)

    monkeypatch.setattr(GatedStudent, "finish", watched)
    method = VAM(classifier=True, gate_lr=5.0, entropy_weight=0.1)
    learned = run(tmp_path, method=method, network=network, knowledge_of=stored, training=training(**FAST))
    assert learned.student is network
    assert list(network.state_dict()) == list(resnet().state_dict())
    torch.testing.assert_close(network(x), said[0], rtol=0, atol=1e-6)
    assert load_file(tmp_path / "student.safetensors").keys() == resnet().state_dict().keys()
    tables = learned.shaping["gates"]["tables"]
    assert tables[-1]["of_classes"]
    assert min(table["spread"] for table in tables) < 0.999  # they have moved
    assert json.loads((tmp_path / "shaping.json").read_text()) == learned.shaping
    assert learned.history[-1]["train/gates/linear"] == pytest.approx(tables[-1]["spread"], abs=1e-5)
    # A finished run gives the same from its folder.
    again = run(tmp_path, method=method, network=resnet(9), knowledge_of=stored, training=training(**FAST))
    assert_equal(again.student, learned.student)
    assert again.shaping == learned.shaping


@pytest.mark.parametrize(
    ("method", "make"),
    [(VAM(gate_lr=1.0), resnet), (KDExplainer(gate_start=0, gate_lr=0.5), tree)],
    ids=["vam", "kdexplainer"],
)
@pytest.mark.parametrize("door", ["plain", "lightning"])
def test_gates_survive_an_interruption(tmp_path, stored, monkeypatch, method, make, door):
    options = {"knowledge_of": stored, "method": method, "training": training(**FAST), "door": door}
    whole = run(tmp_path / "whole", network=make(), **options)
    with monkeypatch.context() as patch:
        stopped_after(patch, 13)
        with pytest.raises(StopError):
            run(tmp_path / "cut", network=make(), **options)
    gone_on = run(tmp_path / "cut", network=make(8), **options)
    assert_equal(gone_on.student, whole.student)
    assert gone_on.shaping == whole.shaping
    assert without_seconds(gone_on.history) == without_seconds(whole.history)


def test_equal_gates_that_do_not_move_are_vanilla_kd_to_the_bit(stored, monkeypatch):
    plain = run(None, method=VanillaKD(), network=resnet(), knowledge_of=stored, training=training(epochs=1))
    # Card kdexplainer, test 6: no penalty, the scale kept, and the gates frozen; 4 blocks are a power of two.
    build = VirtualGates.__init__

    def frozen(self, *args, **options):
        build(self, *args, **options)
        self.logits.requires_grad_(False)

    monkeypatch.setattr(VirtualGates, "__init__", frozen)
    gated = run(
        None, method=VAM(entropy_weight=0.0), network=resnet(), knowledge_of=stored, training=training(epochs=1)
    )
    assert_equal(gated.student, plain.student)


def test_a_penalty_sharpens_gates():
    spreads = []
    for weight in (0.0, 1.0):
        method = VAM(kd_weight=0.0, ce_weight=1.0, entropy_weight=weight, gate_lr=5.0)
        learned = run(None, method=method, network=student("digits-small"), training=training(epochs=4))
        spreads.append(sum(table["spread"] for table in learned.shaping["gates"]["tables"]))
    assert spreads[1] < spreads[0]


def test_labels_alone_need_no_book_and_a_broken_off_run_can_be_gone_on_with(tmp_path, monkeypatch):
    method = VAM(kd_weight=0.0, ce_weight=1.0)
    network = resnet()
    with monkeypatch.context() as patch:
        stopped_after(patch, 3)
        with pytest.raises(StopError):
            run(tmp_path, method=method, network=network, training=training(**FAST))
    assert gates_of(network)  # as in a notebook: the same network goes on
    learned = run(tmp_path, method=method, network=network, training=training(**FAST))
    assert learned.student is network
    assert not gates_of(network)


def test_students_that_cannot_be_shaped_are_refused_before_anything_is_written(tmp_path):
    method = VAM(kd_weight=0.0, ce_weight=1.0)
    with pytest.raises(ConfigError, match=r"`student` to be with a convolution.*without convolutions"):
        run(tmp_path / "run", method=method)
    with pytest.raises(ConfigError, match=r"`student` to be a tree of gates, got 'Dropping'"):
        run(tmp_path / "run", method=KDExplainer(kd_weight=0.0, ce_weight=1.0))
    assert not (tmp_path / "run").exists()
    before = weights(student("digits-small"))
    network = student("digits-small")
    with pytest.raises(ConfigError, match=r"module paths of the student, got 'layer1'"):
        run(tmp_path / "run", method=VAM(kd_weight=0.0, ce_weight=1.0, layers=("layer1",)), network=network)
    assert weights(network).keys() == before.keys()
