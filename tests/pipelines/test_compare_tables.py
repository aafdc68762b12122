"""The presets: which arms they stand for, and that their tables are sums over the right cells."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
from tests.pipelines.compare_books import DATA, QUICK, books

from bookkd.book import Book, Plan
from bookkd.core.errors import BookKDError
from bookkd.evaluation import difference_of, interaction_of
from bookkd.learning import Training, learn
from bookkd.pipelines import DataOptions, NetworkOptions, ViewOptions, make_book
from bookkd.pipelines.compare import run_sweep, sweep_of, with_preset
from bookkd.pipelines.compare.arms import baselines, expand
from bookkd.pipelines.compare.spaces import fitting, spaces_of
from bookkd.pipelines.compare.tables import TOLERANCE, ablation, orthogonality
from bookkd.report import find_runs
from bookkd.tasks import Classification
from bookkd.views import Views
from bookkd.zoo import save_weights

TASK = Classification(("a", "b"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two teachers' books, and one of the first teacher with another augmentation."""
    folder = tmp_path_factory.mktemp("books")
    found = books(folder)
    teacher = NetworkOptions("digits-large", weights=str(folder / "one.safetensors"))
    views = ViewOptions("random-resized-crop", 2, args={"size": 8})
    out = str(folder / "crop")
    make_book(out, data=DataOptions(**DATA), teacher=teacher, views=views, batch_size=32, accelerator="cpu")
    # Another that has learned a little, so that the two are not equally good: alone in a book, and beside the first.
    network, preprocess = NetworkOptions("digits-large").build(10, role="teacher")
    train, quick = DataOptions(**DATA).open(), Training(**{**QUICK, "epochs": 4})
    learn(network, train, Views(None, 1), task=Classification(train.class_names), preprocess=preprocess, training=quick)
    save_weights(network, folder / "good.safetensors")
    both = [NetworkOptions("digits-large", weights=str(folder / f"{name}.safetensors")) for name in ("one", "good")]
    shared = {"held_out": "test", "accelerator": "cpu", "data": DataOptions(**DATA), "views": ViewOptions("digits", 2)}
    make_book(str(folder / "both"), teacher=both, batch_size=32, **shared)
    make_book(str(folder / "good"), teacher=both[1], batch_size=32, **shared)
    # Of the test split, by both teachers.
    test = {"views": ViewOptions("none", 1), "accelerator": "cpu"}
    make_book(str(folder / "test"), data=DataOptions("digits", split="test"), teacher=both, batch_size=64, **test)
    return {**found, **{name: folder / name for name in ("crop", "both", "good", "test")}}


def two(made):
    return {"a": str(made["one"]), "b": str(made["two"])}


def arms_of(preset, **document):
    sweep = sweep_of(with_preset(preset, document))
    return sweep, expand(sweep, TASK)


def quality(arms, values):
    """Figures by seed, in the order of the arms."""
    return [dict(enumerate(values[arm.name])) for arm in arms]


def test_the_ablation_leaves_each_part_out(made):
    sweep, arms = arms_of("ablation", students="digits-small", books=two(made))
    assert [arm.override for arm in arms] == [
        "full",
        "minus ensemble",
        "minus regularisation",
        "minus entropy scale",
        "minus label smoothing",
        "vanilla-kd",
        "vanilla-kd (one teacher)",
        "supervised",
    ]
    full, ensemble, regularisation, scale, smoothing, vanilla, single, alone = (arm.method.build() for arm in arms)
    assert (full.correct, full.flatten, full.learn_scale, full.label_smoothing) == (True, 0.05, True, 0.1)
    assert ensemble == full
    assert (regularisation.correct, regularisation.flatten, regularisation.learn_scale) == (False, 0.0, True)
    assert (scale.learn_scale, scale.correct) == (False, True)
    assert (smoothing.label_smoothing, smoothing.learn_scale) == (0.0, True)
    assert (vanilla.name, alone.name) == ("vanilla-kd", "supervised")
    assert single == vanilla
    first, both = (str(made["one"]),), (str(made["one"]), str(made["two"]))
    assert [arm.source and arm.source.books for arm in arms] == [both, first, *[both] * 4, first, None]
    # All see the same views, labels alone too.
    assert {arm.seen_as.books[0] for arm in arms} == set(first)
    assert sweep.tables == "ablation"


def test_one_book_of_one_teacher_has_no_ensemble_to_leave_out(made):
    chosen = {"a": {"paths": str(made["both"]), "teachers": [1]}}
    for books_ in ({"a": str(made["one"])}, chosen):
        _, arms = arms_of("ablation", students="digits-small", books=books_)
        found = [arm.override for arm in arms]
        assert not {"minus ensemble", "vanilla-kd (one teacher)"} & set(found)
    assert arms[0].source.members == (1,)


