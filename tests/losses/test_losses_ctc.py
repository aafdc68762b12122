"""Losses of speech: the identities of card cons-kd-ctc, padding, and what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr
from tests.losses.speech_cases import SAID, TRANSCRIPT, Z1, Z2, Q

from bookkd.core.errors import ConfigError, DataError, FidelityError
from bookkd.losses import (
    BakedTarget,
    ClassTarget,
    DenseTarget,
    SampledTarget,
    SparseTarget,
    consistency,
    ctc_loss,
    guided_ctc,
    soft_target_kl,
    softened_mse,
    view_consistency,
)
from bookkd.losses.targets import likeliest

ONE, TWO = (torch.tensor(rows, dtype=torch.float64) for rows in (Z1, Z2))
PLAIN = {"temperature": 1.0, "t_squared": False}
SUM = {**PLAIN, "class_reduction": "sum"}


def total(value):
    return float(value.sum())


def test_numbers_of_the_card():
    assert ONE.softmax(-1).flatten().tolist() == pytest.approx(
        [0.231224, 0.628532, 0.140244, 0.736125, 0.164252, 0.099624], abs=1e-6
    )
    assert TWO.softmax(-1).flatten().tolist() == pytest.approx(
        [0.296654, 0.540539, 0.162807, 0.636186, 0.258654, 0.105161], abs=1e-6
    )
    assert [total(soft_target_kl(each, SAID, **SUM)) for each in (ONE, TWO)] == pytest.approx(
        [0.162295, 0.349024], abs=1e-6
    )
    assert [total(softened_mse(each, SAID, **SUM)) for each in (ONE, TWO)] == pytest.approx(
        [0.090612, 0.226115], abs=1e-6
    )
    assert [total(soft_target_kl(one, other, **SUM)) for one, other in ((TWO, ONE), (ONE, TWO))] == pytest.approx(
        [0.043691, 0.046999], abs=1e-6
    )
    whole = sum(
        total(ctc_loss(each, *TRANSCRIPT, blank=0)) + total(soft_target_kl(each, SAID, **SUM)) for each in (ONE, TWO)
    )
    assert whole / 2 + total(consistency(ONE, TWO, **PLAIN)) == pytest.approx(0.842712, abs=1e-6)


def test_two_passes_hold_a_weak_consistency_by_themselves():
    """Mean of two divergences = that from the normalised geometric mean, and what two passes are apart."""
    p1, p2 = ONE.softmax(-1).numpy(), TWO.softmax(-1).numpy()
    roots = (p1 * p2) ** 0.5
    z = roots.sum(-1, keepdims=True)
    middle, apart = rel_entr(Q.numpy(), roots / z).sum(), float((-torch.from_numpy(z).log()).sum())
    assert (middle, apart) == pytest.approx((0.244316, 0.011343), abs=1e-6)
    mean = sum(total(soft_target_kl(each, SAID, **SUM)) for each in (ONE, TWO)) / 2
    assert mean == pytest.approx(middle + apart, abs=1e-12)


def test_alignment_is_used_by_frames_and_not_by_transcripts():
    turned = SAID.flip(0)
    assert total(soft_target_kl(ONE, turned, **SUM)) == pytest.approx(2.112295, abs=1e-6)
    assert total(ctc_loss(turned, *TRANSCRIPT, blank=0)) == pytest.approx(0.267879, abs=1e-6)


def test_ctc_is_torchs_over_many_utterances_whatever_stands_beside():
    """Values and gradients of utterances in one batch are those of each alone, with any padding of the labels."""
    generator = torch.Generator().manual_seed(3)
    counts, lengths = torch.tensor([9, 4, 12]), torch.tensor([3, 2, 5])
    logits = torch.randn(25, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(1, 6, (3, 7), generator=generator)
    labels[torch.arange(7) >= lengths[:, None]] = -1
    values = ctc_loss(logits, labels, lengths, counts, blank=0)
    (slope,) = torch.autograd.grad(values.sum(), logits)
    start = 0
    for place, count in enumerate(counts.tolist()):
        part = logits.detach()[start : start + count].requires_grad_()
        wanted = F.ctc_loss(
            part.log_softmax(-1)[:, None],
            labels[place, : lengths[place]][None],
            [count],
            [int(lengths[place])],
            reduction="none",
        )
        torch.testing.assert_close(values[start : start + count].sum(), wanted[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(
            slope[start : start + count], torch.autograd.grad(wanted.sum(), part)[0], rtol=0, atol=1e-12
        )
        start += count


def test_a_transcript_that_is_not_known_counts_nothing():
    logits = ONE.clone().requires_grad_()
    values = ctc_loss(logits, torch.empty(1, 0, dtype=torch.int64), torch.tensor([0]), torch.tensor([2]), blank=0)
    assert values.tolist() == [0.0, 0.0]
    assert torch.autograd.grad(values.sum(), logits)[0].abs().max() == 0


def ints(*values):
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("labels", "lengths", "blank", "error", "message"),
    [
        (ints([1, 1]), ints(2), 0, DataError, r"`frames` to be at least 3, for 2 symbols and 1 repeats, got 2 \(utterance 0\)\. Leave"),
        (ints([1, 2, 1]), ints(3), 0, DataError, r"at least 3, for 3 symbols and 0 repeats, got 2"),
        (ints([1, 0]), ints(2), 0, DataError, r"`symbol` to be from 0 to 2, and not the blank 0, got 0 \(utterance 0\)"),
        (ints([1, 2]), ints(2), 2, DataError, r"not the blank 2, got 2"),
        (ints([3]), ints(1), 0, DataError, r"from 0 to 2, and not the blank 0, got 3"),
        (ints([1]), ints(1), 3, ConfigError, r"`blank` to be between 0 and 2, got 3 \(ctc_loss\)"),
        (ints(1), ints(1), 0, ConfigError, r"`labels` to be \[1, most symbols\]"),
    ],
)  # fmt: skip
def test_transcripts_that_do_not_fit_are_refused(labels, lengths, blank, error, message):
    with pytest.raises(error, match=message):
        ctc_loss(ONE, labels, lengths, torch.tensor([2]), blank=blank)


def test_frames_that_do_not_fit_are_refused():
    for counts, message in (
        ([3], "adding up to 2 frames, got .* sum 3"),
        ([2, 0], r"`frames` to be at least 1, got 0 .*utterance 1"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            ctc_loss(
                ONE, torch.ones(len(counts), 1).long(), torch.ones(len(counts)).long(), torch.tensor(counts), blank=0
            )
    ruled_out = ONE.clone()
    ruled_out[1, 2] = -torch.inf
    with pytest.raises(DataError, match=r"`logits` to be above -inf, got '-inf' \(ctc_loss, utterance 0\)\. A symbol"):
        ctc_loss(ruled_out, *TRANSCRIPT, blank=0)
    with pytest.raises(ConfigError, match=r"floating logits \[frames, classes\]"):
        ctc_loss(ONE[None], *TRANSCRIPT, blank=0)


def test_likeliest_classes_of_every_target():
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 2.5]])
    given = (DenseTarget(logits), SparseTarget.from_logits(logits, 2, (4.0,)), ClassTarget(torch.tensor([1, 0]), 3))
    assert [likeliest(target).tolist() for target in given] == [[1, 0]] * 3
    drawn = SampledTarget(torch.tensor([[1], [0]]), torch.ones(2, 1), 1.0, 3)
    with pytest.raises(FidelityError, match="draws from one"):
        guided_ctc(logits, drawn, blank=0)


def test_passes_that_agree_and_views_that_are_the_same_cost_nothing():
    assert total(consistency(ONE, ONE, **PLAIN)) == 0
    assert total(consistency(ONE, TWO, **PLAIN)) == pytest.approx(total(consistency(TWO, ONE, **PLAIN)), abs=1e-15)
    both = torch.cat([ONE, ONE]).requires_grad_()
    value = view_consistency(both, torch.tensor([2, 2]), torch.tensor([3, 3])).sum()
    assert float(value.detach()) == 0
    assert torch.autograd.grad(value, both)[0].abs().max() < 1e-15


@pytest.mark.parametrize(
    ("counts", "samples", "message"),
    [
        ([2, 2], [3, 4], "two views of each sample, next to each other"),
        ([1, 2, 1], [3, 3, 3], "two views of each sample"),
        ([1, 3], [3, 3], r"`frames` to be the same in both views of a sample, got 1 and 3 \(view_consistency, sample 3\)\. Use views that mask"),
    ],
)  # fmt: skip
def test_views_that_are_no_pairs_are_refused(counts, samples, message):
    with pytest.raises(DataError, match=message):
        view_consistency(torch.cat([ONE, TWO]), torch.tensor(counts), torch.tensor(samples))


def test_what_is_said_where_no_transcript_is_known_is_nobodys_business():
    logits = torch.cat([ONE, torch.tensor([[0.0, -torch.inf, torch.nan]], dtype=torch.float64)]).requires_grad_()
    labels, lengths = torch.tensor([[1], [-1]]), torch.tensor([1, 0])
    values = ctc_loss(logits, labels, lengths, torch.tensor([2, 1]), blank=0)
    torch.testing.assert_close(values[:2], ctc_loss(ONE, *TRANSCRIPT, blank=0))
    (slope,) = torch.autograd.grad(values.sum(), logits)
    assert slope[2].abs().max() == 0
    assert bool(torch.isfinite(slope).all())


def test_entries_of_another_shape_are_refused_in_one_line():
    with pytest.raises(
        ConfigError, match=r"`label_lengths` to be at most 1, the width of the labels, got 3 \(sample 7\)"
    ):
        ctc_loss(ONE, ints([1]), ints(3), ints(2), ints(7), blank=0)
    with pytest.raises(ConfigError, match=r"`samples` to be \[2\], one for each view, got shape \[3\]"):
        view_consistency(torch.cat([ONE, TWO]), ints(2, 2), ints(1, 1, 2))


def test_a_baked_target_is_asked_at_its_own_temperature():
    said = BakedTarget(DenseTarget(4 * SAID), 4.0)
    torch.testing.assert_close(guided_ctc(ONE, said, blank=0), guided_ctc(ONE, DenseTarget(SAID), blank=0))


def test_guided_reads_the_logits_in_pieces_of_few():
    """Neither forwards nor backwards is there a second tensor of the size of the logits, but their gradient."""
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    classes = torch.arange(40) % 6
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        value = guided_ctc(logits, ClassTarget(classes, 6), blank=0)
    assert not [each for each in kept if each.numel() == logits.numel() and each.data_ptr() != logits.data_ptr()]
    wanted = -logits.softmax(-1).gather(1, classes[:, None])[:, 0] * (classes != 0)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(
        *(torch.autograd.grad(each.sum(), logits, retain_graph=True)[0] for each in (value, wanted))
    )


def test_a_divergence_of_two_passes_works_each_out_once(monkeypatch):
    calls, inner = [], torch.Tensor.log_softmax
    monkeypatch.setattr(torch.Tensor, "log_softmax", lambda self, *given: calls.append(1) or inner(self, *given))
    consistency(ONE, TWO, **PLAIN)
    assert len(calls) == 2
