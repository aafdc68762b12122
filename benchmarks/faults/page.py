"""The page `docs/reliability.md` from the results that `run.py --keep` left in `benchmarks/results/faults/`.

python benchmarks/faults/page.py
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "benchmarks" / "results" / "faults"
PAGE = ROOT / "docs" / "reliability.md"


def kept() -> dict[str, dict[str, Any]]:
    """Return the results by experiment."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(KEPT.glob("*.json"))}


def page() -> str:
    """Return the page."""
    found = kept()
    sections = {"kills": kills, "storage": storage, "damage": damage, "fuzzing": fuzzing}
    return "\n".join([HEAD, *(write(found[name]) for name, write in sections.items() if name in found), PROMISE])


def findings(lines: list[str], none: str) -> str:
    """Return what was found, at most ten lines of it."""
    if not lines:
        return none
    more = [f"- and {len(lines) - 10} more"] if len(lines) > 10 else []
    return "\n".join([f"**{len(lines)} found:**", "", *(f"- {line}" for line in lines[:10]), *more])


def ran(result: Mapping[str, Any]) -> str:
    """Return on what, and how much of the experiment."""
    machine = result["machine"]
    part = "" if result["share"] == 1 else f" Only {100 * result['share']:g} % of the experiment was run."
    return f"{machine['system']}, Python {machine['python']}, numpy {machine['numpy']}.{part}"


def kills(result: Mapping[str, Any]) -> str:
    """Return the section of kills."""
    lines = [
        "| work | ms | files | killed at random moments | before every call | wrong |",
        "|---|---|---|---|---|---|",
    ]
    wrong: list[str] = []
    total = Counter()  # type: ignore[var-annotated]
    refused = 0
    for name, work in result["found"].items():
        random, calls = work["random"], work["every_call"]
        mine = random["wrong"] + calls["wrong"]
        wrong += [f"{name}: {line}" for line in mine]
        total += Counter(random=random["killed"], calls=calls["killed"])
        refused += random.get("others_refused", 0) + calls.get("others_refused", 0)
        lines.append(
            f"| {name} | {work['milliseconds']:.0f} | {work['files']} | {random['killed']:,} | {calls['killed']:,} | {len(mine)} |"
        )
    said = findings(
        wrong, "Every book came out as that of an undisturbed run, to the byte; every finished book stayed readable."
    )
    if refused:
        said += f" {refused:,} times what was begun from books was offered others of the same plan and other records, and refused them."
    return KILLS.format(table="\n".join(lines), found=said, ran=ran(result), **total)


def storage(result: Mapping[str, Any]) -> str:
    """Return the section of disks, permissions, writers, locks and clocks."""
    lines = ["| what | how | times | wrong |", "|---|---|---|---|"]
    wrong: list[str] = []
    for name, each in result["found"].items():
        wrong += [f"{name}: {line}" for line in each["wrong"]]
        lines.append(f"| {name} | {each['how']} | {each['runs']:,} | {len(each['wrong'])} |")
    said = findings(
        wrong, "Every refusal was one line that says what to do, and every book was whole when it was gone on with."
    )
    return STORAGE.format(table="\n".join(lines), found=said, ran=ran(result))


def damage(result: Mapping[str, Any]) -> str:
    """Return the section of faults in finished books."""
    found = result["found"]
    lines = [
        "| fault | times | named at its place | by the hash of the whole file alone | proven harmless |",
        "|---|---|---|---|---|",
    ]
    for kind, counts in found["kinds"].items():
        cells = (counts.get(name, 0) for name in ("named", "named by the whole file alone", "harmless"))
        lines.append(f"| {kind} | {sum(counts.values()):,} | " + " | ".join(f"{count:,}" for count in cells) + " |")
    files = ", ".join(f"{name} {count:,}" for name, count in sorted(found["files"].items(), key=lambda each: -each[1]))
    reasons = "\n".join(
        f"- {reason}: {count:,}." for reason, count in sorted(found["harmless"].items(), key=lambda each: -each[1])
    )
    said = findings(
        found["wrong"], "None was silent, none named at another place, none a crash, none took longer than 20 s."
    )
    return DAMAGE.format(
        faults=found["faults"],
        table="\n".join(lines),
        files=files,
        reasons=reasons,
        blocks=found["blocks"],
        found=said,
        ran=ran(result),
    )