@pytest.mark.parametrize("largest", [0, 1])
def test_of_a_book_of_several_teachers_the_largest_is_read_alone(made, largest, monkeypatch):
    """Not the most accurate, which would be chosen on the split of the report."""
    teachers = Book(made["both"]).plan.teachers
    assert teachers[1].accuracy > teachers[0].accuracy
    if largest == 1:
        # As the plan would say it, had the second more parameters.
        more = (teachers[0], replace(teachers[1], parameters=teachers[1].parameters + 1))
        whole = Plan.from_json
        monkeypatch.setattr(Plan, "from_json", lambda *given, **named: replace(whole(*given, **named), teachers=more))
    _, arms = arms_of("ablation", students="digits-small", books={"a": str(made["both"])})
    by_name = {arm.override: arm.source for arm in arms}
    for name in ("minus ensemble", "vanilla-kd (one teacher)"):
        source = by_name[name]
        assert (source.books, source.members) == ((str(made["both"]),), (largest,))
    for name in ("full", "vanilla-kd"):
        assert by_name[name].members == ()


def test_a_part_that_is_off_is_not_left_out_again(made):
    method = {"name": "bookkd", "preset": "regularised", "learn_scale": False, "temperature": 2}
    _, arms = arms_of("ablation", students="digits-small", books=two(made), methods=[method])
    assert "minus entropy scale" not in [arm.override for arm in arms]
    vanilla = next(arm for arm in arms if arm.override == "vanilla-kd")
    assert vanilla.method.build().temperature == 2.0


def test_without_the_scalar_its_options_go_back_to_their_defaults(made):
    method = {"name": "bookkd", "scale_lr": 0.2, "scale_high": 4.0}
    _, arms = arms_of("ablation", students="digits-small", books=two(made), methods=[method])
    by_name = {arm.override: arm for arm in arms}
    full, frozen = by_name["full"].method.build(), by_name["minus entropy scale"].method.build()
    assert (full.learn_scale, full.scale_lr, full.scale_high) == (True, 0.2, 4.0)
    assert (frozen.learn_scale, frozen.scale_lr, frozen.scale_high) == (False, 0.05, 20.0)
    # Nor are they searched there.
    spaces = spaces_of("method.scale_lr=0.01:0.1 method.temperature=1:8")
    found = {name: [space.key for space in fitting(by_name[name], spaces)] for name in ("full", "minus entropy scale")}
    assert found == {"full": ["scale_lr", "temperature"], "minus entropy scale": ["temperature"]}


def test_the_table_of_the_ablation_is_full_less_each_part(made):
    students = [{"name": "resnet8", "args": {"width": width}} for width in (8, 16)]
    _, arms = arms_of("ablation", students=students, books=two(made))
    values = {arm.name: [0.5 + 0.01 * place, 0.5 + 0.02 * place, 0.6] for place, arm in enumerate(arms)}
    rows = ablation(arms, quality(arms, values), "accuracy")
    assert len(rows) == 2 * 7
    for student in ("resnet8 width=8", "resnet8 width=16"):
        mine = [arm for arm in arms if student in arm.name.split(" / ")]
        for arm, row in zip(mine[1:], [row for row in rows if row["student"] == student], strict=True):
            wanted = difference_of(dict(enumerate(values[mine[0].name])), dict(enumerate(values[arm.name])), arm.name)
            assert row["full_less_without"]["mean"] == pytest.approx(wanted.mean)
            assert row["full_less_without"]["verdict"] == wanted.verdict
            assert row["without"] in arm.override
    # The full method is lower by more than the noise: worse as an accuracy, better as an error; what helps has a plus sign.
    lower = {
        arm.name: [0.1 + 0.5 * bool(place) + 0.01 * seed * place for seed in range(3)] for place, arm in enumerate(arms)
    }
    first = [ablation(arms, quality(arms, lower), metric)[0]["full_less_without"] for metric in ("accuracy", "nll")]
    assert [each["better"] for each in first] == [False, True]
    assert first[1]["mean"] == -first[0]["mean"] > 0
    assert (first[1]["low"], first[1]["high"]) == pytest.approx((-first[0]["high"], -first[0]["low"]))


