"""Whether a knowledge has what a method needs; asked before anything long starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bookkd.book import Book
from bookkd.core.errors import ConfigError, FidelityError, expected
from bookkd.core.features import is_feature
from bookkd.core.fields import LOGITS, MEAN, VARIANCE, FieldInfo
from bookkd.core.names import nearest
from bookkd.core.protocols import Knowledge, Needs
from bookkd.knowledge.ensemble import Ensemble, books_of, constants_of
from bookkd.knowledge.live import LiveKnowledge

__all__ = ["check_fields", "check_needs", "check_views", "unmeasured"]

_HOW = {
    LOGITS: "Make a book that holds it: bookkd make ... --task classification.",
    MEAN: "Make a book that holds it: bookkd make ... --task regression.",
    VARIANCE: "Make a book that holds it: bookkd make ... --task regression, by a teacher that gives a variance.",
}
_OTHERWISE = "Make a book that holds it, with bookkd.making.make and a task that gives it."


def check_needs(
    needs: Needs, knowledge: Knowledge | None, method: str, *, n_views: int | None = None, where: str = ""
) -> None:
    """Refuse a method whose needs the knowledge cannot meet.

    Args:
        needs: What the method asks for.
        knowledge: Who would answer; None for nobody.
        method: Name of the method, for the error.
        n_views: Views of a sample that the student would see; None where they are not known yet.
        where: What would learn, for the error.

    Raises:
        ConfigError: if a field or constant is missing, a live teacher is needed, there are too few views, or several teachers for a
            method that looks inside of one.
        FidelityError: if a codec cannot honour a temperature or a loss.
    """
    place = f" ({where})" if where else ""
    if knowledge is None:
        if needs.fields or needs.live_teacher:
            wanted = ", ".join(needs.fields) or "a live teacher"
            raise ConfigError(
                f"Expected knowledge of {wanted} for method {method}, got none{place}. Pass a book or a teacher."
            )
    else:
        if needs.live_teacher and not isinstance(knowledge, LiveKnowledge):
            raise ConfigError(
                f"Expected a live teacher for method {method}, got a book{place}. "
                "Pass --teacher NAME --teacher.weights FILE in its place."
            )
        _refuse_several_inside(needs, knowledge, method, where)
        asked = ", ".join(filter(None, [where, *(str(stored.book.path) for stored in books_of(knowledge))]))
        place = f" ({asked})" if asked else ""
        check_fields(needs, knowledge.fields, method, where=asked)
        _refuse_several_of_classes(needs, knowledge, method, place)
        _check_constants(needs, knowledge, method, place)
    if n_views is not None:
        books = [stored.book for stored in books_of(knowledge)]
        check_views(needs, n_views, method, books=books, where=where)


def _check_constants(needs: Needs, knowledge: Knowledge, method: str, place: str) -> None:
    """Refuse knowledge without what a method must know of the teacher once and for all."""
    known = constants_of(knowledge) if needs.constants else {}
    for name in needs.constants:
        if name not in known:
            have = ", ".join(nearest(name, known)) or "none"
            raise ConfigError(
                f"Expected the knowledge to have constant {name!r} for method {method}, got {have}{place}. "
                f"Make a book that holds it: bookkd make ... --serve {method}."
            )


def _refuse_several_inside(needs: Needs, knowledge: Knowledge, method: str, where: str) -> None:
    """Refuse several books or teachers for a method that looks inside of one."""
    inside = [name for name in needs.fields if is_feature(name)]
    if inside and isinstance(knowledge, Ensemble):
        count, wish = len(knowledge.members), f"one for method {method}, since {inside[0]} is of one teacher"
        do = "Pass one book, or one live teacher."
        raise ConfigError(expected("knowledge", wish, f"{count} books or teachers", where=where, do=do))


def _refuse_several_of_classes(needs: Needs, knowledge: Knowledge, method: str, place: str) -> None:
    """Refuse a book of several teachers of which each kept a few classes: what they say together is not known."""
    for stored in books_of(knowledge):
        info = stored.fields.get(LOGITS)
        if LOGITS in needs.fields and info is not None and info.sparse and len(stored.members) > 1:
            raise FidelityError(
                f"Expected field {LOGITS!r} to be every class of each of {len(stored.members)} teachers for method {method}, got "
                f"a sparse codec: they keep different classes{place}. Read one of them, StoredKnowledge(book, teachers=[0]), or "
                "make the books with bookkd make ... --codec dense, or --codec int8."
            )


def check_fields(needs: Needs, fields: Mapping[str, FieldInfo], method: str, *, where: str = "") -> None:
    """Refuse a method that asks for what is not among some fields, or not as they are kept.

    Args:
        needs: What the method asks for.
        fields: What there is, by field name.
        method: Name of the method, for the error.
        where: What would learn, for the error.

    Raises:
        ConfigError: if a field is missing.
        FidelityError: if a codec cannot honour a temperature or a loss.

    >>> check_fields(Needs({"logits": (4.0,)}), {"logits": FieldInfo((10,))}, "vanilla-kd")
    >>> check_fields(Needs({"logits": (4.0,)}), {"mean": FieldInfo((1,))}, "vanilla-kd")
    Traceback (most recent call last):
    ...
    bookkd.core.errors.ConfigError: Expected the knowledge to have field 'logits' for method vanilla-kd, got mean. \
