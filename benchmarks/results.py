"""The page `docs/results.md` from the summaries that `real.py` and `camvid.py` left in `benchmarks/results/`.

python benchmarks/results.py            # writes the page
python benchmarks/results.py RUNS       # takes new summaries from the runs of real.py first
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import camvid

from bookkd.evaluation import Difference, difference_of
from bookkd.evaluation.paired import EQUAL

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
KEPT = HERE / "results"
ARM_KEYS = ("arm", "method", "source", "override", "accuracy", "nll", "ece")
TEACHER_KEYS = ("name", "parameters", "accuracy", "split")
SAME = "the same in every seed, which says nothing about noise"
GAIN, NOISE, NONE, LOSS = "more than the noise", "inside the noise", "did not appear", "worse by more than the noise"


def take(runs: Path) -> None:
    """Copy what the page needs of the summaries below `runs`; a sweep that has none yet leaves what was kept as it is."""
    KEPT.mkdir(exist_ok=True)
    for name in SECTIONS:
        path = runs / name / "summary.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            kept = {key: found.get(key) for key in ("seeds", "ledger")}
            kept["arms"] = [{key: arm[key] for key in ARM_KEYS} for arm in found["arms"]]
            kept["teachers"] = teachers_of(runs / name)
            text = json.dumps(kept, indent=1, sort_keys=True) + "\n"
            (KEPT / f"{name.replace('/', '-')}.json").write_text(text, encoding="utf-8")
    subsets = {name: subset_of(runs / "cifar10-features" / "classes" / name) for name in SUBSETS}
    if all(subsets.values()):
        (KEPT / CLASSES).write_text(json.dumps(subsets, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    gates = gates_of(runs / "cifar10-features" / "gates")
    if gates:
        (KEPT / GATES).write_text(json.dumps(gates, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def subset_of(sweep: Path) -> dict[str, Any]:
    """Return who comes to which accuracy on some classes, by seed: the teacher, generalists, and the arms of the sweep; empty without them."""
    if not (sweep / "summary.json").exists() or not (sweep / "others.json").exists():
        return {}
    others = json.loads((sweep / "others.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {"classes": others["teacher"]["class_names"], "by_seed": {}}
    for run, measured in others.items():
        arm, seed = ("teacher", "0") if run == "teacher" else Path(run).parts[-2:]
        who = "teacher" if run == "teacher" else f"generalist, {arm.partition('-resnet8')[0]}"
        found["by_seed"].setdefault(who, {})[seed.removeprefix("seed-")] = measured["metrics"]["accuracy"]["value"]
    for arm in json.loads((sweep / "summary.json").read_text(encoding="utf-8"))["arms"]:
        found["by_seed"][f"specialist, {arm['method']}"] = arm["accuracy"]["by_seed"]
    return found


def gates_of(sweep: Path) -> dict[str, Any]:
    """Return whom trees learnt from -> "accuracy" and each layer -> seed -> accuracy, and spread of the gates; empty without runs."""
    found: dict[str, Any] = {}
    for path in sorted(sweep.glob("runs/*/seed-*/record.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        spreads = {
            table["layer"]: table["spread"] for table in record["shaping"]["gates"]["tables"] if not table["derived"]
        }
        method = record["method"]
        who = "teacher" if method["kd_weight"] else "smoothed labels" if method["label_smoothing"] else "labels"
        of_arm = found.setdefault(who, {})
        for what, value in {"accuracy": record["metrics"]["accuracy"]["value"], **spreads}.items():
            of_arm.setdefault(what, {})[str(record["seed"])] = value
    return found


def teachers_of(sweep: Path) -> list[dict[str, Any]]:
    """Return the teachers of all runs of a sweep, each once, the largest first."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(sweep.glob("runs/*/seed-*/record.json"))]
    known = {teacher["digest"]: teacher for record in records for teacher in record["teachers"]}
    kept = [{key: teacher[key] for key in TEACHER_KEYS} for teacher in known.values()]
    return sorted(kept, key=lambda teacher: (-teacher["parameters"], -teacher["accuracy"]))