def test_orthogonality_has_the_four_cells_of_each_partner(made):
    given = {"books": {"digits": str(made["one"]), "crop": str(made["crop"])}, "students": "digits-small,resnet8"}
    _, arms = arms_of("orthogonality", **given)
    assert len(arms) == 8
    names = [arm.name for arm in arms]
    # Each augmentation is seen by labels alone too.
    for arm in arms:
        assert arm.seen_as.label == arm.override
        assert (arm.source is None) == (arm.method.name == "supervised")
    values = {name: [0.70 + 0.01 * place**1.5, 0.71 + 0.01 * place] for place, name in enumerate(names)}
    found = orthogonality(arms, quality(arms, values), "accuracy")
    assert [(each["partner"], each["at"], each["from"], each["to"]) for each in found] == [
        ("augmentation", "digits-small", "digits", "crop"),
        ("augmentation", "resnet8", "digits", "crop"),
        ("architecture", "digits", "digits-small", "resnet8"),
        ("architecture", "crop", "digits-small", "resnet8"),
    ]
    for each in found:
        cells = each["cells"]
        assert cells["base"].startswith("supervised")
        assert cells["partner"].startswith("supervised")
        assert cells["distilled"].startswith("vanilla-kd")
        assert cells["both"].startswith("vanilla-kd")
        first, second = (each["from"], each["to"])
        assert all(first in cells[key].split(" / ") for key in ("base", "distilled"))
        assert all(second in cells[key].split(" / ") for key in ("partner", "both"))
        assert all(each["at"] in name.split(" / ") for name in cells.values())
        four = [dict(enumerate(values[cells[key]])) for key in ("base", "distilled", "partner", "both")]
        wanted = interaction_of(*four, tolerance=TOLERANCE)
        assert each["interaction"]["interaction"] == pytest.approx(wanted.interaction)
        assert each["interaction"]["verdict"] == wanted.verdict
        odds = [{seed: math.log(p / (1 - p)) for seed, p in cell.items()} for cell in four]
        assert each["interaction_log_odds"] == pytest.approx(interaction_of(*odds, tolerance=1).interaction)


def test_the_cards_worked_table():
    """The synthetic table of the card, in shares: I = -0.00167, interval wider than 0.3 points, weakly orthogonal."""
    _, arms = arms_of("orthogonality", books={"a": "a"}, students="digits-small,resnet8")
    cells = [(70.0, 70.4, 69.8), (71.9, 72.1, 71.6), (71.0, 71.2, 70.9), (72.7, 72.9, 72.4)]
    values = dict(zip([arm.name for arm in arms], [[value / 100 for value in cell] for cell in cells], strict=True))
    (found,) = orthogonality(arms, quality(arms, values), "accuracy")
    interaction = found["interaction"]
    wanted = {"distillation": 0.018, "partner": 0.00966667, "joint": 0.026, "interaction": -0.00166667}
    assert {key: interaction[key] for key in wanted} == pytest.approx(wanted, abs=1e-8)
    assert interaction["retention"] == pytest.approx(0.907407, abs=1e-6)
    assert (interaction["low"], interaction["high"]) == pytest.approx((-0.00546125, 0.00212792), abs=1e-8)
    assert interaction["verdict"] == "orthogonal (weak)"


def test_a_cell_without_runs_has_no_interaction():
    _, arms = arms_of("orthogonality", books={"a": "a"}, students="digits-small,resnet8")
    figures = [{0: 0.7}, {0: 0.8}, {1: 0.7}, {}]
    (found,) = orthogonality(arms, figures, "accuracy")
    assert found["interaction"] is None
    full = [{0: 1.0}, {0: 1.0}, {0: 0.9}, {0: 0.9}]
    (found,) = orthogonality(arms, full, "accuracy")
    assert found["interaction_log_odds"] is None


@pytest.mark.parametrize(
    ("preset", "document", "message"),
    [
        ("ablaton", {"books": "a"}, "Unknown preset 'ablaton'. Nearest: ablation"),
        ("ablation", {}, "Expected `books` to be at least one"),
        ("ablation", {"books": "a", "methods": "dist"}, "absent, or bookkd with options, got 'dist'"),
        ("ablation", {"books": "a", "overrides": [{"name": "x"}]}, "`overrides` to be absent where a preset is given"),
        ("orthogonality", {"books": "a"}, "got 1 students and 1 books"),
        ("orthogonality", {"books": "a,b,c"}, "got 1 students and 3 books"),
        ("orthogonality", {"books": "a", "students": "x,y", "methods": "dist"}, "one without a teacher and one with"),
    ],
)
def test_what_a_preset_needs_is_said_in_one_line(preset, document, message):
    with pytest.raises(BookKDError, match=re.escape(message)) as caught:
        sweep_of(with_preset(preset, {"students": "digits-small", **document}))
    assert "\n" not in str(caught.value)


