"""Find the verb, run it, and turn what goes wrong into one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bookkd import __version__
from bookkd.core.errors import BookKDError, UnknownNameError
from bookkd.core.memory import keep_freed_memory
from bookkd.core.names import choose, look_up

__all__ = ["VERBS", "main"]

VERBS = {
    "demo": "bookkd.cli.demo:VERB",
    "make": "bookkd.cli.make:VERB",
    "learn": "bookkd.cli.learn:VERB",
    "chain": "bookkd.cli.chain:VERB",
    "merge": "bookkd.cli.merge:VERB",
    "plan": "bookkd.cli.plan:VERB",
    "evaluate": "bookkd.cli.evaluate:VERB",
    "compare": "bookkd.cli.compare:VERB",
    "report": "bookkd.cli.report:VERB",
    "inspect": "bookkd.cli.inspect:VERB",
    "verify": "bookkd.cli.verify:VERB",
    "compact": "bookkd.cli.compact:VERB",
    "repair": "bookkd.cli.repair:VERB",
    "copy": "bookkd.cli.copy:VERB",
    "extract": "bookkd.cli.extract:VERB",
    "stats": "bookkd.cli.stats:VERB",
    "query": "bookkd.cli.query:VERB",
    "import": "bookkd.cli.import_:VERB",
    "methods": "bookkd.cli.methods:VERB",
    "bench": "bookkd.cli.bench:VERB",
}
"""Verb -> its `Verb`, imported when it is called, since `inspect` and `verify` run where torch is not installed."""

_SUMMARY = {
    "demo": "train a teacher, make a book, train students three ways (two minutes)",
    "make": "write down what a teacher says about every view of a data set",
    "learn": "train a student from a book, a live teacher or labels",
    "chain": "train assistants or generations, each from the book of the one before",
    "merge": "put several books into one, or bake their processed target",
    "plan": "predict time, bytes and break-even from a sample, before anything is paid for",
    "evaluate": "measure a network: accuracy, calibration, agreement, size, speed",
    "compare": "methods x students x books x seeds, with paired statistics; ablations, tuning",
    "report": "one page from the runs of a comparison: words, tables, charts, costs",
    "inspect": "show what a book holds and what it cost",
    "verify": "read a whole book and name every fault",
    "compact": "put the files of each view into one; delete what is superseded",
    "repair": "mend a damaged book: from its own files, and with its teacher",
    "copy": "write a book again, as it is or with another codec",
    "extract": "some classes, samples, views or teachers as a book of their own",
    "stats": "write statistics of every record, for query",
    "query": "ask a book in SQL: disagreement, likely label errors, what is hard",
    "import": "make a book of what others stored: FKD, TinyViT, DistillKit, Megatron, vLLM",
    "methods": "list methods with source, needs and status",
    "bench": "measure the goals of this package on this machine",
}

_INTERRUPTED = 130


def usage() -> str:
    """Return the overview of all verbs."""
    lines = [f"  {verb:<10}{text}" for verb, text in _SUMMARY.items()]
    return "\n".join(
        [
            "usage: bookkd VERB [options]",
            "",
            "Knowledge distillation from books: the teacher speaks once, any number of students learn.",
            "",
            *lines,
            "",
            "Start with: bookkd demo",
            "Options of a verb: bookkd VERB --help",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        argv: Arguments without the program's name; those of the process where None.

    Returns:
        Exit code: 0 done, 1 a fault was found (`verify`), 2 an error that the message explains, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())  # noqa: T201
        return 0
    if arguments[0] in ("-V", "--version", "version"):
        print(f"bookkd {__version__}")  # noqa: T201
        return 0
    verb = arguments[0]
    keep_freed_memory()
    try:
        choose(verb, VERBS, "verb")
        code: int = look_up(verb, VERBS, "verb").run(arguments[1:])
    except UnknownNameError as error:
        return _fail(f"{error}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "bookkd":
            raise
        return _fail(f"This needs the package {package!r}, which is not installed. Run: pip install 'bookkd[train]'")
    except BookKDError as error:
        return _fail(_one_line(error))
    except KeyboardInterrupt:
        print("bookkd: interrupted; run the same command again to go on", file=sys.stderr)  # noqa: T201
        return _INTERRUPTED
    except BrokenPipeError:
        return 0
    return code


def _one_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if text.startswith("Caught ") and "DataLoader worker process" in text:
        # The workers of a loader send their traceback along as text; what was said stands at its end.
        text = text.rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")[2]
    return " ".join(text.split())


def _fail(message: str) -> int:
    print(f"bookkd: error: {message}", file=sys.stderr)  # noqa: T201
    return 2
