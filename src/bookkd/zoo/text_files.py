"""Texts from plain files and a `tokenizer.json` beside them: documents for language models, texts with classes, translations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bookkd.core.errors import ConfigError, DataError, expected
from bookkd.core.names import choose
from bookkd.zoo.language import pack
from bookkd.zoo.pairs import PairDataset, read_pairs
from bookkd.zoo.sequences import TokenDataset
from bookkd.zoo.texts import TextDataset
from bookkd.zoo.transformers_files import load_tokenizer, plain_tokenizer, special_tokens, tokenizer_digest

__all__ = ["pairs", "text", "text_classes"]

_SEPARATORS = ("<|endoftext|>", "<doc>", "</s>", "<eos>", "[SEP]", "<s>")
"""Tokens that tokenizers use between documents, in the order in which they are looked for."""


def text(root: Path, split: str, *, length: int = 128, separator: str = "", end: str = "") -> TokenDataset:
    """Read documents and lay them end to end, see `bookkd.zoo.pack`.

    Args:
        root: Folder with `tokenizer.json`, and the documents: one a line of `SPLIT.txt`, or one a file `*.txt` below `SPLIT/`.
        split: Which of them.
        length: Tokens of a sequence.
        separator: Token in front of each document; by default the first of the usual ones that the tokenizer has.
        end: Token behind each document, which is learnt; none by default, and nobody learns to end.

    Raises:
        DataError: if there are no documents.
        ConfigError: for a token that the tokenizer does not have.
    """
    tokenizer = load_tokenizer(_there(root))
    found = [each for each in _documents(Path(root), split) if each.strip()]
    if not found:
        wish = f"documents: lines of {split}.txt, or files {split}/*.txt"
        raise DataError(expected("data.root", wish, "none", where=str(root), do="Check --data.split."))
    rows = [each.ids for each in plain_tokenizer(tokenizer).encode_batch(found, add_special_tokens=False)]
    return pack(
        f"text {split}",
        rows,
        length=length,
        separator=_separator(tokenizer, separator, str(root)),
        end=_named(tokenizer, end, "end", str(root)) if end else None,
        vocabulary=tokenizer.get_vocab_size(),
        tokenizer=tokenizer_digest(tokenizer),
        drop_last=sum(len(row) + 1 + bool(end) for row in rows) >= length,
        control=special_tokens(tokenizer),
    )


def text_classes(root: Path, split: str, *, max_length: int = 128) -> TextDataset:
    """Read texts, one a file `SPLIT/CLASS/*.txt`; the classes are those of the folders, in their order by name.

    Args:
        root: Folder with `tokenizer.json` and the splits.
        split: Which of them.
        max_length: Tokens that are kept of a text.

    Raises:
        DataError: if there are no texts, a class without any, or a text without a token.
    """
    tokenizer, folder = load_tokenizer(_there(root)), Path(root) / split
    names = sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []
    files = [(path, label) for label, name in enumerate(names) for path in sorted((folder / name).rglob("*.txt"))]
    if not files:
        wish = f"texts {split}/CLASS/*.txt"
        raise DataError(expected("data.root", wish, "none", where=str(root), do="Check --data.split."))
    labels = [label for _, label in files]
    for label, name in enumerate(names):
        if label not in labels:
            do = "Delete the folder if it is no class: the classes of all splits are numbered by their folders."
            raise DataError(
                expected("class", "a folder with at least one *.txt", "none", where=str(folder / name), do=do)
            )
    texts = [_read(path) for path, _ in files]
    for (path, _), found in zip(files, texts, strict=True):
        if not found.strip():
            raise DataError(
                expected("text", "at least one word", "an empty file", where=str(path), do="Delete the file.")
            )
    return TextDataset.of(f"text {split}", texts, labels, names, tokenizer=tokenizer, max_length=max_length)


def pairs(
    root: Path,
    split: str,
    *,
    source: str,
    target: str,
    most: int | None = None,
    drop: bool = False,
    begin: str = "<s>",
    end: str = "</s>",
    pad: str = "<pad>",
) -> PairDataset:
    """Read sentences and their translations, line by line, see `bookkd.zoo.read_pairs`.

    Args:
        root: Folder with `SPLIT.SOURCE` and `SPLIT.TARGET`, plain or packed (`.gz`), and `tokenizer.json` of both sides, or that of the
            sources and `tokenizer.TARGET.json` of the targets.
        split: Which of them.
        source: Ending of the sources, such as "en".
        target: Ending of the targets, such as "de".
        most: Most tokens of a side.
        drop: Leave longer and empty pairs out, in place of an error.
        begin: Token that begins a translation.
        end: Token that ends either side.
        pad: Token that sources are filled up with.

    Raises:
        DataError: if there are no such files, or they do not fit each other.
    """
    files, root = [], _there(root)
    for side in (source, target):
        found = [path for path in (Path(root) / f"{split}.{side}", Path(root) / f"{split}.{side}.gz") if path.is_file()]
        if not found:
            wish = f"sentences {split}.{side} or {split}.{side}.gz"
            raise DataError(expected("data.root", wish, "none", where=str(root), do="Check --data.split."))
        files.append(found[0])
    other = Path(root) / f"tokenizer.{target}.json"
    theirs = load_tokenizer(root, other.name) if other.is_file() else None
    options: dict[str, Any] = {"begin": begin, "end": end, "pad": pad, "most": most, "drop": drop}
    return read_pairs(f"pairs {split}", files[0], files[1], load_tokenizer(root), theirs, **options)


def _there(root: Path) -> Path:
    if not Path(root).is_dir():
        raise DataError(expected("data.root", "a folder with the texts and tokenizer.json", "none", where=str(root)))
    return Path(root)


def _documents(root: Path, split: str) -> list[str]:
    lines = root / f"{split}.txt"
    if lines.is_file():
        return _read(lines).splitlines()
    return [_read(path) for path in sorted((root / split).rglob("*.txt"))]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        do = "Convert it, for instance by iconv -t UTF-8."
        raise DataError(expected("text", "UTF-8", str(error), where=str(path), do=do)) from error


def _named(tokenizer: Any, token: str, what: str, where: str) -> int:
    return int(tokenizer.token_to_id(choose(token, sorted(tokenizer.get_vocab()), what, where=where)))


def _separator(tokenizer: Any, given: str, where: str) -> int:
    if given:
        return _named(tokenizer, given, "separator", where)
    found = [tokenizer.token_to_id(each) for each in _SEPARATORS]
    known = [each for each in found if each is not None]
    if not known:
        do = """Name the token: --data.args '{"separator": "TOKEN"}'."""
        raise ConfigError(expected("separator", f"one of {', '.join(_SEPARATORS)}", "none of them", where=where, do=do))
    return int(known[0])