def test_books_of_one_augmentation_or_of_other_teachers_are_no_partners(made):
    for second, message in (("one", "one augmentation in both"), ("two", "one augmentation in both")):
        given = {"books": {"x": str(made["one"]), "y": str(made[second])}, "students": "digits-small"}
        with pytest.raises(BookKDError, match=message):
            with_preset("orthogonality", given)
    given = {"books": {"x": str(made["two"]), "y": str(made["crop"])}, "students": "digits-small"}
    with pytest.raises(BookKDError, match="other teachers in the second"):
        with_preset("orthogonality", given)


@pytest.mark.parametrize("preset", ["ablation", "orthogonality"])
def test_a_preset_runs_to_its_table(made, tmp_path, preset):
    second = "two" if preset == "ablation" else "crop"
    given = {"books": {"one": str(made["one"]), second: str(made[second])}, "students": "digits-small", "data": DATA}
    shared = {"training": {**QUICK, "epochs": 1}, "seeds": 1, "replicates": 0, "latency": False}
    sweep = sweep_of(with_preset(preset, {**given, **shared}))
    result = run_sweep(sweep, tmp_path, say=lambda line: None)
    assert result["failed"] == []
    assert len(result["arms"]) == (8 if preset == "ablation" else 4)
    table = json.loads((tmp_path / "summary.json").read_text())[preset]
    assert len(table) == (7 if preset == "ablation" else 1)
    assert "one seed" in json.dumps(table) or table[0]["interaction"]["verdict"] == "undecided"
    # Making is counted for both books, learning asked nobody.
    assert len(result["ledger"]["books"]) == 2
    assert result["ledger"]["learning_teacher_forwards"] == 0


def test_the_ablation_is_held_against_its_full_method(made):
    sweep, arms = arms_of("ablation", students="digits-small,resnet8", books=two(made))
    against = baselines(sweep, arms)
    full = {place for place, arm in enumerate(arms) if arm.override == "full"}
    assert set(range(len(arms))) - set(against) <= full
    assert {arms[base].override for base in against.values()} == {"full"}
    assert all(arms[base].student == arms[place].student for place, base in against.items())


def test_one_teacher_of_a_book_of_two_is_as_a_book_of_its_own(made, tmp_path):
    """From the same seed the same student, whether its teacher's word lies alone in a book or beside another's."""
    books_ = {
        "alone": {"paths": str(made["good"]), "test": str(made["test"])},
        "beside": {"paths": str(made["both"]), "test": str(made["test"]), "teachers": 1},
        "all": {"paths": str(made["both"]), "test": str(made["test"])},
    }
    given = {"books": books_, "methods": "vanilla-kd", "students": "digits-small", "data": DATA}
    shared = {"training": {**QUICK, "epochs": 1}, "seeds": 1, "replicates": 0, "latency": False}
    assert run_sweep(sweep_of({**given, **shared}), tmp_path, say=lambda line: None)["failed"] == []
    found = {run.record.arm.rpartition(" ")[2]: run.record for run in find_runs([tmp_path])}
    assert found["beside"].weights == found["alone"].weights != found["all"].weights
    digests = {name: [teacher["digest"] for teacher in record.teachers] for name, record in found.items()}
    assert digests["beside"] == digests["alone"] == digests["all"][1:]
    # Of the book of the test split, which has two, the same teacher is read.
    assert found["beside"].confusion["teacher"] == found["alone"].confusion["teacher"]
    assert found["beside"].metric("agreement") == found["alone"].metric("agreement")
    assert found["beside"].confusion["teacher"] != found["all"].confusion["teacher"]
    assert found["beside"].metric("agreement") != found["all"].metric("agreement")
    assert found["beside"].configuration["knowledge"]["members"] == digests["beside"]
    assert "members" not in found["all"].configuration["knowledge"]


def test_teachers_of_a_book_that_are_not_there_are_one_line(made, tmp_path):
    def sweep(teachers, paths):
        books_ = {"x": {"paths": [str(made[path]) for path in paths], "teachers": teachers}}
        given = {"books": books_, "methods": "vanilla-kd", "students": "digits-small", "data": DATA}
        return run_sweep(sweep_of({**given, "training": QUICK}), tmp_path / "out", say=lambda line: None)

    for teachers, paths, message in (
        ([2], ["both"], "Expected `teachers` to be places from 0 to 1, got 2"),
        (["resnet"], ["both"], "Unknown teacher 'resnet'"),
        (["digits-large"], ["both"], "to be places where a name is there twice, [0, 1], got 'digits-large'"),
        ([0, 0], ["both"], "`teachers` to be without repeats"),
        ([0], ["one", "two"], "Expected `teachers` to be of one book, got 2 books"),
        ([True], ["both"], "Expected `teachers` to be names or places in the book"),
    ):
        with pytest.raises(BookKDError, match=re.escape(message)) as caught:
            sweep(teachers, paths)
        assert "\n" not in str(caught.value)
