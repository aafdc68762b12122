"""Choosing one assistant out of several by their accuracies, on samples that nothing is reported on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bookkd.core.check import between, positive, unique
from bookkd.core.errors import ConfigError, expected
from bookkd.pipelines.chain.links import Chain
from bookkd.pipelines.chain.measured import Measurer
from bookkd.pipelines.chain.run import train_paths
from bookkd.pipelines.chain.trainer import ChainTrainer, costs
from bookkd.pipelines.samples import HELD_OUT, open_samples
from bookkd.tasks import Classification

__all__ = ["nearest_to_mean", "run_with_assistant"]


def nearest_to_mean(teacher: float, student: float, candidates: dict[str, float]) -> str:
    """Return the candidate whose accuracy, trained on labels alone, is nearest to the mean of teacher's and student's.

    Args:
        teacher: Accuracy of the teacher.
        student: Accuracy of the student, trained on labels alone.
        candidates: Accuracy of each possible assistant, trained on labels alone; of equally near ones the first.

    >>> nearest_to_mean(0.90, 0.70, {"resnet44": 0.89, "resnet20": 0.86, "resnet14": 0.79})
    'resnet14'

    Source: Mirzadeh et al., AAAI 2020 (arXiv 1902.03393), recalled, not read again: the mean of accuracies is a better guide
    than the mean of sizes.
    """
    return min(candidates, key=lambda name: abs(candidates[name] - (teacher + student) / 2))


def run_with_assistant(
    chain: Chain,
    teacher: str,
    student: str,
    candidates: Sequence[str],
    *,
    validation: str = "",
    validation_fraction: float | None = None,
) -> dict[str, Any]:
    """Train candidates and student on labels alone, take the assistant that the rule names, and run its path.

    Args:
        chain: What the links share; what it holds out is set here.
        teacher: The first network.
        student: The last.
        candidates: Possible assistants, other networks than these two.
        validation: Split on which accuracies are compared, not the one that is reported.
        validation_fraction: In its place, share of the training samples, above 0 to 0.5; no network learns from them, be it on
            labels alone or in the chain. A tenth where neither is given.

    Returns:
        What `run_chain` gives for the path without an assistant and the one with it, which counts the trainings on labels alone
        among its own, and
        `chosen`: the assistant; `chosen_on`: the samples on which it was; `teacher_accuracy`: the teacher's there; `alone`: by
        name, the records of candidates and student on labels alone, measured there.

    Raises:
        ConfigError: if a candidate is the teacher, the student or named twice, or there is nothing to choose on but the test
            split.
    """
    _check_candidates(teacher, student, candidates)
    share = _share(chain, validation, validation_fraction)
    chain = replace(chain, held_out=share)
    samples = open_samples(
        chain.data, Classification.name, test=chain.test, validation=validation, held_out=share, where="chain"
    )
    trainer, alone = ChainTrainer(chain, samples), ChainTrainer(chain.alone(), samples)
    trainer.check([(teacher, student), *((teacher, name, student) for name in candidates)])
    alone.check([(name,) for name in (*candidates, student)])
    notes = _notes(chain, teacher)
    for note in notes:
        trainer.say_once(note)
    measure = trainer.measurer(on_test=False)
    records = {name: _on_labels(alone, name, measure) for name in (*candidates, student)}
    trainer.trained((teacher,))
    highest = measure(chain.network((teacher,)), chain.folder((teacher,)))["accuracy"]
    reached = {name: record["accuracy"] for name, record in records.items()}
    chosen = nearest_to_mean(highest, reached[student], {name: reached[name] for name in candidates})
    chain.say(
        f"assistant: {chosen}, {reached[chosen]:.4f} on labels alone; teacher {highest:.4f}, "
        f"student {reached[student]:.4f}; on {samples.validation_name}"
    )
    choice = {
        "chosen": chosen,
        "chosen_on": samples.validation_name,
        "teacher_accuracy": highest,
        "alone": records,
        "notes": notes,
    }
    direct, assisted = (teacher, student), (teacher, chosen, student)
    return train_paths(trainer, [direct, assisted], choice, beside={assisted: list(records.values())})


def _on_labels(alone: ChainTrainer, name: str, measure: Measurer) -> dict[str, Any]:
    """Train a network on labels alone and return its record."""
    path = (name,)
    learned = alone.train(path, {})
    measures = measure(alone.chain.network(path), alone.chain.folder(path))
    return {**alone.about(path), **measures, **costs({}, learned)}


def _check_candidates(teacher: str, student: str, candidates: Sequence[str]) -> None:
    if not candidates:
        raise ConfigError(expected("candidates", "one network at least", 0, where="chain"))
    unique(candidates, "candidates", where="chain")
    for name, what in ((teacher, "teacher"), (student, "student")):
        if name in candidates:
            do = "An assistant stands between the two; leave it out."
            got = f"{name}, the {what}"
            raise ConfigError(
                expected("candidates", "other networks than teacher and student", got, where="chain", do=do)
            )


def _share(chain: Chain, validation: str, fraction: float | None) -> float:
    """Return the share of the training samples that is held out for the choice; 0 where a split is given."""
    if validation == chain.data.split:
        do = "Networks learn from it: hold a share of it out with --validation_fraction 0.1."
        raise ConfigError(expected("validation", "another split than the data's", validation, where="chain", do=do))
    if validation and validation in (chain.test, "test"):
        do = "The test split is for the report alone: hold a share of the training samples out with --validation_fraction 0.1."
        raise ConfigError(expected("validation", "another split than test", validation, where="chain", do=do))
    if fraction is not None:
        if validation:
            got = f"{fraction} beside the split {validation!r}"
            raise ConfigError(expected("validation_fraction", "absent where a split is given", got, where="chain"))
        between(fraction, 0, 0.5, "validation_fraction", where="chain")
        do = "An assistant is chosen on these samples; name a split to choose on with --validation SPLIT."
        return positive(fraction, "validation_fraction", where="chain", do=do)
    return 0.0 if validation else HELD_OUT


def _notes(chain: Chain, teacher: str) -> list[str]:
    """Return why the choice may flatter."""
    notes = []
    if chain.held_out and chain.first.weights is not None:
        notes.append(
            f"the weights of {teacher} are given: if they have learned from the samples that are held out here, its accuracy "
            "there flatters, and the choice leans to better assistants; choose on a split of its own: --validation SPLIT."
        )
    return notes
