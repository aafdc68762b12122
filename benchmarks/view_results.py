"""Figure and tables of `docs/guides/views.md` from what `views.py --keep` kept.

python benchmarks/view_results.py            # writes docs/images/views-NAME.svg and the part of the page between its marks
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
from scipy.stats import spearmanr

from bookkd.evaluation import difference_of, interval_of_mean

HERE = Path(__file__).parent
KEPT = HERE / "results" / "views"
DOCS = HERE.parent / "docs"
PAGE = DOCS / "guides" / "views.md"
MARKS = "<!-- results: begin -->", "<!-- results: end -->"

Runs = Sequence[Mapping[str, Any]]


def by_seed(runs: Runs, arm: str, get: Any) -> dict[int, float]:
    """Return seed -> a figure of the runs of an arm."""
    return {run["seed"]: float(get(run)) for run in runs if run["arm"] == arm}


def accuracy(run: Mapping[str, Any]) -> float:
    return 100 * float(run["metrics"]["accuracy"]["value"])


def counts(runs: Runs) -> list[int]:
    """Return the numbers of views that were tried."""
    return sorted({int(run["arm"][2:]) for run in runs if run["arm"].startswith("V=")})


def points(runs: Runs) -> list[dict[str, Any]]:
    """Return one row for each point of the figure."""
    found = []
    for count in counts(runs):
        for run in (run for run in runs if run["arm"] == f"V={count}"):
            kl = [
                {"panel": "KL to the teacher, training samples", "line": f"views {name}", "value": value}
                for name, value in run["kl"].items()
            ]
            each = [{"panel": "accuracy on the test split, %", "line": "book", "value": accuracy(run)}, *kl]
            found += [{"views": count, "seed": run["seed"], **row} for row in each]
    for run in (run for run in runs if run["arm"] == "live"):
        for count in (counts(runs)[0], counts(runs)[-1]):
            row = {"views": count, "seed": run["seed"], "line": "live teacher"}
            found.append({**row, "panel": "accuracy on the test split, %", "value": accuracy(run)})
            found.append({**row, "panel": "KL to the teacher, training samples", "value": run["kl"]["unseen"]})
    return found


def figure(runs: Runs) -> Any:
    """Return accuracy, and how far the student is from the teacher on views that it has and has not seen, over the number of views."""
    rows = points(runs)
    lines = ["book", "views seen", "views unseen", "live teacher"]
    colour = alt.Color(
        "line:N",
        title=None,
        scale=alt.Scale(domain=lines, range=["#1f5fa8", "#7a9a01", "#c2571a", "#666666"]),
        legend=alt.Legend(orient="bottom"),
    )
    panels = []
    for panel in dict.fromkeys(row["panel"] for row in rows):
        mine = alt.Data(values=[row for row in rows if row["panel"] == panel])
        base = alt.Chart(mine, width=330, height=230).encode(
            x=alt.X(
                "views:Q",
                title="views of a sample in the book",
                scale=alt.Scale(type="log", base=2),
                axis=alt.Axis(values=counts(runs)),
            ),
            color=colour,
        )
        value = alt.Y("value:Q", title=panel, scale=alt.Scale(zero=False))
        means = base.mark_line().encode(
            y=alt.Y("mean(value):Q", title=panel, scale=alt.Scale(zero=False)),
            strokeDash=alt.condition("datum.line === 'live teacher'", alt.value([5, 4]), alt.value([1, 0])),
        )
        dots = base.transform_filter("datum.line !== 'live teacher'").mark_point(filled=True, size=28).encode(y=value)
        panels.append(means + dots)
    return alt.hconcat(*panels).configure(background="white")


def told(values: Mapping[int, float], digits: int) -> str:
    """Return a mean over seeds, with its 95 % interval where there are several."""
    found = list(values.values())
    mean = f"{statistics.fmean(found):.{digits}f}"
    if len(found) < 2:
        return mean
    low, high = interval_of_mean(found)
    return f"{mean} ({low:.{digits}f} to {high:.{digits}f})"


def table_of_counts(runs: Runs) -> str:
    """Return a line for each number of views."""
    lines = ["| arm | accuracy, % | to live | KL, views seen | KL, views unseen |", "|---|---|---|---|---|"]
    live = by_seed(runs, "live", accuracy)
    for arm in [*(f"V={count}" for count in counts(runs)), "live", "labels"]:
        mine = by_seed(runs, arm, accuracy)
        apart = difference_of(mine, live, "live") if arm != "live" else None
        gap = "-" if apart is None else f"{apart.mean:+.2f}, {apart.verdict}"
        seen = by_seed([run for run in runs if "seen" in run.get("kl", {})], arm, lambda run: run["kl"]["seen"])
        unseen = by_seed(runs, arm, lambda run: run["kl"]["unseen"])
        lines.append(f"| {arm} | {told(mine, 2)} | {gap} | {told(seen, 4) if seen else '-'} | {told(unseen, 4)} |")
    return "\n".join(lines)


NEAR = 0.5
"""Points of accuracy that count as no difference in `enough`."""


def enough(runs: Runs) -> str:
    """Say from how many views on a book is as good as a live teacher, as far as the means of the seeds show."""
    live = by_seed(runs, "live", accuracy)
    gaps = {count: difference_of(by_seed(runs, f"V={count}", accuracy), live, "live").mean for count in counts(runs)}
    near = [count for count in gaps if all(gaps[more] > -NEAR for more in gaps if more >= count)]
    found = f"From {near[0]} views on" if near else f"Not even with {max(gaps)} views"
    return f"{found} the mean is at most {NEAR:g} points below that of the live teacher."


def table_of_recipes(runs: Runs, recipe_views: int) -> str:
    """Return a line for each recipe, the lowest T. stddev first, and how far both orders agree."""
    (scores,) = [run for run in runs if run["arm"] == "scores"]
    arms = {run["recipe"]: run["arm"] for run in runs if run.get("views") == recipe_views or run["arm"] == "none"}
    lines = [
        "| views | T. stddev | entropy | agreement | accuracy, % | teacher KL on the test split |",
        "|---|---|---|---|---|---|",
    ]
    pairs = []
    for each in scores["recipes"]:
        arm = arms[each["name"]]
        mine, spread = by_seed(runs, arm, accuracy), each["stddev"]
        kl = by_seed(runs, arm, lambda run: run["metrics"]["teacher_kl"]["value"])
        score = f"{spread['value']:.4f} ({spread['low']:.4f} to {spread['high']:.4f})"
        agreement = "-" if each["agreement"] is None else f"{each['agreement']['value']:.3f}"
        lines.append(
            f"| {each['name']} | {score} | {each['entropy']['value']:.3f} | {agreement} | {told(mine, 2)} | {told(kl, 4)} |"
        )
        pairs.append((spread["value"], statistics.fmean(mine.values())))
    rank = spearmanr(*zip(*pairs, strict=True)).statistic
    return (
        "\n".join(lines)
        + f"\n\nRank correlation of T. stddev with accuracy over {len(pairs)} recipes: {rank:+.2f} (-1 were best)."
    )


def section(kept: Mapping[str, Any]) -> str:
    """Return what the page says of one set."""
    options, runs = kept["options"], kept["runs"]
    teacher = next(run for run in runs if run["arm"] == "teacher")
    recipes = ""
    if any(run["arm"] == "none" for run in runs):
        recipes = (
            f"\n\nBooks of {options['recipe_views']} views (`none` has one) under other recipes, and their score from "
            f"{options['passes']:,} passes in groups of {options['group_rows']}:\n\n{table_of_recipes(runs, options['recipe_views'])}"
        )
    return (
        f"### {options['name']}\n\n"
        f"{options['student']} from {options['teacher_network']} ({accuracy(teacher):.2f} %), {options['epochs']} epochs, {options['seeds']} seeds; "
        "intervals of 95 % over seeds.\n\n"
        f"![Accuracy and KL over the number of views](../images/views-{options['name']}.svg)\n\n"
        f"{table_of_counts(runs)}\n\n{enough(runs)}{recipes}\n"
    )


def placed(page: str, sections: Sequence[str]) -> str:
    """Return the page with the sections between its marks."""
    inside = "\n".join(sections) if sections else NOTHING
    return re.sub(f"{MARKS[0]}.*{MARKS[1]}", lambda _: f"{MARKS[0]}\n\n{inside}\n{MARKS[1]}", page, flags=re.S)


NOTHING = "No figures are kept yet: `benchmarks/views.py --keep` measures them, and `benchmarks/view_results.py` writes them here.\n"


def main() -> None:
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(KEPT.glob("*.json"))]
    for kept in found:
        figure(kept["runs"]).save(str(DOCS / "images" / f"views-{kept['options']['name']}.svg"))
    PAGE.write_text(placed(PAGE.read_text(encoding="utf-8"), [section(kept) for kept in found]), encoding="utf-8")


if __name__ == "__main__":
    main()
