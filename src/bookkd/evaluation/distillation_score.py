"""The distillation score: one number for how small a student became and how much accuracy it kept."""

from __future__ import annotations

from bookkd.core.check import between, positive

__all__ = ["crossing_alpha", "distillation_score"]


def distillation_score(
    *, student_size: float, teacher_size: float, student_accuracy: float, teacher_accuracy: float, alpha: float
) -> float:
    """Return alpha student_size / teacher_size + (1 - alpha) (1 - student_accuracy / teacher_accuracy); lower is better.

    A report figure, not a loss. It hides a weak teacher and says nothing of latency: show the absolute accuracy beside it, and
    do not rank students that are as large as their teacher with smaller ones.

    Args:
        student_size: Parameters or bytes, above 0.
        teacher_size: In the same unit, above 0.
        student_accuracy: Any measure that grows with quality, 0 or more.
        teacher_accuracy: In the same unit, above 0.
        alpha: Weight of size, 0 to 1.

    Returns:
        Below 0 where the student is better than its teacher by more than the size counts; alpha for an equal student.

    Raises:
        ConfigError: if a value is out of range.

    >>> round(distillation_score(student_size=15.25, teacher_size=100, student_accuracy=62.87, teacher_accuracy=71.76, alpha=0.5), 6)
    0.138193

    Source: Alkhulaifi, Alsahli, Ahmad, "Knowledge distillation in deep learning and its applications", PeerJ Computer Science
    2021 (arXiv 2007.09029).
    """
    where = "distillation score"
    size, loss = _terms(student_size, teacher_size, student_accuracy, teacher_accuracy)
    return between(alpha, 0, 1, "alpha", where=where) * size + (1 - alpha) * loss


def _terms(
    student_size: float, teacher_size: float, student_accuracy: float, teacher_accuracy: float
) -> tuple[float, float]:
    where = "distillation score"
    positive(teacher_size, "teacher_size", where=where)
    positive(teacher_accuracy, "teacher_accuracy", where=where)
    size = positive(student_size, "student_size", where=where) / teacher_size
    return size, 1 - between(student_accuracy, 0, float("inf"), "student_accuracy", where=where) / teacher_accuracy


def crossing_alpha(first: tuple[float, float], second: tuple[float, float]) -> float | None:
    """Return the alpha at which two students have the same score: below it the more accurate one is better, above it the smaller.

    Args:
        first: Size ratio and accuracy loss, 1 - accuracy ratio, of one student.
        second: Of the other.

    Returns:
        None where one of them is better at every alpha between 0 and 1.

    >>> round(crossing_alpha((0.6284, 1 - 69.12 / 71.76), (0.3536, 1 - 67.04 / 71.76)), 4)
    0.0954
    """
    slope = (first[0] - first[1]) - (second[0] - second[1])
    if slope == 0:
        return None
    alpha = (second[1] - first[1]) / slope
    return alpha if 0 < alpha < 1 else None
