"""Messages that a page quotes are messages of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SPAN = re.compile(r"(?<!`)(?:``\s?(?P<two>.+?)\s?``|`(?P<one>[^`\n]+)`)(?!`)")
ANY = "\0"  # what a placeholder of the code says, and "..." on a page


def text_of(node: ast.AST) -> str:
    """Return a literal text of the code with `ANY` for each placeholder, and for all that is no literal."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ANY
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return ANY


def messages():
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "expected":
                what, to_be = (text_of(each) for each in node.args[:2])
                yield f"Expected `{what}` to be {to_be}, got {ANY}"
            elif isinstance(node, ast.JoinedStr | ast.Constant):
                yield text_of(node)


def quotes(page: Path):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = (match["two"] or match["one"] for match in SPAN.finditer(text))
    # With a <name> in it, it is the form of all messages and not one of them.
    return [each for each in found if re.match(r"(Expected|Unknown) ", each) and "<" not in each]


def is_said(quote: str, said: list[str]) -> bool:
    form = re.compile(".*".join(re.escape(part) for part in quote.split("...")), flags=re.S)
    return any(form.search(each) for each in said)


QUOTES = [(page, quote) for page in PAGES for quote in quotes(page)]


@pytest.fixture(scope="module")
def said() -> list[str]:
    return [each for each in messages() if each.startswith(("Expected", "Unknown"))]


def test_there_are_quotes_and_messages(said):
    assert len(QUOTES) >= 3
    assert len(said) > 200


@pytest.mark.parametrize(("page", "quote"), QUOTES, ids=[quote for _, quote in QUOTES])
def test_a_quoted_message_is_one_of_the_codes(page: Path, quote: str, said):
    assert is_said(quote, said), f"{page.relative_to(ROOT)} quotes a message that no code says: {quote}"


def test_an_invented_message_is_found_out(said):
    assert not is_said("Expected ... probe of the moon", said)