def fuzzing(result: Mapping[str, Any]) -> str:
    """Return the section of fuzzing."""
    found = result["found"]
    lines = ["| in place of | inputs |", "|---|---|"]
    names = {"view": "view file", "book": "any file of a whole book"}
    names |= {
        kind: f"files of a folder, then `{kind}`"
        for kind in ("make", "grow", "repair", "repair --accept", "compact", "stats")
    }
    written = any(name.startswith("files of a folder") and kind in found["inputs"] for kind, name in names.items())
    lines += [f"| {names.get(kind, kind)} | {count:,} |" for kind, count in sorted(found["inputs"].items())]
    refused = ", ".join(
        f"`{name}` {count:,}" for name, count in sorted(found["refused"].items(), key=lambda each: -each[1])
    )
    said = findings(found["wrong"], "No other error, no hang, and no memory beyond the bound.")
    return FUZZING.format(
        by=found["by"],
        minutes=found["seconds"] / 60,
        inputs=sum(found["inputs"].values()),
        table="\n".join(lines),
        refused=refused,
        read=found["read"],
        found=said,
        folders=FOLDERS if written else "",
        ran=ran(result),
    )


HEAD = """# Reliability

What was done to books, how often, and what came of it. The scripts are `benchmarks/faults/`; this page is written by
`benchmarks/faults/page.py` from the results that `python benchmarks/faults/run.py --keep` leaves, with fixed seeds.
[The format](book-format.md) lists what happens for each kind of abuse, each with a test. The books here are small: a hundred samples,
five teachers with one codec each (`dense`, `int8`, `top_k`, `sampled`, `argmax`), features, probes, keys.

What the experiments and the tests beside them found is mended, each with a test that failed before:

- JSON of 16 MiB, nothing but `{}`, took 900 MiB and half a minute: values are counted before any is made.
- A disk that filled up in the middle of a shard that was joined or repaired, and an empty shard whose manifests said that it was, ended in
  errors of Python's.
- A writer killed between its last file and the end of its lock left the lock and a temporary file, which the same command then left, too.
- A record that repair was told to take otherwise than it was could be half the old one and half the new one.
- A folder that somebody laid out, with links in place of the lock, of a view's folder or of statistics, had files outside of it overwritten;
  repair took for ever where there were countless ways to put a view together.
- Statistics that were killed left a temporary file, which the next run left, too.
- Members of a book that draw (codec `sampled`) were said again with other draws after books had been merged.
"""

KILLS = """## Killed at any moment

Forked children are ended by SIGKILL: at random moments, spread over the whole of the work, and once before each sync,
rename, link, deletion and opening that the disk sees, those of the lock among them. What was a finished book before has to be readable at
once, and every file that was there, of sources too, has to be what it was or what it becomes. Then the same
command is run again. Its result has to have the content digest, the files and the bytes of a run that nobody disturbed (of an edition,
all but what the work cost): no unit lost, none doubled, nothing left over.

{table}

{random:,} kills at random moments and {calls:,} before calls. {found}

{ran} Kills of a process, not of the machine: that what is synced survives a power cut is for the disk to keep.
"""

STORAGE = """## Disks, permissions, writers, locks, clocks

{table}

After each the work was done again where it could be, and held against an undisturbed one. {found}

{ran}
"""

DAMAGE = """## Faults in finished books

{faults:,} random faults, each in a fresh copy of a book: one of a single edition, one grown to a second, one compacted and pruned.
After each `verify` was run and everything read.

{table}

Files: {files}. {blocks:,} times a block was named, and held against the bytes that differ. {found}

What is called harmless changes no record, key or figure that is read, nor the content digest:

{reasons}

{ran}
"""

FUZZING = """## Fuzzing

{by}, {minutes:.0f} minutes, {inputs:,} inputs: bytes of any kind, edited values, and flipped bytes, in place of

{table}

with digests that were made to fit, as somebody could who may write the whole book, but for whole books. Allowed are errors of
`bookkd.core.errors` in one line, 5 s of a processor, and memory of twice the file and 64 MiB (tracemalloc).{folders}
Refused: {refused}; read: {read:,}. {found} In continuous integration Hypothesis does the same for a moment.

{ran}
"""

FOLDERS = """ Folders have files gone, other or half, links, pipes and second names in their place, and names taken that a writer
will use; nothing outside of the folder may change."""

PROMISE = """## Out of promise

- A file that is cut *while* a reader has it mapped: the system ends the process. Finished files are never changed in place.
- Forgery. xxh3 finds accidents; whoever may write the book may renew every digest. Reading such a book is safe, believing it is not.
- Writers on several machines over one network folder: record locks of the system are the guard, and a folder that has none, or a lock
  that another host left behind, is for people to judge. The last step, the edition, is created only if absent.
- An edition that is gone together with its name: the one before is the book then. Whether there was a later one, a folder cannot know.
- A plan that is lost stands nowhere else, and keys stand with the data: keep a copy of these small files.
"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