Make a book that holds it: bookkd make ... --task classification.
    """
    place = f" ({where})" if where else ""
    for name, temperatures in needs.fields.items():
        info = fields.get(name)
        if info is None:
            have = ", ".join(nearest(name, fields)) or "nothing"
            raise ConfigError(
                f"Expected the knowledge to have field {name!r} for method {method}, got {have}{place}. "
                f"{_how(name, [each for each in needs.fields if is_feature(each) and each not in fields], method)}"
            )
        if info.hard and name not in needs.hard:
            agree = _figure(info, "top1_agreement")
            said = "" if agree is None else f", which agree with it in {agree:.4f} of the records measured"
            raise FidelityError(
                f"Expected field {name!r} to be a distribution for method {method}, got the teacher's likeliest classes{said}{place}. "
                "Learn from them as labels, or make the book with bookkd make ... --codec dense, int8 or top_k."
            )
        if info.sparse and name in needs.dense:
            lost = [each for t in temperatures or info.temperatures for each in _lost(info, t)][:1]
            said = f" ({lost[0]})" if lost else ""
            raise FidelityError(
                f"Expected field {name!r} to be dense for method {method}, got a sparse codec, which serves no loss over every "
                f"class, no temperature that moves steadily and no choice of classes, of which it may have left some out{said}{place}. "
                "Make the book with bookkd make ... --codec dense, or --codec int8."
            )
        if info.linear and name in needs.nonlinear:
            noise = [each for t in info.temperatures for each in _lost(info, t)][:1]
            raise FidelityError(
                f"Expected field {name!r} to be a distribution for method {method}, whose losses are not linear in it, got draws, "
                f"which bias them{f' ({noise[0]})' if noise else ''}{place}. "
                "Make the book with bookkd make ... --codec dense, int8 or top_k."
            )
        missing = [t for t in temperatures if info.temperatures and t not in info.temperatures]
        if missing:
            promised = ", ".join(f"{t:g}" for t in info.temperatures)
            kept = _figure(info, "unpromised", f"{missing[0]:g}", "kept_mass")
            said = "" if kept is None else f" and keeps {kept:.3g} of the mass at {missing[0]:g}"
            option = "--codec.temperature" if info.linear else "--codec.temperatures including"
            raise FidelityError(
                f"Expected field {name!r} to honour temperature {missing[0]:g} for method {method}, got a codec that "
                f"promises {promised}{said}{place}. Use one of these, or make the book with {option} {missing[0]:g}."
            )


def _how(name: str, missing: Sequence[str], method: str) -> str:
    """Return what to do to have a field, and with it all those `missing` inside of the teacher."""
    if is_feature(name):
        what = "it" if len(missing) == 1 else "them all"
        named = missing[0] if len(missing) == 1 else f"'[{', '.join(missing)}]'"
        return f"Make a book that holds {what}: bookkd make ... --features {named}, or --serve {method} for what it reads by default."
    return _HOW.get(name, _OTHERWISE)


def unmeasured(needs: Needs, fields: Mapping[str, FieldInfo]) -> list[str]:
    """Return a caution for each field whose codec was chosen by measuring at other temperatures than a method learns at.

    Args:
        needs: What the method asks for.
        fields: What there is, by field name.
    """
    found = []
    for name, temperatures in needs.fields.items():
        choice = fields[name].measured.get("choice") if name in fields else None
        asked = choice.get("temperatures") if isinstance(choice, Mapping) else None
        if not isinstance(asked, list):
            continue
        for at in temperatures:
            if at in asked:
                continue
            loss = _figure(fields[name], "temperatures", f"{at:g}", "mean")
            known = "nothing was measured" if loss is None else f"it loses a mean T^2 KL of {loss:.2g}"
            listed = ", ".join(f"{each:g}" for each in asked if isinstance(each, int | float))
            found.append(
                f"the codec of {name} was chosen for temperature {listed}; at {at:g}, where the method learns, {known}."
            )
    return found


def _figure(info: FieldInfo, *path: str) -> float | None:
    """Return a number that the book measured, if it has it: an edition may hold anything under this name."""
    found: Any = info.measured
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None


def _lost(info: FieldInfo, temperature: float) -> list[str]:
    at = f"{temperature:g}"
    error = _figure(info, "temperatures", at, "gradient_error")
    if error is not None:
        what = "noise" if info.linear else "error"
        return [f"{what} of its gradient at temperature {at}, as measured while making: {error:.2g}"]
    kept = _figure(info, "unpromised", at, "kept_mass")
    return [] if kept is None else [f"mass that it keeps at temperature {at}, as measured while making: {kept:.3g}"]


def check_views(needs: Needs, n_views: int, method: str, *, books: Sequence[Book] = (), where: str = "") -> None:
    """Refuse a method that wants more views of a sample than there are.

    Args:
        needs: What the method asks for.
        n_views: Views of a sample that the student would see, at least 1.
        method: Name of the method, for the error.
        books: Whose views they are; empty where views are drawn as they are asked for.
        where: What would learn, for the error.

    Raises:
        ConfigError: with the command or the option that gives more views.

    >>> check_views(Needs(views_per_sample=2), 1, "mlkd")
    Traceback (most recent call last):
    ...
    bookkd.core.errors.ConfigError: Expected `n_views` to be at least 2 for method mlkd, got 1. \
Pass --views NAME --views.n_views 2.
    """
    wanted, option = needs.views_per_sample, f"--views.n_views {needs.views_per_sample}"
    wish = f"at least {wanted} for method {method}"
    for book in books:
        if book.n_views < wanted:
            # The transform "none" draws the same view each time, so that more of them are of another.
            named = "--views NAME " if book.plan.views.get("transform") == "none" else ""
            do = f"Make a book of more views: bookkd make ... {named}{option}."
            place = f"{where}, {book.path}" if where else str(book.path)
            raise ConfigError(expected("n_views", wish, book.n_views, where=place, do=do))
    if n_views < wanted:
        raise ConfigError(expected("n_views", wish, n_views, where=where, do=f"Pass --views NAME {option}."))