def page() -> str:
    """Return the page: one section for each sweep that was kept."""
    parts = [HEAD]
    for name, text in SECTIONS.items():
        path = KEPT / f"{name.replace('/', '-')}.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            parts.append(
                text.format(
                    seeds=len(found["seeds"]),
                    arms=arms_table(found),
                    said=verdicts(found),
                    parts=parts_table(found),
                    cost=cost(found),
                    teachers=teachers_table(found),
                )
            )
    if (KEPT / CLASSES).exists():
        parts.append(SPECIALISTS.format(table=classes_table(json.loads((KEPT / CLASSES).read_text(encoding="utf-8")))))
    if (KEPT / GATES).exists():
        found = json.loads((KEPT / GATES).read_text(encoding="utf-8"))
        n = len(found["labels"]["accuracy"])
        seeds = f"{n} seeds" if n > 1 else "one seed, which says nothing about noise"
        parts.append(EXPLAINED.format(seeds=seeds, table=gates_table(found)))
    if (KEPT / CAMVID).exists():
        parts.append(camvid_section(json.loads((KEPT / CAMVID).read_text(encoding="utf-8"))))
    return "\n".join(parts)


def classes_table(subsets: Mapping[str, Any]) -> str:
    """Return the accuracy of everybody on each choice of classes, and what specialists gain over the best generalist."""
    kinds = ("teacher", "generalist", "specialist")
    names = sorted(next(iter(subsets.values()))["by_seed"], key=lambda who: (kinds.index(who.split(",")[0]), who))
    lines = [f"| accuracy % on | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
    for name, found in subsets.items():
        cells = []
        for who in names:
            values = [100 * each for each in found["by_seed"][who].values()]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.2f}{spread}")
        lines.append(f"| {name}: {', '.join(found['classes'])} | {' | '.join(cells)} |")
    lines += ["", "Specialists less the generalist of vanilla-kd, paired over seeds:", ""]
    lines += ["| | points of accuracy (95 %) | that is |", "|---|---|---|"]
    for name, found in subsets.items():
        base = {int(seed): each for seed, each in found["by_seed"]["generalist, vanilla-kd"].items()}
        for who in names:
            if who.startswith("specialist"):
                mine = {int(seed): each for seed, each in found["by_seed"][who].items()}
                gain = difference_of(mine, base, "generalist")
                lines.append(f"| {who}, {name} | {points(gain)} | {verdict(gain)} |")
    return "\n".join(lines)


