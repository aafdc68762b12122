"""The page `docs/results.md` from the summaries that `real.py` left in `benchmarks/results/`.

python benchmarks/results.py            # writes the page
python benchmarks/results.py RUNS       # takes new summaries from the runs of real.py first
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bookkd.evaluation import Difference, difference_of

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
KEPT = HERE / "results"
SUMMARIES = ("cifar10/methods", "cifar10/ablation", "tinyimagenet100/methods")
ARM_KEYS = ("arm", "method", "source", "override", "seeds", "baseline", "difference", "accuracy", "nll", "ece")
GAIN, NOISE, NONE, LOSS = "more than the noise", "inside the noise", "did not appear", "worse by more than the noise"


def take(runs: Path) -> None:
    """Copy what the page needs of the summaries below `runs`."""
    KEPT.mkdir(exist_ok=True)
    for name in SUMMARIES:
        found = json.loads((runs / name / "summary.json").read_text(encoding="utf-8"))
        kept = {key: found.get(key) for key in ("seeds", "ledger", "ablation")}
        kept["arms"] = [{key: arm[key] for key in ARM_KEYS} for arm in found["arms"]]
        text = json.dumps(kept, indent=1, sort_keys=True) + "\n"
        (KEPT / f"{name.replace('/', '-')}.json").write_text(text, encoding="utf-8")


def page() -> str:
    """Return the page."""
    methods, ablation, many = (
        json.loads((KEPT / f"{name.replace('/', '-')}.json").read_text(encoding="utf-8")) for name in SUMMARIES
    )
    return TEXT.format(
        methods=arms_table(methods),
        methods_said=verdicts(methods),
        methods_seeds=len(methods["seeds"]),
        methods_cost=cost(methods),
        ablation=arms_table(ablation),
        parts=parts_table(ablation),
        ablation_seeds=len(ablation["seeds"]),
        ablation_cost=cost(ablation),
        many=arms_table(many),
        many_said=verdicts(many),
        many_seeds=len(many["seeds"]),
        many_cost=cost(many),
    )


def to_labels_only(found: Mapping[str, Any], arm: Mapping[str, Any]) -> Difference | None:
    """Return the paired difference of an arm to labels alone, whatever the sweep held it against."""
    base = next(each for each in found["arms"] if (each["override"] or each["method"]) == "supervised")
    if arm is base:
        return None
    figures = ({int(seed): value for seed, value in each["accuracy"]["by_seed"].items()} for each in (arm, base))
    return difference_of(*figures, against="supervised")


def arms_table(found: Mapping[str, Any]) -> str:
    """Return a table of all arms: accuracy, what it gains over labels alone, NLL and ECE."""
    lines = [
        "| method | learns from | accuracy % | to labels only (95 %) | that is | NLL | ECE |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in found["arms"]:
        accuracy, difference = arm["accuracy"], to_labels_only(found, arm)
        spread = "" if accuracy["sd"] is None else f" ± {100 * accuracy['sd']:.2f}"
        lines.append(
            f"| {arm['override'] or arm['method']} | {arm['source'] or 'labels'} | {100 * accuracy['mean']:.2f}{spread} "
            f"| {points(difference)} | {verdict(difference)} | {arm['nll']['mean']:.3f} | {arm['ece']['mean']:.3f} |"
        )
    return "\n".join(lines)


def parts_table(found: Mapping[str, Any]) -> str:
    """Return what each part of BookKD gives."""
    lines = ["| full BookKD less | points of accuracy (95 %) | that is |", "|---|---|---|"]
    for row in found["ablation"]:
        gain = None if row["full_less_without"] is None else Difference(**row["full_less_without"])
        lines.append(f"| {row['without']} | {points(gain)} | {verdict(gain)} |")
    return "\n".join(lines)


def points(found: Difference | None) -> str:
    """Return a difference in points with its interval, where there is one."""
    if found is None:
        return "-"
    interval = "" if found.low is None else f" ({100 * found.low:+.2f} to {100 * found.high:+.2f})"
    return f"{100 * found.mean:+.2f}{interval}"


def verdict(found: Difference | None) -> str:
    """Say whether a gain shows: more than the noise, inside it, or a mean that is not even above 0."""
    if found is None:
        return ""
    if found.better is None:
        return NOISE if found.mean > 0 else NONE
    return GAIN if found.better else LOSS


def verdicts(found: Mapping[str, Any]) -> str:
    """Return the arms by their verdict, in words."""
    said = []
    for words in (GAIN, NOISE, NONE, LOSS):
        names = [
            f"{arm['method']} ({arm['source'] or 'labels'})"
            for arm in found["arms"]
            if verdict(to_labels_only(found, arm)) == words
        ]
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


TEXT = """# Results on real images

What `benchmarks/real.py` measured, written by `benchmarks/results.py`. No number here is a paper's, and none of a paper's claims is
repeated as ours: these are small students, few epochs and few seeds, and say which gains show *here*.

Each arm is trained with the same seeds for 12 epochs, batches of 128, learning rate 0.1, cosine, on 10,000 images of which 1,000 are
held out, and 8 stored crops and flips of each. Accuracy is of the whole test split: mean ± standard deviation over seeds. Differences
are paired over seeds, with Student's 95 % interval, and not corrected for the number of arms; of forty arms without any effect
chance alone would call one a gain. *Did not appear* means that the mean is not above 0. Options are the defaults of `bookkd methods`,
except the warm-up of `dkd`, which is 4 epochs in place of 20 that would never end. `extractive-kd` is a reconstruction.

## Methods on CIFAR-10, ResNet-8

{methods_seeds} seeds. `r56` is the book of a ResNet-56, `own` that of the same ResNet-8 trained on labels with another seed, `assistant`
that of a ResNet-20 which learned from `r56` (the chain 56-20-8).

{methods}

Held against labels alone:

{methods_said}

{methods_cost}

## BookKD and its four parts on CIFAR-10, ResNet-8

{ablation_seeds} seeds. One ensemble of the books of ResNet-56, 20, 32 and 44; "minus ensemble" reads that of ResNet-56 alone.

{ablation}

What each part gives, full less without it, over the same seeds:

{parts}

{ablation_cost}

## 100 classes of Tiny-ImageNet at 32 × 32, ResNet-8

{many_seeds} seeds. One book of a ResNet-14 of twice the width, which has seen all of the training split.

{many}

Held against labels alone:

{many_said}

{many_cost}
"""


def main() -> None:
    if len(sys.argv) > 1:
        take(Path(sys.argv[1]))
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
