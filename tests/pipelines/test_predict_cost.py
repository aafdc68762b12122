"""The prediction against real runs on digits, in seconds of the processor: what else the machine does plays no part."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from bookkd.core.errors import ConfigError
from bookkd.knowledge import LiveKnowledge, StoredKnowledge
from bookkd.learning import Training, learn
from bookkd.making import make
from bookkd.methods import VanillaKD
from bookkd.pipelines import DataOptions, NetworkOptions, ViewOptions
from bookkd.pipelines.predict_cost import predict_cost
from bookkd.tasks import Classification
from bookkd.zoo import save_weights

DATA = DataOptions("digits")
VIEWS = ViewOptions("digits", 8)
TRAINING = Training(epochs=8, batch_size=64, accelerator="cpu")


@pytest.fixture(scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    network, _ = NetworkOptions("digits-large").build(10, role="teacher", seed=1)
    path = tmp_path_factory.mktemp("plan") / "teacher.safetensors"
    save_weights(network, path)
    return NetworkOptions("digits-large", weights=str(path))


def predicted(weights, **changes):
    options = {"data": DATA, "teacher": weights, "student": NetworkOptions("digits-small"), "views": VIEWS}
    return predict_cost(**{**options, "training": TRAINING, "cpu": True, **changes})


def test_within_a_fifth_of_the_real_run(one_thread, weights, tmp_path):
    # A processor that is shared runs at another speed from minute to minute: one of three tries is to be right as a whole.
    tries = [ratios(weights, tmp_path / str(attempt)) for attempt in range(1)]
    while len(tries) < 3 and not close(tries[-1]):
        tries.append(ratios(weights, tmp_path / str(len(tries))))
    assert close(tries[-1]), tries


def close(found):
    return all(abs(ratio - 1) <= 0.2 for ratio in found.values())


def ratios(weights, path):
    """Predicted over real seconds: of making, of a student from the book, of a student online."""
    dataset, views = DATA.open(), VIEWS.build()
    task, teacher = Classification(dataset.class_names), weights.teacher(10, "cpu")
    found = predicted(weights)
    book = make(path / "book", teacher, dataset, views, task=task)
    assert found.records == found.teacher_forwards == book.cost["teacher_forwards"]
    assert book.nbytes == pytest.approx(found.codecs["dense float16"]["bytes"], rel=0.05)
    return {
        "making": found.making_seconds / book.cost["cpu_seconds"],
        "book": found.student_seconds / learning(StoredKnowledge(book), dataset, views, task),
        "online": found.online_seconds / learning(LiveKnowledge(teacher, task), dataset, views, task),
    }


def learning(knowledge, dataset, views, task):
    network, preprocess = NetworkOptions("digits-small").build(10, role="student")
    options = {"task": task, "knowledge": knowledge, "method": VanillaKD(), "preprocess": preprocess}
    started = time.process_time()
    learn(network, dataset, views, training=TRAINING, **options)
    return time.process_time() - started


def test_totals_and_the_break_even(one_thread, weights):
    found = predicted(weights, students=7, sample=64)
    assert found.book_total == pytest.approx(found.making_seconds + 7 * found.student_seconds)
    assert found.online_total == pytest.approx(7 * found.online_seconds)
    saved = found.online_seconds - found.student_seconds
    assert found.break_even is None or found.break_even * saved == pytest.approx(found.making_seconds)
    names = ["dense float32", "dense float16", "int8", "top_k 4"]
    assert list(found.codecs) == names
    for name in names[1:]:
        assert 0 < found.codecs[name]["temperatures"]["4"]["mean"] < 1e-2


def test_out_of_range(weights):
    with pytest.raises(ConfigError, match="`students` to be a whole number of at least 1, got 0"):
        predicted(weights, students=0)
    with pytest.raises(ConfigError, match="`sample` to be a whole number of at least 16, got 3"):
        predicted(weights, sample=3)
    with pytest.raises(ConfigError, match="`mix` to be none for a plan, got 'mixup'"):
        predicted(weights, views=replace(VIEWS, mix="mixup"))