def gates_table(found: Mapping[str, Any]) -> str:
    """Return accuracy and the spread of each layer's gates by whom the trees learnt from, and what changes it."""
    whos = [who for who in ("labels", "smoothed labels", "teacher") if who in found]
    lines = [f"| | {' | '.join(whos)} | {' | '.join(f'{who} less labels (95 %)' for who in whos[1:])} |"]
    lines.append("|" + "---|" * (2 * len(whos)))
    for what in found["labels"]:
        by_seed = {who: {int(seed): value for seed, value in found[who][what].items()} for who in whos}
        of_spread = what != "accuracy"
        means = [statistics.fmean(by_seed[who].values()) for who in whos]
        cells = [f"{mean:.3f}" if of_spread else f"{100 * mean:.2f} %" for mean in means]
        gaps = [difference_of(by_seed[who], by_seed["labels"], "labels") for who in whos[1:]]
        cells += [shares(gap) if of_spread else points(gap) for gap in gaps]
        lines.append(f"| {f'spread of {what}' if of_spread else what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def camvid_section(found: Mapping[str, Any]) -> str:
    """Return the section of segmentation."""
    options, teacher = found["options"], next(run for run in found["runs"] if run["arm"] == "teacher")
    sizes = teacher["parameters"]
    share = sizes["unet-small"] / sizes["unet-large"]
    size = next(run["book_bytes"] for run in found["runs"] if run.get("book_bytes"))
    by_arm: dict[str, dict[int, float]] = {}
    for run in found["runs"]:
        by_arm.setdefault(run["arm"], {})[int(run["seed"])] = run["metrics"]["miou"]["value"]
    gains = {arm: difference_of(by_arm[arm], by_arm[base], base) for arm, base in camvid.AGAINST.items()}
    clear = [f"{arm} ({words})" for arm, gain in gains.items() if (words := verdict(gain)) in (GAIN, LOSS)]
    said = f"Different from labels alone by more than the noise over seeds: {', '.join(clear) or 'nobody'}."
    return CAMVID_SECTION.format(
        **options, share=share, megabytes=size / 2**20, table=camvid.table(found["runs"]), said=said
    )


def to_labels_only(found: Mapping[str, Any], arm: Mapping[str, Any]) -> Difference | None:
    """Return the paired difference of an arm to labels alone, whatever the sweep held it against."""
    base = next(each for each in found["arms"] if (each["override"] or each["method"]) == "supervised")
    return None if arm is base else difference(arm, base)


def difference(arm: Mapping[str, Any], other: Mapping[str, Any]) -> Difference | None:
    """Return the paired difference of two arms."""
    mine, theirs = ({int(seed): one for seed, one in each["accuracy"]["by_seed"].items()} for each in (arm, other))
    return difference_of(mine, theirs, other["arm"])


def arms_table(found: Mapping[str, Any]) -> str:
    """Return a table of all arms: accuracy, what it gains over labels alone, NLL and ECE."""
    lines = [
        "| method | learns from | accuracy % | to labels only (95 %) | that is | NLL | ECE |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in found["arms"]:
        accuracy, gain = arm["accuracy"], to_labels_only(found, arm)
        spread = "" if accuracy["sd"] is None else f" ± {100 * accuracy['sd']:.2f}"
        lines.append(
            f"| {arm['override'] or arm['method']} | {arm['source'] or 'labels'} | {100 * accuracy['mean']:.2f}{spread} "
            f"| {points(gain)} | {verdict(gain)} | {arm['nll']['mean']:.3f} | {arm['ece']['mean']:.3f} |"
        )
    return "\n".join(lines)


def teachers_table(found: Mapping[str, Any]) -> str:
    """Return who taught."""
    lines = (
        f"| {teacher['name']} | {teacher['parameters']:,} | {100 * teacher['accuracy']:.2f} ({teacher['split']}) |"
        for teacher in found["teachers"]
    )
    return "\n".join(["| teacher | parameters | accuracy % |", "|---|---|---|", *lines])


def parts_table(found: Mapping[str, Any]) -> str:
    """Return what each part of BookKD gives."""
    lines = ["| full BookKD less | points of accuracy (95 %) | that is |", "|---|---|---|"]
    full = next((arm for arm in found["arms"] if arm["override"] == "full"), None)
    for arm in found["arms"] if full else ():
        if arm is not full:
            gain = difference(full, arm)
            lines.append(f"| {arm['override'].removeprefix('minus ')} | {points(gain)} | {verdict(gain)} |")
    return "\n".join(lines)


def points(found: Difference | None) -> str:
    """Return a difference in points with its interval, where there is one."""
    if found is None:
        return "-"
    interval = "" if found.low is None else f" ({100 * found.low:+.2f} to {100 * found.high:+.2f})"
    return f"{100 * found.mean:+.2f}{interval}"


def shares(found: Difference) -> str:
    """Return a difference of shares with its interval, where there is one."""
    interval = "" if found.low is None else f" ({found.low:+.3f} to {found.high:+.3f})"
    return f"{found.mean:+.3f}{interval}"


def verdict(found: Difference | None) -> str:
    """Say whether a gain shows: more than the noise, inside it, a mean that is not even above 0, or no statement."""
    if found is None:
        return ""
    if found.verdict == EQUAL:
        return SAME
    if found.better is None:
        return NOISE if found.mean > 0 else NONE
    return GAIN if found.better else LOSS


def verdicts(found: Mapping[str, Any]) -> str:
    """Return the arms by their verdict, in words."""
    said = []
    for words in (GAIN, NOISE, NONE, LOSS, SAME):
        names = [
            f"{arm['method']} ({arm['source'] or 'labels'})"
            for arm in found["arms"]
            if verdict(to_labels_only(found, arm)) == words
        ]
        if names or words != SAME:
            said.append(f"- **{words[0].upper()}{words[1:]}**: {', '.join(names) or 'nobody'}.")
    return "\n".join(said)


def cost(found: Mapping[str, Any]) -> str:
    """Return what teachers and students cost."""
    ledger = found["ledger"]
    made = "; ".join(
        f"{book['label']} {book['samples']:,.0f} samples × {book['views']:.0f} views = {book['teacher_forwards']:,.0f} passes"
        for book in ledger["books"]
    )
    return (
        f"{ledger['students']} students. Books: {made}. Teacher passes while students learned: "
        f"{ledger['learning_teacher_forwards']:,}."
    )


HEAD = """# Results on real images

What the commands of `benchmarks/real.py` measured (version 0.1.0 before its release, commit 2512279; later commits may add an arm),
written by `benchmarks/results.py`. No number here is a paper's, and none of a paper's claims is repeated as ours: these are small
students, few epochs and few seeds, and say which gains show *here*.

Each arm is trained with the same seeds for 12 epochs, batches of 128, learning rate 0.1, cosine, on 10,000 images of which 1,000 are
held out, and 8 stored crops and flips of each. Accuracy is of the whole test split: mean ± standard deviation over seeds. Differences
are paired over seeds, with Student's 95 % interval, and not corrected for the number of arms; of forty arms without any effect
chance alone would call one a gain. *Did not appear* means that the mean is not above 0. Options are the defaults of `bookkd methods`,
but for the warm-up of `dkd`, which is 4 epochs in place of 20 that would never end, and BookKD's preset `regularised`; nothing was
tuned. `extractive-kd` is a reconstruction.
"""

METHODS = """## Methods on CIFAR-10, ResNet-8

{seeds} seeds. `r56` is the book of a ResNet-56, `own` that of the same ResNet-8 trained on labels with another seed, `assistant`
that of a ResNet-20 which learned from `r56` (the chain 56-20-8).

{teachers}

{arms}

Held against labels alone:

{said}

{cost}
"""

ABLATION = """## BookKD and its four parts on CIFAR-10, ResNet-8

{seeds} seeds. One ensemble of the books of ResNet-56 (`book`), 20, 32 and 44; "minus ensemble" reads that of ResNet-56 alone (`first
book`). BookKD with its preset `regularised`, and what that gives less each of its parts. `vanilla-kd` is of all four; of ResNet-56
alone it stands in the table of methods above.

{teachers}

{arms}

What each part gives, full less without it, over the same seeds:

{parts}

{cost}
"""

MANY = """## 100 classes of Tiny-ImageNet at 32 × 32, ResNet-8

{seeds} seeds. One book of a ResNet-14 of twice the width, which has seen all of the training split.

{teachers}

{arms}

Held against labels alone:

{said}

{cost}
"""

INSIDE = """## Methods that look inside, on CIFAR-10, ResNet-8

{seeds} seeds. `r56` is one book of a ResNet-56 with the logits and what these methods read, maps of all stages as int8, of 4 views. `ccskd`
has labels from the start, since its 60 epochs without any would not end, and the ramp of `reviewkd` is 4 epochs; everything else is the
default, whose weights are those of published setups of other networks: nothing was tuned. `vam` and `crd` are reconstructions.

{teachers}

{arms}

Held against labels alone:

{said}

{cost}
"""

SPECIALISTS = """## Some classes of ten: specialists and generalists

Students of a few classes, from the same book of all ten, beside the teacher, whose word is taken on these classes alone, and students of
all ten classes (those of the table above), of which the same is asked: the likeliest of these classes. A specialist sees the images of its
classes only, for as many epochs, and so makes fewer steps from fewer images: both are in its difference to a generalist.

{table}
"""

EXPLAINED = """## What a teacher does to gates

Trees of `kdexplainer` (2, 4 and 8 blocks of 16 channels, a head for each class; 12 epochs, {seeds}) on the same images, which learn from
labels, from smoothed labels (0.1) and from the book of ResNet-56. *Spread* is the mean entropy of a layer's gates over the log of its
parents: 1 where a child reads all parents alike, 0 where it reads one. The paper says that soft targets sharpen gates and that
smoothed labels do not; a quarter of its channels and few of its 300 epochs neither confirm nor refute it.

{table}
"""

CAMVID_SECTION = """## Road scenes: segmentation from books

`benchmarks/camvid.py` on CamVid at 240 x 180: a U-Net teacher of {teacher_epochs} epochs, students of {share:.3f} of its parameters of
{epochs} epochs each, {seeds} seeds, {views} views that move image and labels alike. One book of {megabytes:,.0f} MiB serves every arm: logits
as int8, one cell for {stride} x {stride} pixels, and the pooled maps that `csc-ace` and `skd` read. Weights are the methods' defaults, none
was tuned; `csc` and `csc-ace` are reconstructions (the adaptive term of the latter sees the label of a cell's middle pixel, no term those of the others), `skd` is without its adversarial term. Metrics are of the test split. {said}

{table}
"""

SUBSETS = ("animals", "vehicles", "alike")
CLASSES, GATES, CAMVID = "cifar10-features-classes.json", "cifar10-features-gates.json", "camvid.json"

SECTIONS = {
    "cifar10/methods": METHODS,
    "cifar10/ablation": ABLATION,
    "tinyimagenet100/methods": MANY,
    "cifar10-features/methods": INSIDE,
}
"""Sweep, by its folder -> its section of the page."""


def main() -> None:
    if len(sys.argv) > 1:
        take(Path(sys.argv[1]))
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
