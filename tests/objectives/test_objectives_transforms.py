"""Field transforms against the cards' worked numbers, closed forms, and what they must leave alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from bookkd.core.errors import ConfigError, FidelityError, UnknownNameError
from bookkd.core.schedules import Clock, Linear
from bookkd.losses import (
    CombinedTarget,
    DenseTarget,
    SparseTarget,
    correlation_inter,
    correlation_intra,
    generalised_jsd,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    soft_target_kl,
    softened_mse,
)
from bookkd.objectives import (
    Combine,
    Correct,
    EntropyBand,
    Extract,
    FieldTransform,
    Flatten,
    Objective,
    Standardise,
    Temper,
    bind,
    transformed,
)

Z = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
V = torch.tensor([[2.0, 3.5, -1.0]], dtype=torch.float64)


def probabilities(transform, logits=V, temperature=1.0, **batch):
    return transform.teacher(DenseTarget(logits), batch).log_probabilities(temperature).exp()


def close(found, wanted, tolerance=1e-6):
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=tolerance)


def kl(transform, *, temperature=1.0, t_squared=False, student=Z, teacher=V, **batch):
    term = bind(soft_target_kl, teacher="logits", temperature=temperature, t_squared=t_squared, class_reduction="sum")
    targets = {"logits": DenseTarget(teacher)}
    return transformed(term, transform).value({"logits": student}, targets, batch, Clock())


logits = st.lists(st.floats(-8, 8), min_size=3, max_size=8).map(lambda row: torch.tensor([row], dtype=torch.float64))


class TestExtract:
    """Card extractive-kd, "Tests that pin it"."""

    @pytest.mark.parametrize(
        ("temperature", "p", "share", "r"),
        [
            (1.0, [0.180784, 0.810216, 0.009001], 0.027002, [0.176550, 0.823450, 0.0]),
            (4.0, [0.341605, 0.497032, 0.161363], 0.484088, [0.349366, 0.650634, 0.0]),
            (20.0, [0.340299, 0.366803, 0.292898], 0.878694, [0.390756, 0.609244, 0.0]),
        ],
    )
    def test_the_table_of_the_card(self, temperature, p, share, r):
        close(probabilities(Temper(temperature)), [p])
        found = probabilities(Extract(temperature))
        close(found, [r])
        # (1 - u) r + u / K is p again.
        close((1 - share) * found + share / 3, [p], tolerance=2e-6)

    def test_the_limit_of_high_temperature(self):
        close(probabilities(Extract(1e5)), [[0.4, 0.6, 0.0]], tolerance=1e-4)

    @pytest.mark.parametrize(("temperature", "wanted"), [(1.0, 0.174797), (4.0, 0.166682), (20.0, 0.186040)])
    def test_the_loss_under_it(self, temperature, wanted):
        assert float(kl(Extract(temperature))) == pytest.approx(wanted, abs=1e-6)

    def test_without_extraction_it_is_transformed_teacher_matching(self):
        leaf = Z.clone().requires_grad_()
        value = kl(Extract(4.0, share=0.0), student=leaf)
        assert value.item() == pytest.approx(0.039283, abs=1e-6)
        close(torch.autograd.grad(value.sum(), leaf)[0], [[-0.110381, 0.131499, -0.021118]])
        assert kl(Temper(4.0)).item() == value.item()

    def test_a_uniform_teacher_says_nothing(self):
        leaf = Z.clone().requires_grad_()
        value = kl(Extract(4.0), student=leaf, teacher=torch.full((1, 3), 2.0, dtype=torch.float64))
        assert value.item() == 0
        assert torch.equal(torch.autograd.grad(value.sum(), leaf)[0], torch.zeros_like(Z))
        many = kl(Extract(4.0), student=torch.randn(1, 1000), teacher=torch.full((1, 1000), 0.3))
        assert float(many) == 0

    @pytest.mark.parametrize("loss", [soft_target_kl, softened_mse, correlation_inter, skew_kl])
    def test_no_loss_is_taken_by_a_silent_row(self, loss):
        """What a silent row says reaches neither value nor gradient; the rows beside it count as they are."""
        hyper = {
            soft_target_kl: {"class_reduction": "sum"},
            skew_kl: {"alpha": 0.1},
        }.get(loss, {})
        term = transformed(bind(loss, teacher="logits", temperature=2.0, t_squared=False, **hyper), Extract(4.0))
        leaf = torch.cat([Z, Z]).requires_grad_()
        target = DenseTarget(torch.cat([torch.zeros_like(V), V]))
        both = term.value({"logits": leaf}, {"logits": target}, {}, Clock())
        assert both[0].item() == 0
        assert both[1].item() == pytest.approx(
            term.value({"logits": Z}, {"logits": DenseTarget(V)}, {}, Clock()).item()
        )
        gradient = torch.autograd.grad(both.sum(), leaf)[0]
        assert torch.equal(gradient[0], torch.zeros(3, dtype=torch.float64))
        assert float(gradient[1].abs().sum()) > 0

    def test_a_relation_takes_a_silent_row_as_uniform(self):
        hyper = {"temperature": 1.0, "t_squared": False}
        term = transformed(bind(correlation_intra, teacher="logits", **hyper), Extract(4.0))
        target = DenseTarget(torch.cat([torch.zeros_like(V), V]))
        student = torch.cat([Z, -Z])
        found = term.value({"logits": student}, {"logits": target}, {}, Clock())
        r = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.3493656, 0.6506344, 0.0]], dtype=torch.float64)
        assert float(found) == pytest.approx(float(correlation_intra(student, r.log(), **hyper)), abs=1e-6)

    def test_rows_go_along(self):
        target = Extract(4.0).teacher(DenseTarget(torch.cat([torch.zeros_like(V), V])), {})
        assert target.silent().tolist() == [True, False]
        assert target.rows(torch.tensor([1])).silent().tolist() == [False]
        assert target.to("cpu").silent().tolist() == [True, False]

    def test_what_comes_behind_it_stays_silent_with_it(self):
        """A uniform teacher is not wrong, so that even the correction leaves it as it is."""
        batch = {"label": torch.tensor([1])}
        silent = Extract(4.0).teacher(DenseTarget(torch.zeros_like(V)), batch)
        for change in (Correct(), Flatten(0.1), EntropyBand(0.1, 0.5)):
            assert change.teacher(silent, batch).silent().tolist() == [True]

    def test_a_member_without_weight_does_not_speak(self):
        silent = Extract(4.0).teacher(DenseTarget(torch.zeros_like(V)), {})
        assert CombinedTarget((silent, DenseTarget(V)), (1.0, 0.0)).silent().tolist() == [True]
        assert CombinedTarget((silent, DenseTarget(V)), (0.5, 0.5)).silent() is None

    def test_classes_ruled_out_do_not_count(self):
        """Two classes of three: p = (a, 1 - a), the uniform share is 2 min p."""
        masked = torch.tensor([[2.0, 3.5, -torch.inf]], dtype=torch.float64)
        close(probabilities(Extract(1.0), masked), [[0.0, 1.0, 0.0]])
        p = 1 / (1 + math.exp(1.5))
        close(probabilities(Extract(1.0, share=0.5), masked), [[p / 2 / (1 - p), 1 - p / 2 / (1 - p), 0.0]])

    @pytest.mark.parametrize(
        ("loss", "hyper"),
        [
            (reverse_kl, {}),
            (generalised_jsd, {"beta": 1.0}),
            (generalised_jsd, {"beta": Linear(0.5, 1.0)}),
            (skew_reverse_kl, {"alpha": 0.0}),
        ],
    )
    def test_losses_that_zeros_make_infinite_are_refused(self, loss, hyper):
        term = bind(loss, teacher="logits", temperature=1.0, t_squared=False, **hyper)
        with pytest.raises(ConfigError, match=r"leave every class some probability, got Extract.* is infinite there"):
            transformed(term, Extract(4.0))
        value = transformed(term, Extract(4.0, share=0.5)).value({"logits": Z}, {"logits": DenseTarget(V)}, {}, Clock())
        assert math.isfinite(value.item())

    def test_the_second_smallest_probability(self):
        v = torch.tensor([[3.0, 2.0, 1.0, -9.0]], dtype=torch.float64)
        p = v.softmax(-1)[0]
        rest = torch.stack([p[0] - p[2], p[1] - p[2], p[2] - p[2], torch.zeros_like(p[3])])
        torch.testing.assert_close(probabilities(Extract(1.0, rank=2), v)[0], rest / rest.sum())

    @given(logits)
    def test_keeps_the_order_and_shifts_do_not_matter(self, row):
        found = probabilities(Extract(4.0), row)
        assert bool((found[0].argsort(stable=True) == row[0].argsort(stable=True)).all()) or _ties(row)
        torch.testing.assert_close(probabilities(Extract(4.0), row + 3.0), found, rtol=1e-6, atol=1e-9)

    def test_out_of_range(self):
        with pytest.raises(ConfigError, match=r"`share` to be between 0 and 1, got 1\.5 \(extraction\)"):
            Extract(4.0, share=1.5)
        with pytest.raises(ConfigError, match=r"`rank` to be below the 3 classes, got 3"):
            probabilities(Extract(4.0, rank=3))


def _ties(row):
    ordered = row[0].sort().values
    return bool((ordered[1:] - ordered[:-1] < 2e-6).any())


class TestCorrect:
    def test_the_card(self):
        wrong = torch.tensor([[3.0, 2.0, -1.0]], dtype=torch.float64)
        close(probabilities(Correct(), wrong, label=torch.tensor([1])), [[0.495463, 0.495463, 0.009075]])

    def test_a_teacher_that_is_right_or_has_no_label_stays(self):
        target = DenseTarget(V)
        for label in (1, -1):
            found = Correct().teacher(target, {"label": torch.tensor([label])})
            assert torch.equal(found.log_probabilities(4.0), target.log_probabilities(4.0))

    @given(logits, st.integers(0, 2))
    def test_the_true_class_ties_for_first_and_the_rest_keeps_its_shape(self, row, label):
        before, found = row.softmax(-1)[0], probabilities(Correct(), row, label=torch.tensor([label]))[0]
        assert float(found.sum()) == pytest.approx(1, abs=1e-12)
        assert float(found[label]) == pytest.approx(float(found.max()), abs=1e-12)
        others = [i for i in range(len(before)) if i != label]
        torch.testing.assert_close(found[others] / found[others].sum(), before[others] / before[others].sum())

    def test_mixed_views_are_refused(self):
        batch = {"label": torch.tensor([1]), "partner_label": torch.tensor([0])}
        with pytest.raises(ConfigError, match="`views` to be not mixed, to correct teachers"):
            Correct().teacher(DenseTarget(V), batch)
        with pytest.raises(ConfigError, match="`batch` to be one with `label`"):
            Correct().teacher(DenseTarget(V), {})


class TestFlatten:
    def test_closed_form(self):
        close(probabilities(Flatten(0.25), temperature=4.0), (0.75 * (V / 4).softmax(-1) + 0.25 / 3).tolist(), 1e-12)

    def test_classes_ruled_out_get_nothing(self):
        masked = torch.tensor([[2.0, 3.5, -torch.inf]], dtype=torch.float64)
        p = 1 / (1 + math.exp(1.5))
        close(probabilities(Flatten(0.25), masked), [[0.75 * p + 0.125, 0.75 * (1 - p) + 0.125, 0.0]], 1e-12)

    def test_out_of_range(self):
        for share in (0.0, -0.1, 1.1):
            with pytest.raises(ConfigError, match="`share` to be"):
                Flatten(share)


class TestEntropyBand:
    @example(torch.tensor([[0.0, 1e-5, -1.0]], dtype=torch.float64), 0.25, 0.0)
    @given(logits, st.floats(0.1, 0.9), st.floats(0.0, 0.15))
    def test_every_record_comes_into_the_band(self, row, low, width):
        before = DenseTarget(row).log_probabilities(1.0)
        entropy = -(before.exp() * before).sum().item()
        log_b = EntropyBand(low, low + width).teacher(DenseTarget(row), {}).log_probabilities(1.0)
        found = -(log_b.exp() * log_b.clamp_min(-1e9)).sum().item()
        if low <= entropy <= low + width:
            assert torch.equal(log_b, before)
        elif not _ties(row):
            # Ties at the top have a least entropy of their own: no sharpening goes below it.
            assert low - 1e-5 <= found <= low + width + 1e-5
        assert bool((log_b[0].argsort(stable=True) == before[0].argsort(stable=True)).all()) or _ties(row)

    def test_out_of_range(self):
        for low, high in ((-0.1, 1.0), (0.5, 0.4), (0.0, 0.0)):
            with pytest.raises(ConfigError, match="`entropy` to be 0 <= low <= high"):
                EntropyBand(low, high)
        with pytest.raises(ConfigError, match=r"`entropy_low` to be at most log 3 = 1\.099 nats, got 1\.2"):
            probabilities(EntropyBand(1.2, math.inf))


class TestEntropyBandWhereNoPowerHelps:
    def test_ties_stay_and_masked_classes_bound_it(self):
        tied = torch.tensor([[2.0, 2.0, -1.0]], dtype=torch.float64)
        p = probabilities(EntropyBand(0.0, 0.5), tied)
        close(p, [[0.5, 0.5, 0.0]], tolerance=1e-3)
        masked = torch.tensor([[1.0, 2.0, -torch.inf]], dtype=torch.float64)
        close(probabilities(EntropyBand(1.0, math.inf), masked), [[0.5, 0.5, 0.0]], tolerance=1e-3)

    def test_a_target_that_says_nothing_still_says_nothing(self):
        silent = transformed(
            bind(soft_target_kl, teacher="logits", temperature=1.0, t_squared=False, class_reduction="sum"),
            Extract(4.0),
            EntropyBand(0.1, 0.5),
        )
        uniform = DenseTarget(torch.zeros(1, 3, dtype=torch.float64))
        assert silent.value({"logits": Z}, {"logits": uniform}, {}, Clock()).item() == 0


class TestStandardise:
    """Card modern-logit-losses, logit standardisation."""

    def test_the_card(self):
        close(Standardise().student(Z), [[-0.218218, 1.091089, -0.872871]])
        squared = {"temperature": 2.0, "t_squared": True}
        assert float(kl(Standardise(), **squared)) == pytest.approx(0.046574, abs=1e-6)
        assert float(kl(Standardise(ddof=0), **squared)) == pytest.approx(0.068746, abs=1e-6)

    def test_an_affine_change_of_the_teacher_changes_nothing(self):
        plain = kl(Standardise(), temperature=2.0, t_squared=True)
        moved = kl(Standardise(), temperature=2.0, t_squared=True, teacher=5 * V + 3)
        assert float(moved) == pytest.approx(float(plain), abs=1e-7)

    def test_masked_classes_are_refused(self):
        masked = torch.tensor([[2.0, -torch.inf, 1.0]])
        with pytest.raises(ConfigError, match="`logits` to be finite, got -inf or NaN"):
            kl(Standardise(), teacher=masked)
        with pytest.raises(ConfigError, match="`ddof` to be 0 or 1, got 2"):
            Standardise(2)


class TestCombine:
    def both(self, *accuracies):
        return CombinedTarget.of([DenseTarget(V), DenseTarget(Z)], accuracies)

    def test_weights(self):
        wanted = 0.75 * V.softmax(-1) + 0.25 * Z.softmax(-1)
        for weights, accuracies in (((3.0, 1.0), ()), ("accuracy", (0.9, 0.3))):
            target = Combine(weights=weights).teacher(self.both(*accuracies), {})
            torch.testing.assert_close(target.log_probabilities(1.0).exp(), wanted)
        assert Combine("logit").teacher(self.both(), {}).mode == "logit"

    def test_one_teacher_stays_as_it_is(self):
        target = DenseTarget(V)
        assert Combine("logit", (2.0,)).teacher(target, {}) is target
        with pytest.raises(ConfigError, match=r"`weights` to be one, for one teacher, got \[0\.5, 0\.5\]"):
            Combine(weights=(0.5, 0.5)).teacher(target, {})

    def test_out_of_range(self):
        with pytest.raises(UnknownNameError, match="Unknown mode 'mean'"):
            Combine("mean")
        with pytest.raises(UnknownNameError, match="Unknown weights 'best'"):
            Combine(weights="best")
        for weights in ((), (-1.0, 2.0), (0.0, 0.0)):
            with pytest.raises(ConfigError, match="`weights` to be uniform, accuracy or numbers"):
                Combine(weights=weights)
        with pytest.raises(ConfigError, match=r"`accuracies` to be known for every teacher, got 1 for 2 teachers"):
            Combine(weights="accuracy").teacher(self.both(0.9, None), {})
        with pytest.raises(ConfigError, match=r"`weights` to be one for each of 2 teachers, got 3 weights"):
            Combine(weights=(1.0, 1.0, 1.0)).teacher(self.both(), {})


def test_a_sparse_target_is_refused_and_the_objective_says_so_before():
    term = bind(soft_target_kl, teacher="logits", temperature=4.0, t_squared=True, class_reduction="sum")
    assert Objective((term,)).dense_only() == ()
    changed = transformed(term, Flatten(0.1))
    assert Objective((changed,)).dense_only() == ("logits",)
    sparse = SparseTarget.from_logits(V, 2, (4.0,))
    with pytest.raises(
        FidelityError, match=r"`teacher` to be logits of every class, got the 2 largest of 3 \(transform Fl"
    ):
        changed.value({"logits": Z}, {"logits": sparse}, {}, Clock())


def test_a_transform_of_nothing_changes_nothing():
    assert torch.equal(kl(FieldTransform(), temperature=4.0), kl(Temper(4.0), temperature=4.0))


def test_transforms_are_applied_in_order():
    term = bind(soft_target_kl, teacher="logits", temperature=1.0, t_squared=False, class_reduction="sum")
    both = transformed(transformed(term, Temper(4.0)), Flatten(0.5))
    assert both.transforms == (Temper(4.0), Flatten(0.5))
    wanted = 0.5 * (V / 4).softmax(-1) + 0.5 / 3
    q = Z.log_softmax(-1)
    expected = (wanted * (wanted.log() - q)).sum()
    assert float(both.value({"logits": Z}, {"logits": DenseTarget(V)}, {}, Clock())) == pytest.approx(float(expected))


def test_a_transform_without_a_teacher_is_refused():
    from bookkd.losses import student_entropy

    with pytest.raises(ConfigError, match="`teacher` to be a field, got None"):
        transformed(bind(student_entropy, temperature=1.0), Flatten(0.1))
