"""From folders to a report in one of its formats."""

from __future__ import annotations

from bookkd.core.names import look_up
from bookkd.report.numbers import Numbers

__all__ = ["FORMATS", "render"]

FORMATS = {
    "html": "bookkd.report.page:to_html",
    "md": "bookkd.report.text:to_markdown",
    "json": "bookkd.report.text:to_json",
    "csv": "bookkd.report.text:to_csv",
}
"""Format -> the function that writes numbers in it; all write the same numbers."""


def render(numbers: Numbers, form: str = "html") -> str:
    """Return a report.

    Args:
        numbers: As `numbers_of` gives them.
        form: One of `FORMATS`; "csv" holds the table of arms alone.

    Raises:
        UnknownNameError: for another format.
        MissingExtraError: for the page, where the extra `report` is not installed.
    """
    text: str = look_up(form, FORMATS, "format")(numbers)
    return text
