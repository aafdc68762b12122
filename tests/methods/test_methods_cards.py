"""Worked numbers of method cards that no other file asserts: extractive-kd, takd, tfkd, both forms of label smoothing, and the
identities that the card of orthogonality names.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from tests.methods.test_methods_contract import STUDENT, TEACHER, total

from bookkd.knowledge import VirtualKnowledge
from bookkd.losses import CombinedTarget, DenseTarget, cross_entropy, soft_cross_entropy, soft_target_kl
from bookkd.losses.adaptive import adaptive_smoothing, smoothing_strength
from bookkd.methods import TAKD, ExtractiveKD, Supervised, TfKDReg, build_method
from bookkd.objectives.transforms import Correct

ASSISTANT = torch.tensor([[1.5, 2.8, 0.2]], dtype=torch.float64)


def near(value):
    return pytest.approx(value, abs=1e-6)


def test_extraction_at_separate_temperatures():
    """Card extractive-kd: "w 2, tau_s 1, tau_t 4, no extraction (rho = 0), L_kd alone"."""
    student = STUDENT.clone().requires_grad_()
    method = ExtractiveKD(kd_weight=2.0, student_temperature=1.0, teacher_temperature=4.0, share=0.0, ce_weight=0.0)
    (slope,) = torch.autograd.grad(total(method, student), student)
    assert slope[0].tolist() == near([-0.220762, 0.262999, -0.042237])


@pytest.mark.parametrize(
    ("student", "teacher", "soft", "loss"),
    [
        (STUDENT, TEACHER, 0.687025, 0.575697),
        (STUDENT, ASSISTANT, 0.099086, 0.281728),
        (ASSISTANT, TEACHER, 0.275552, 0.286644),
    ],
    ids=["teacher to student", "assistant to student", "teacher to assistant"],
)
def test_links_of_a_chain(student, teacher, soft, loss):
    """Card takd, T = 5: with alpha 1 the soft term alone, with alpha 0.5 the full loss."""
    assert total(TAKD(temperature=5.0, alpha=1.0), student, teacher).item() == near(soft)
    assert total(TAKD(temperature=5.0, alpha=0.5), student, teacher).item() == near(loss)


def test_small_steps_are_shorter_than_one():
    """Card takd: "the two small steps sum to 0.374639 < 0.687025"."""
    soft = TAKD(temperature=5.0, alpha=1.0)
    assert (total(soft, STUDENT, ASSISTANT) + total(soft, ASSISTANT, TEACHER)).item() == near(0.374639)


def test_a_link_divided_by_the_number_of_classes():
    """Card takd: "elementwise-mean version of TA->student 0.248699"."""
    assert total(build_method("takd", "code"), STUDENT, ASSISTANT).item() == near(0.248699)


@pytest.mark.parametrize(("temperature", "value"), [(1.0, 0.419916), (20.0, 0.436489), (1e7, 0.437841)])
def test_the_virtual_teacher_at_other_temperatures(temperature, value):
    """Card tfkd, alpha 0.1, a 0.99, tau 1, 20 and to infinity."""
    assert total(TfKDReg(temperature=temperature, alpha=0.1, confidence=0.99)).item() == near(value)


@pytest.mark.parametrize(("temperature", "value"), [(1.0, 0.019839), (20.0, 0.185571), (1e7, 0.199090)])
def test_the_divergence_from_the_virtual_teacher_alone(temperature, value):
    """Card tfkd: KL(target || softmax z), the target softened and the student not."""
    said = VirtualKnowledge(3, confidence=0.99).targets({"label": torch.tensor([1])})["own/virtual"]
    log_u = said.log_probabilities(temperature).double()
    assert soft_target_kl(STUDENT, log_u, temperature=1.0, t_squared=False, class_reduction="sum").item() == near(value)


def test_smoothing_by_how_sure_the_student_is():
    """Card adaptive-label-smoothing, p = [0.7, 0.2, 0.1]: its entropy, the strength, and the target, which is p less the gradient."""
    p = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64)
    student, phi = p.log().requires_grad_(), torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    strength = smoothing_strength(student.detach(), alpha=None, largest=1.0).item()
    assert (strength, (1 - strength) * math.log(3)) == (near(0.270153), near(0.801819))
    loss = adaptive_smoothing(student, phi, torch.tensor([0]), alpha=None, largest=1.0).sum()
    (slope,) = torch.autograd.grad(loss, student)
    assert (p - slope)[0].tolist() == near([0.864923, 0.081046, 0.054031])


def test_at_the_best_scale_both_sides_expect_the_same_logit():
    """Card bookkd: at a = 2.489799, E_q[z] = E_b[z] = 1.416351."""
    for log_p in (STUDENT * 2.489799 / 4, TEACHER / 4):
        assert (log_p.softmax(-1) * STUDENT).sum().item() == near(1.416351)


def test_how_much_of_a_wrong_teacher_is_moved_to_the_label():
    """Card bookkd: of sigma([3, 2, -1]) with y = 1, e = 0.313192 moves; what is neither of the two keeps 1 - e."""
    wrong = DenseTarget(torch.tensor([[3.0, 2.0, -1.0]], dtype=torch.float64))
    found = Correct().teacher(wrong, {"label": torch.tensor([1])}).log_probabilities(1.0)
    assert 1 - (found - wrong.log_probabilities(1.0)).exp()[0, 2].item() == near(0.313192)


def test_the_virtual_teacher_is_nearly_uniform():
    """Card tfkd: "tau=40 ... (entropy 4.605167 against log 100 = 4.605170)"."""
    said = VirtualKnowledge(100, confidence=0.99).targets({"label": torch.tensor([7])})["own/virtual"]
    assert entropy(said.log_probabilities(40.0).exp().double()[0]) == pytest.approx(4.605167, abs=6e-7)


def test_both_forms_of_label_smoothing():
    """Cards instance-label-smoothing and tfkd: epsilon / K, and epsilon / (K - 1) on the other classes."""
    assert total(build_method("supervised", "inception")).item() == near(0.547702)
    assert total(build_method("supervised", "others")).item() == near(0.589369)
    assert total(Supervised(label_smoothing=0.1, smoothing_over="others")).item() == near(0.589369)


def test_learning_from_the_teacher_is_learning_from_labels_that_it_draws():
    """Card kd-orthogonality, identity (1): the mean over drawn labels is 0.658653, the variance of a draw 0.163289."""
    drawn = cross_entropy(STUDENT.expand(3, 3), torch.arange(3), label_smoothing=0.0)
    chances = torch.tensor(softmax(TEACHER[0].numpy()))
    mean = float((chances * drawn).sum())
    assert mean == near(0.658653)
    assert float((chances * (drawn - mean) ** 2).sum()) == near(0.163289)
    assert soft_cross_entropy(STUDENT, TEACHER, temperature=1.0, t_squared=False).item() == near(0.658653)


def test_rules_of_mixing_two_targets():
    """Card kd-orthogonality: logits [2, 3.5, -1] and [0, 0.5, 2.5], l = 0.7."""
    members = (DenseTarget(TEACHER), DenseTarget(torch.tensor([[0.0, 0.5, 2.5]], dtype=torch.float64)))
    mixed, of_logits = (CombinedTarget(members, (0.7, 0.3), mode) for mode in ("probability", "logit"))
    assert mixed.log_probabilities(1.0).exp()[0].tolist() == near([0.146776, 0.600501, 0.252723])
    assert of_logits.log_probabilities(1.0).exp()[0].tolist() == near([0.218371, 0.725018, 0.056611])
    hyper = {"temperature": 1.0, "t_squared": False, "class_reduction": "sum"}
    assert soft_target_kl(of_logits.log_probabilities(1.0), mixed, **hyper).item() == near(0.206632)
    assert soft_target_kl(mixed.log_probabilities(1.0), of_logits, **hyper).item() == near(0.138679)
