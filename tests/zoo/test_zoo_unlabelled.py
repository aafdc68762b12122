"""Few labels and many samples, from the data set to the student."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.learning.digits import TASK, TRAIN, student, teacher, to_float, training, views

from bookkd.core.errors import DataError
from bookkd.evaluation import evaluate
from bookkd.knowledge import StoredKnowledge
from bookkd.learning import learn
from bookkd.making import make
from bookkd.methods import VanillaKD
from bookkd.zoo import ArrayDataset, SubsetDataset

KNOWN = 12
LABELS = np.where(np.arange(len(TRAIN)) < KNOWN, TRAIN.labels, -1)


def pictures(labels: np.ndarray) -> ArrayDataset:
    images = torch.stack([image for image, _ in TRAIN])
    return ArrayDataset("mine", images, labels, TRAIN.class_names)


def learned(folder, dataset, **options):
    book = make(folder, teacher(), dataset, views(), task=TASK, batch_size=16)
    known = {"knowledge": StoredKnowledge(book), "method": VanillaKD(kd_weight=0.5, ce_weight=0.5)}
    done = learn(student(), dataset, views(), task=TASK, preprocess=to_float, training=training(), **known, **options)
    return done.student.state_dict()


def test_a_data_set_with_few_labels_is_one_whose_other_labels_are_hidden(tmp_path):
    few = learned(tmp_path / "few", pictures(LABELS))
    hidden = learned(tmp_path / "hidden", pictures(np.asarray(TRAIN.labels)), labels=LABELS)
    whole = learned(tmp_path / "whole", pictures(np.asarray(TRAIN.labels)))
    for name, value in few.items():
        assert torch.equal(value, hidden[name]), name
    assert any(not torch.equal(value, whole[name]) for name, value in few.items())


def test_without_any_label_the_teacher_alone_is_learned_from(tmp_path):
    none = pictures(np.full(len(TRAIN), -1))
    assert all(torch.isfinite(value).all() for value in learned(tmp_path / "b", none).values())


def test_measuring_needs_every_label():
    part = SubsetDataset(pictures(LABELS), np.array([3, 20, 5]))
    assert part.labels.tolist() == [LABELS[3], -1, LABELS[5]]
    with pytest.raises(DataError, match=r"got -1 \(evaluation, sample 1\)\. Evaluate on samples whose class is known"):
        evaluate(torch.zeros(3, 10), torch.from_numpy(part.labels))
