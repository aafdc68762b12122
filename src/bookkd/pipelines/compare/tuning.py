"""Choosing values for an arm by a search on the validation samples, which is gone on with where it was ended."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bookkd.core.check import at_least
from bookkd.core.errors import BookKDError, ConfigError, DataError, expected
from bookkd.core.files import write_atomic
from bookkd.core.jsonio import parse, pretty, read
from bookkd.core.names import require
from bookkd.learning.folder import plain
from bookkd.pipelines.compare.arms import Arm
from bookkd.pipelines.compare.folders import differences
from bookkd.pipelines.compare.spaces import Space, distribution, with_values

__all__ = ["Trial", "Tuned", "tune"]

Score = Callable[[Arm, Path], float]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """One try.

    Args:
        values: Option -> value.
        score: The primary metric on the validation samples; None where the try failed.
        error: What went wrong, in one line; empty for nothing.
    """

    values: Mapping[str, Any]
    score: float | None
    error: str = ""


@dataclass(frozen=True)
class Tuned:
    """What a search gave.

    Args:
        arm: The arm with the best values, which its name says; as it was where no try succeeded.
        best: The best try; None where none succeeded.
        trials: All tries, in order.
    """

    arm: Arm
    best: Trial | None
    trials: tuple[Trial, ...] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a result file."""
        return plain({"arm": self.arm.name, "best": self.best, "trials": self.trials})  # type: ignore[no-any-return]


def tune(
    arm: Arm,
    spaces: Sequence[Space],
    score: Score,
    folder: str | Path,
    *,
    trials: int,
    seed: int,
    about: Mapping[str, Any] | None = None,
    lower_is_better: bool = False,
    say: Say = print,
) -> Tuned:
    """Search for the values of `spaces` that score best, by optuna's tree of Parzen estimators.

    The first try is the arm as it is, where that lies in the spaces. Tries are kept as JSON lines in `folder`, and the n-th
    depends on those before it and `seed` alone, so that a search which was killed goes on to the end it would have had. Values
    that were tried before are not tried again.

    Args:
        arm: What is tuned.
        spaces: Where to look; the arm has all of the options, see `fitting`.
        score: Called with an arm and a folder for its files; returns the metric on samples that nothing is reported on.
        folder: Of the search.
        trials: Number of tries.
        seed: Of the search.
        about: All that scores depend on but the values that are searched, as JSON values; the arm where None.
        lower_is_better: Whether the score is an error.
        say: Called with a line for every try.

    Raises:
        ConfigError: if the arm lacks an option, a value is out of its range, or `folder` holds another search.
        MissingExtraError: without optuna.
    """
    at_least(trials, 1, "trials", where="compare")
    optuna = require("optuna", "tune")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranges = {space.option: distribution(optuna, arm, space) for space in spaces}
    path = Path(folder)
    _claim(
        path,
        {
            **(plain(arm) if about is None else about),
            "spaces": [asdict(space) for space in spaces],
            "search_seed": seed,
        },
    )
    known = _read(path)
    for number in range(len(known), trials):
        values = _ask(optuna, arm, ranges, known, seed + number, "minimize" if lower_is_better else "maximize")
        trial = _try(arm, values, score, path / f"trial-{number:03d}", known)
        known.append(trial)
        write_atomic(path / "trials.jsonl", b"".join(json.dumps(plain(each)).encode() + b"\n" for each in known))
        say(f"tuning {arm.name} [{number + 1}/{trials}] {_told(trial)}")
    good = [trial for trial in known[:trials] if trial.score is not None]
    sign = -1 if lower_is_better else 1
    best = max(good, key=lambda trial: sign * (trial.score or 0.0), default=None)
    chosen = arm if best is None else _named(with_values(arm, best.values), best.values)
    return Tuned(chosen, best, tuple(known[:trials]))


def _told(trial: Trial) -> str:
    """Return the values of a try and how it ended, in words."""
    shown = ", ".join(
        f"{option} {value:.4g}" if isinstance(value, float) else f"{option} {value}"
        for option, value in trial.values.items()
    )
    ended = f"failed: {trial.error}" if trial.score is None else f"{trial.score:.4f} on validation"
    return f"{shown}: {ended}"


def _named(arm: Arm, values: Mapping[str, Any]) -> Arm:
    """Return the arm with the values of its training in its name; those of its method are in it anyway."""
    words = [f"{option.partition('.')[2]}={value}" for option, value in values.items() if _root(option) == "training"]
    return replace(arm, override=" ".join([*([arm.override] if arm.override else []), *words]))


def _root(option: str) -> str:
    return option.partition(".")[0]


def _try(arm: Arm, values: dict[str, Any], score: Score, folder: Path, known: Sequence[Trial]) -> Trial:
    same = next((trial for trial in known if dict(trial.values) == values), None)
    if same is not None:
        return same
    try:
        found = score(with_values(arm, values), folder)
        if not math.isfinite(found):
            raise DataError(expected("score", "a finite number", found, where=arm.name))
        return Trial(values, found)
    except Exception as error:
        said = " ".join(str(error).split()) or "no message"
        return Trial(values, None, said if isinstance(error, BookKDError) else f"{type(error).__name__}: {said}")


def _ask(
    optuna: Any, arm: Arm, ranges: Mapping[str, Any], known: Sequence[Trial], seed: int, direction: str
) -> dict[str, Any]:
    """Return the values of the next try; a fresh sampler each time, so that nothing but what is on disk counts."""
    study = optuna.create_study(direction=direction, sampler=optuna.samplers.TPESampler(seed=seed))
    states = optuna.trial.TrialState
    for trial in known:
        state = states.FAIL if trial.score is None else states.COMPLETE
        made = {"params": dict(trial.values), "distributions": dict(ranges), "value": trial.score, "state": state}
        study.add_trial(optuna.trial.create_trial(**made))
    if not known:
        own = {option: _own(arm, option) for option in ranges}
        if all(_inside(found, own[option]) for option, found in ranges.items()):
            study.enqueue_trial(own)
    asked = study.ask(dict(ranges)).params
    return {option: _short(asked[option], ranges[option]) for option in ranges}


def _short(value: Any, found: Any) -> Any:
    """Return a number with four digits, so that names of arms say it whole."""
    if not isinstance(value, float) or hasattr(found, "choices"):
        return value
    return min(max(float(f"{value:.4g}"), found.low), found.high)


def _own(arm: Arm, option: str) -> Any:
    found = arm.method.build() if _root(option) == "method" else arm.training
    return getattr(found, option.partition(".")[2])


def _inside(found: Any, value: Any) -> bool:
    if hasattr(found, "choices"):
        return any(type(each) is type(value) and each == value for each in found.choices)
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(found.low <= value <= found.high)


def _claim(folder: Path, search: dict[str, Any]) -> None:
    """Write what is searched, or refuse a folder that holds another search."""
    path = folder / "search.json"
    mine = parse(pretty(search), "search")
    if not path.exists():
        write_atomic(path, pretty(search))
        return
    try:
        found = read(path, str(path))
    except (BookKDError, OSError):
        found = {}
    differing = differences(found, mine)
    if differing:
        do = "Choose another --out, or the same sweep and spaces as before."
        got = f"other {', '.join(differing[:4])}"
        raise ConfigError(expected("tune", f"the search that {folder} holds", got, do=do))


def _read(folder: Path) -> list[Trial]:
    path = folder / "trials.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(Trial(**parse(line, "a try")))
        except (BookKDError, TypeError) as error:
            do = f"Delete {folder} to search again."
            raise DataError(expected("try", "whole", f"line {number} of {path}, damaged", do=do)) from error
    return found
