"""Whether a knowledge has what a method needs; asked before anything long starts."""

from __future__ import annotations

from bookkd.core.errors import ConfigError, FidelityError
from bookkd.core.names import nearest
from bookkd.core.protocols import Knowledge, Needs
from bookkd.knowledge.live import LiveKnowledge

__all__ = ["check_needs"]


def check_needs(needs: Needs, knowledge: Knowledge | None, method: str) -> None:
    """Refuse a method whose needs the knowledge cannot meet.

    Args:
        needs: What the method asks for.
        knowledge: Who would answer; None for nobody.
        method: Name of the method, for the error.

    Raises:
        ConfigError: if a field is missing or a live teacher is needed.
        FidelityError: if a codec cannot honour a temperature or a loss.
    """
    if knowledge is None:
        if needs.fields or needs.live_teacher:
            wanted = ", ".join(needs.fields) or "a live teacher"
            raise ConfigError(
                f"Expected knowledge of {wanted} for method {method}, got none. Pass a book or a teacher."
            )
        return
    if needs.live_teacher and not isinstance(knowledge, LiveKnowledge):
        raise ConfigError(
            f"Expected a live teacher for method {method}, got a book. Pass --teacher NAME --teacher.weights FILE in its place."
        )
    for name, temperatures in needs.fields.items():
        info = knowledge.fields.get(name)
        if info is None:
            have = ", ".join(nearest(name, knowledge.fields)) or "nothing"
            raise ConfigError(
                f"Expected the knowledge to have field {name!r} for method {method}, got {have}. "
                "Make a book that holds it."
            )
        if info.sparse and name in needs.dense:
            raise FidelityError(
                f"Expected field {name!r} to be dense for method {method}, got a sparse codec, which serves no loss over every "
                "class and no temperature that moves steadily. "
                "Make the book with --codec dense or --codec int8."
            )
        missing = [t for t in temperatures if info.temperatures and t not in info.temperatures]
        if missing:
            promised = ", ".join(f"{t:g}" for t in info.temperatures)
            raise FidelityError(
                f"Expected field {name!r} to honour temperature {missing[0]:g} for method {method}, got a codec that "
                f"promises {promised}. Use one of these, or make the book with --codec.temperatures including {missing[0]:g}."
            )
