"""The error tree: one condition, one type; each type is also the builtin that a caller would catch.

Every message has one form, made by `expected`:

    Expected `temperature` to be a number above 0, got -1 (method vanilla-kd). Pass --method.temperature 4.
"""

from __future__ import annotations

__all__ = [
    "BookCorruptError",
    "BookFormatError",
    "BookKDError",
    "BookLockedError",
    "BookMismatchError",
    "BookMissingError",
    "BookUnfinishedError",
    "BookVersionError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DeviceError",
    "FidelityError",
    "MissingExtraError",
    "StorageError",
    "TeacherOutputError",
    "UnknownNameError",
    "ViewMismatchError",
    "WeightsError",
    "expected",
]


class BookKDError(Exception):
    """Base of everything that this package raises on purpose."""


class ConfigError(BookKDError, ValueError):
    """An option or argument is outside its range, or two of them contradict each other."""


class UnknownNameError(BookKDError, LookupError):
    """A name is in no table; the message lists the nearest names."""


class MissingExtraError(BookKDError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class BookMissingError(BookKDError, FileNotFoundError):
    """There is no book, edition or shard at the path."""


class BookFormatError(BookKDError, ValueError):
    """A file of the book is not what the format says."""


class BookVersionError(BookFormatError):
    """The book was written in a newer version of the format."""


class BookCorruptError(BookFormatError):
    """The bytes differ from their recorded hash or length."""


class BookUnfinishedError(BookKDError, RuntimeError):
    """The book has a plan but no edition: `make` has not finished."""


class BookMismatchError(BookKDError, ValueError):
    """The book is about another teacher, data set, recipe or codec than the one given."""


class BookLockedError(BookKDError, BlockingIOError):
    """Another process is writing this book, or training in this folder."""


class ViewMismatchError(BookKDError, ValueError):
    """The replayed view is not the input that the teacher saw."""


class FidelityError(BookKDError, ValueError):
    """A codec cannot honour the temperature or loss that is asked of it."""


class TeacherOutputError(BookKDError, ValueError):
    """The teacher said something that cannot be stored: NaN, infinity, another width."""


class DataError(BookKDError, ValueError):
    """A data set, label or sample is not what the task needs."""


class WeightsError(BookKDError, ValueError):
    """A weights file cannot be read, or does not fit the network."""


class CheckpointError(BookKDError, ValueError):
    """A checkpoint cannot be read, or belongs to another run."""


class DeviceError(BookKDError, RuntimeError):
    """The device asked for is not there."""


class StorageError(BookKDError, OSError):
    """The disk is full, read-only or failing; what was committed before is whole."""


def expected(what: str, to_be: str, got: object, *, where: str = "", do: str = "") -> str:
    """Build the one-line message that every error of this package carries.

    Args:
        what: Name of the argument, option, file or field.
        to_be: What would have been accepted.
        got: What came; shown shortened.
        where: Method, file, sample or option it belongs to.
        do: What the reader can do about it, as a sentence.

    Returns:
        One line without a line break.

    >>> expected("n_views", "at least 1", 0, where="views", do="Pass --views.n_views 16.")
    'Expected `n_views` to be at least 1, got 0 (views). Pass --views.n_views 16.'
    """
    shown = got if isinstance(got, str) and " " in got else repr(got)
    shown = " ".join(str(shown).split())
    if len(shown) > 200:
        shown = shown[:197] + "..."
    place = f" ({where})" if where else ""
    advice = f" {do}" if do else ""
    return " ".join(f"Expected `{what}` to be {to_be}, got {shown}{place}.{advice}".split())
