"""Choosing a codec: the smallest that loses no more than asked, measured as the asker would."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from tests.book.books import N, V, arrays, plan

from bookkd.book import (
    Argmax,
    Auto,
    Book,
    BookWriter,
    Dense,
    FieldPlan,
    Int8,
    Plan,
    RowIds,
    Sampled,
    TopK,
    choose_codec,
    measure_codec,
    shortfall,
)
from bookkd.core.errors import BookFormatError, ConfigError, FidelityError

RNG = np.random.default_rng(0)
FLAT = RNG.normal(size=(400, 200)) * 2.0
SURE = FLAT * 4


def spread_kl(logits, k, temperature):
    """T^2 KL of the teacher from the k largest with the rest in equal parts, by scipy alone."""
    p = softmax(logits / temperature, axis=1)
    q = np.empty_like(p)
    for row, line in enumerate(p):
        kept = np.argsort(-line, kind="stable")[:k]
        q[row] = (1 - line[kept].sum()) / (p.shape[1] - k)
        q[row, kept] = line[kept]
    return temperature**2 * (p * (log_softmax(logits / temperature, axis=1) - np.log(q))).sum(axis=1)


def test_the_smallest_that_meets_is_taken():
    loose = choose_codec(SURE, Auto(0.05), temperatures=[1.0])
    tight = choose_codec(FLAT, Auto(1e-6), temperatures=[1.0])
    assert isinstance(loose.codec, TopK)
    assert tight.codec == Dense()
    for choice in (loose, tight):
        sizes = [each.bytes_per_record for each in choice.candidates]
        assert sizes == sorted(sizes)
        (taken,) = [each for each in choice.candidates if each.codec == choice.codec]
        assert taken.meets
        smaller = [each for each in choice.candidates if each.bytes_per_record < taken.bytes_per_record]
        assert not any(each.meets for each in smaller)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_largest_are_judged_by_every_class_and_not_by_their_tail_as_one(temperature):
    """As one bucket the tail never loses anything: a codec of one class would always do."""
    choice = choose_codec(FLAT, Auto(1e-3), temperatures=[temperature])
    for each in choice.candidates:
        if isinstance(each.codec, TopK):
            true = spread_kl(FLAT, each.codec.k, temperature)
            found = each.temperatures[temperature]
            assert found["mean"] == pytest.approx(true.mean(), rel=1e-2)
            assert found["p99"] == pytest.approx(np.quantile(true, 0.99), rel=1e-2)
            assert not each.meets
    assert isinstance(choice.codec, Int8)


def test_the_error_of_the_gradient_is_that_of_a_student_that_knows_nothing():
    choice = choose_codec(SURE, Auto(1.0), temperatures=[1.0])
    p = softmax(SURE, axis=1)
    for each in choice.candidates:
        if each.codec == TopK(8, (1.0,)):
            order = np.argsort(-p, axis=1)[:, :8]
            q = np.repeat((1 - np.take_along_axis(p, order, 1).sum(1, keepdims=True)) / 192, 200, axis=1)
            np.put_along_axis(q, order, np.take_along_axis(p, order, 1), 1)
            share = np.sqrt(((q - p) ** 2).sum() / ((p - 1 / 200) ** 2).sum())
            assert each.temperatures[1.0]["gradient_error"] == pytest.approx(share, rel=2e-2)
            assert each.temperatures[1.0]["kept_mass"] == pytest.approx(
                np.take_along_axis(p, order, 1).sum(1).mean(), rel=1e-3
            )
            break
    else:
        pytest.fail("no candidate of 8 classes")


def test_bytes_bound_the_choice_too():
    choice = choose_codec(SURE, Auto(0.5, max_bytes=100), temperatures=[1.0])
    assert max(each.bytes_per_record for each in choice.candidates if each.meets) <= 100
    assert any(each.why == "too large" for each in choice.candidates)


@pytest.mark.parametrize(
    ("auto", "message"),
    [
        (Auto(1e-18), r"at most 1e-18 at 1, 4, got at best dense .*float32.*800 bytes"),
        (Auto(1e-3, max_bytes=60), r"at most 0.001 at 1, 4 in at most 60 bytes, got at best top_k .*'k': 8"),
        (Auto(1e-3, max_bytes=3), r"in at most 3 bytes, got at best top_k .*'k': 4"),
    ],
)
def test_where_nothing_meets_the_nearest_is_named(auto, message):
    with pytest.raises(FidelityError, match=message + r".*Raise --codec\.max_kl"):
        choose_codec(FLAT, auto, temperatures=[1.0, 4.0])


def test_classes_alone_and_draws_are_never_taken_for_their_size():
    choice = choose_codec(SURE, Auto(100.0), temperatures=[1.0])
    meets = {each.codec.name: (each.meets, each.why) for each in choice.candidates}
    assert meets["argmax"] == (False, "keeps no distribution: hard labels only, by name")
    assert not meets["sampled"][0]
    assert isinstance(choice.codec, TopK)
    agree = {each.codec.name: each.top1_agreement for each in choice.candidates}
    assert agree["argmax"] == 1.0


def test_draws_are_taken_where_they_are_for():
    many = np.random.default_rng(1).normal(size=(20, 5000)) * 4
    choice = choose_codec(many, Auto(1e-3), temperatures=[1.0])
    assert choice.codec == Sampled()
    (taken,) = [each for each in choice.candidates if each.codec == choice.codec]
    assert "right on average" in taken.why
    assert taken.bytes_per_record < 50 * 3
    for other in ([2.0], [1.0, 4.0]):
        assert not isinstance(choose_codec(many, Auto(1e-3), temperatures=other).codec, Sampled)


def test_a_codec_that_cannot_hold_the_teacher_is_no_candidate():
    choice = choose_codec(FLAT * 1e5, Auto(1e9), temperatures=[1e5])
    (half,) = [each for each in choice.candidates if each.codec == Dense()]
    assert not half.meets
    assert "65504" in half.why
    assert choice.codec == Dense("float32")


@pytest.mark.parametrize("given", [{"temperatures": []}, {"temperatures": [0.0]}])
def test_no_temperature(given):
    with pytest.raises(ConfigError, match="temperatures"):
        choose_codec(FLAT, Auto(), **given)
    with pytest.raises(ConfigError, match="logits of shape"):
        choose_codec(FLAT[0], Auto(), temperatures=[1.0])
    with pytest.raises(ConfigError, match="`max_kl` to be a number above 0"):
        Auto(0.0)
    with pytest.raises(ConfigError, match="`max_bytes` to be a whole number"):
        Auto(max_bytes=0)


def chosen(path, max_kl, scale=1.0):
    """A book of a codec that was chosen on the first rows, whose others are `scale` as wide."""
    logits = np.concatenate([FLAT[:100], FLAT[100:] * scale])
    choice = choose_codec(logits[:100], Auto(max_kl), temperatures=[1.0])
    the_plan = Plan(400, 1, {"logits": FieldPlan((200,), choice.codec)}, temperatures=(1.0,), choice=choice.to_json())
    with BookWriter(path, the_plan) as writer:
        writer.write_rows(0, 0, {"logits": logits})
        return writer.finish(), choice


def test_the_choice_stands_in_plan_and_edition_and_in_no_identity(tmp_path):
    book, choice = chosen(tmp_path / "b", 1e-3)
    told = json.loads(json.dumps(choice.to_json()))
    assert book.plan.choice == told
    assert Book(book.path).fidelity["logits"]["choice"] == told
    assert told["chosen"] == {"name": "int8", "configuration": {}}
    assert replace(book.plan, choice={}).identity() == book.plan.identity()
    assert shortfall(book) == []


def test_a_book_that_loses_more_than_its_first_records_says_so(tmp_path):
    book, _ = chosen(tmp_path / "b", 1e-4, scale=10.0)
    (line,) = shortfall(book)
    assert "above the 0.0001 asked of codec auto" in line
    lost = book.fidelity["logits"]["temperatures"]["1"]["mean"]
    assert f"{lost:.2g}" in line
    assert lost > 1e-4


def test_a_plan_whose_choice_is_no_object(tmp_path):
    found = plan().to_json()
    assert "choice" not in found
    with pytest.raises(BookFormatError, match="`choice` to be a mapping"):
        Plan.from_json({**found, "choice": [1]})


# What the figures of a book are.


def test_figures_at_temperatures_that_are_not_promised(tmp_path):
    fields = {"logits": FieldPlan((6,), TopK(2, (1.0,))), "members/0/logits": FieldPlan((6,), Argmax())}
    with BookWriter(tmp_path / "b", plan(fields=fields, temperatures=(1.0, 4.0))) as writer:
        for unit in writer.pending():
            said = arrays(*unit)
            writer.write(unit, {name: said[name] for name in fields})
        found = writer.finish().fidelity
    logits = np.concatenate([arrays(view, 0, N)["logits"] for view in range(V)]).astype(np.float64)
    top = -np.sort(-softmax(logits / 4, axis=1), axis=1)
    assert found["logits"]["unpromised"] == {"4": {"kept_mass": pytest.approx(top[:, :2].sum(axis=1).mean(), rel=1e-6)}}
    member = -np.sort(-softmax(logits * 2, axis=1), axis=1)[:, 0].mean()
    assert found["members/0/logits"]["temperatures"] == {}
    assert found["members/0/logits"]["unpromised"]["1"]["kept_mass"] == pytest.approx(member, rel=1e-6)
    assert found["members/0/logits"]["top1_agreement"] == 1.0


def test_figures_of_draws_are_their_noise():
    found = measure_codec(Sampled(200), SURE, [1.0, 4.0])
    p = softmax(SURE, axis=1)
    ids = RowIds(np.arange(400), 0, "logits")
    q = Sampled(200).decode(Sampled(200).encode(SURE, ids), (200,)).probabilities()
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = np.where(q > 0, q * np.log(q / p), 0).sum(axis=1)
    at = found["temperatures"]["1"]
    assert found["unbiased"] is True
    assert at["mean"] == pytest.approx(noise.mean(), rel=1e-6)
    assert at["gradient_error"] == pytest.approx(np.sqrt(((q - p) ** 2).sum() / ((p - 1 / 200) ** 2).sum()), rel=1e-6)
    assert list(found["unpromised"]) == ["4"]
    # The variance of a share is p (1 - p) / n.
    true = np.sqrt((p * (1 - p) / 200).sum() / ((p - 1 / 200) ** 2).sum())
    assert at["gradient_error"] == pytest.approx(true, rel=0.1)


def test_a_book_that_was_begun_before_these_figures_finishes(tmp_path):
    fields = {"logits": FieldPlan((6,), TopK(2, (1.0,)))}
    the_plan = plan(fields=fields, temperatures=(1.0,))
    with BookWriter(tmp_path / "b", the_plan) as writer:
        for unit in writer.pending()[:4]:
            writer.write(unit, {"logits": arrays(*unit)["logits"]})
    path = next((tmp_path / "b" / "view-0000").glob("rows-*.json"))
    old = json.loads(path.read_bytes())
    for entry in old["fidelity"]["logits"]["temperatures"]:
        for key in ("every_class", "error", "signal"):
            del entry[key]
    path.write_text(json.dumps(old))
    with BookWriter(tmp_path / "b", the_plan) as writer:
        for unit in writer.pending():
            writer.write(unit, {"logits": arrays(*unit)["logits"]})
        found = writer.finish().fidelity["logits"]["temperatures"]["1"]
    assert set(found) == {"mean", "p99", "max", "kept_mass"}
