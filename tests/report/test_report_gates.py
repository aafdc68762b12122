"""Gates in a report: spread against labels alone, classes that share, and what is no table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.report.records import HOSTILE, TEACHER, as_found, record

from bookkd.core.errors import DataError
from bookkd.evaluation import class_order, shared_parents
from bookkd.report import numbers_of, render
from bookkd.report.class_tables import readings_table, sharing_table
from bookkd.report.gates import gates_of
from bookkd.shaping import gate_record, table_of

CLASSES = tuple("abcdef")


def shaping(seed, sharp, names=CLASSES):
    """Gates of a tree of two layers whose classes come in two kinds, a c e and b d f, that read other parents."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    own = sharp * torch.randn(4, 2, generator=generator)
    heads = 0.1 * torch.randn(6, 4, generator=generator)
    for place in range(6):
        heads[place, (place + seed) % 2] += sharp  # parents are numbered otherwise by each seed
    layers = [own.softmax(1), heads.softmax(1)]
    tables = [
        table_of("layer 1", layers[0]),
        table_of("layer 2", layers[1], rows=names, of_classes=True),
        table_of("layer 1 by class", layers[1] @ layers[0], rows=names, of_classes=True, derived=True),
    ]
    return gate_record("tree", tables)


def comparison(names=CLASSES, seeds=(0, 1)):
    found = []
    for seed in seeds:
        options = {"classes": names, "method": "kdexplainer"}
        labels = {"name": "kdexplainer", "kd_weight": 0.0, "label_smoothing": 0.0}
        found += [
            replace(record("labels / tree", seed, **options), method=labels, shaping=shaping(seed, 1.0, names)),
            replace(
                record("smooth / tree", seed, **options),
                method={**labels, "label_smoothing": 0.1},
                shaping=shaping(seed, 0.5, names),
            ),
            replace(
                record("teacher / tree", seed, teachers=[TEACHER], **options),
                method={"name": "kdexplainer", "kd_weight": 0.9},
                shaping=shaping(seed, 4.0, names),
            ),
        ]
    return found


def test_shared_parents_and_their_order():
    shares = [[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.6, 0.4, 0.0]]
    # 1 less half the sum of absolute differences.
    wanted = [[1 - sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 2 for b in shares] for a in shares]
    np.testing.assert_allclose(shared_parents(shares), wanted, atol=1e-12)
    assert class_order(wanted) in {(1, 0, 2), (1, 2, 0), (0, 2, 1), (2, 0, 1)}
    assert class_order([[1.0]]) == (0,)
    with pytest.raises(DataError, match=r"`shares` to be rows that add up to 1, got rows of \[0\.9\] \(gates\)"):
        shared_parents([[0.4, 0.5]])


def test_spread_is_held_against_labels_alone_and_classes_that_share_stand_together():
    numbers = numbers_of(as_found(comparison()))
    gates = {(each.arm, each.layer): each for each in numbers.gates}
    assert len(gates) == 9
    assert gates["labels / tree", "layer 2"].difference is None
    teacher, smooth = gates["teacher / tree", "layer 2"], gates["smooth / tree", "layer 2"]
    assert teacher.difference.against == smooth.difference.against == "labels / tree"
    assert teacher.difference.mean < -0.1 < 0.01 < smooth.difference.mean
    assert teacher.spread.n == 2
    kinds = [place % 2 for place in teacher.order]
    assert kinds in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
    ordered = np.array(teacher.together)
    assert ordered[0, 1] > 0.9
    assert ordered[0, 5] < 0.2
    changed = np.array(teacher.changed)
    assert changed[0, 1] > 0  # classes of a kind share more where a teacher speaks, others less
    assert changed[0, 5] < -0.1
    assert gates["labels / tree", "layer 2"].changed == ()
    assert any(
        "Gates of teacher / tree are sharper than those of labels / tree" in text for text in numbers_words(numbers)
    )


def test_tables_stand_behind_the_heat_maps():
    numbers = numbers_of(as_found(comparison()))
    gates = {(each.arm, each.layer): each for each in numbers.gates}
    first = gates["teacher / tree", "layer 2"]
    readings = [
        row
        for row in readings_table(numbers.gates).rows
        if [cell.text for cell in row[:2]] == ["teacher / tree", "layer 2"]
    ]
    assert [row[2].text for row in readings] == list(first.rows)
    for row, shares in zip(readings, first.shares, strict=True):
        assert row[3].value == max(shares)
        ranked = sorted(zip(first.columns, shares, strict=True), key=lambda pair: -pair[1])[:3]
        assert row[4].text == ", ".join(f"{parent}: {100 * share:.0f} %" for parent, share in ranked)
    sharing = [
        row
        for row in sharing_table(numbers.gates).rows
        if [cell.text for cell in row[:2]] == ["teacher / tree", "layer 2"]
    ]
    together, changed = np.array(first.together), np.array(first.changed)
    assert sharing[0][4].value == together[np.triu_indices(6, 1)].max()
    for row in sharing:
        one, other = ([first.rows[place] for place in first.order].index(cell.text) for cell in row[2:4])
        assert (row[4].value, row[5].value) == (together[one, other], changed[one, other])
    assert [row[5].text for row in sharing_table([gates["labels / tree", "layer 2"]]).rows] == ["–"] * 10


def numbers_words(numbers):
    from bookkd.report.words import summary

    return summary(numbers)


def test_every_format_has_them_and_names_stay_text():
    numbers = numbers_of(as_found(comparison(tuple(f"{HOSTILE}{name}" for name in CLASSES), seeds=(0,))))
    page = render(numbers)
    assert 'id="gates"' in page
    assert "Which classes read the same parents" in page
    assert "<script>alert" not in page
    assert "How spread gates are" in render(numbers, "md")
    assert not numbers_of(as_found([record()])).gates


@pytest.mark.parametrize(
    ("shaping", "match"),
    [
        ({"gates": [1]}, r"`shaping\.gates` to be a mapping, got 'list'"),
        ({"gates": {"tables": [{"layer": "a", "shares": [[0.5, "x"]]}]}}, r"`share` to be a finite number, got 'x'"),
        ({"gates": {"tables": [{"layer": "a", "shares": [[0.5], [0.5, 0.5]]}]}}, r"`shares` to be a table of numbers"),
        ({"gates": {"tables": [{"layer": "a", "shares": [[0.5, 0.1]]}]}}, r"`shares` to be rows that add up to 1"),
    ],
)
def test_what_is_no_table_is_refused(shaping, match):
    from bookkd.report.arms import arms_of

    with pytest.raises(DataError, match=match):
        gates_of(arms_of(as_found([replace(record(), shaping=shaping)])))


def test_a_record_keeps_them(tmp_path):
    from bookkd.report import RunRecord

    kept = comparison()[0]
    kept.save(tmp_path)
    assert RunRecord.load(tmp_path).shaping == kept.shaping
