"""What is known of a teacher once and for all: worked out by `make`, of books as of live teachers, and refused where it is missing."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from tests.learning.digits import TASK, TRAIN, book, run, student, teacher, to_float, training, views
from torch import nn

import bookkd.knowledge.constants as constants_module
from bookkd.book import Book, Dense, _layout
from bookkd.core.errors import BookCorruptError, ConfigError, UnknownNameError, WeightsError
from bookkd.core.features import Feature
from bookkd.knowledge import LiveKnowledge, StoredKnowledge, Teacher, check_needs, missing_constants, work_out
from bookkd.knowledge.constants import Source, trained_paraphraser
from bookkd.knowledge.writing import offer
from bookkd.losses.reductions import paraphrase
from bookkd.making import grow, repair
from bookkd.methods import build_method
from bookkd.pipelines import NetworkOptions
from bookkd.shaping import ReusedClassifier
from bookkd.views import Replay
from bookkd.zoo import create_network

FIELDS = ("features/last/pca3", "features/pooled/pca2", "features/last/paraphrase")
EXACT = {"feature_codec": Dense("float32")}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(constants_module, "STEPS", 6)


def source(network, fields=()):
    return Source(Teacher(network, to_float), TASK, Replay(TRAIN, views()), tuple(fields))


class More:
    """The samples of the books here and as many again, the same in the other order."""

    name, class_names, labels = TRAIN.name, TRAIN.class_names, np.concatenate([TRAIN.labels, TRAIN.labels[::-1]])

    def __len__(self):
        return 2 * len(TRAIN)

    def __getitem__(self, index):
        return TRAIN[index if index < len(TRAIN) else 2 * len(TRAIN) - 1 - index]


def never(*_):
    raise AssertionError("worked out again")


@pytest.mark.parametrize(
    ("name", "layer", "norm"),
    [
        ("digits-small", "pre2", "bn2"),
        ("resnet8", "pre2", "layer2.0.bn2"),
        ("resnet8", "pre3", "layer3.0.bn2"),
        ("torchvision:resnet18", "pre4", "layer4.1.bn2"),
    ],
)
def test_margins_are_those_of_the_normalisation_before_the_activation(name, layer, norm):
    network = create_network(name, n_classes=10)
    bn = network.get_submodule(norm)
    with torch.no_grad():
        bn.bias.zero_()
        # The signs of the scales play no part. Worked on the card.
        bn.bias[:4], bn.weight[:4] = torch.tensor([0, 0.5, -1, 4]), torch.tensor([1, -1, 2, 1.0])
    (margins,) = work_out([f"margins/{layer}"], source(network)).values()
    assert margins.shape == bn.bias.shape
    assert margins[:4].tolist() == pytest.approx([-0.797885, -0.641078, -2.018321, -3], abs=1e-6)


def test_margins_in_a_sequence_are_of_what_is_before():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    layers = {"pre1": "2:input", "pre2": "3:input", "raw": "0"}
    speaker = Teacher(network, to_float, layers=layers)
    found = work_out(["margins/pre1", "margins/pre2"], Source(speaker, TASK, Replay(TRAIN, views())))
    assert {name: len(each) for name, each in found.items()} == {"margins/pre1": 2, "margins/pre2": 2}
    with pytest.raises(ConfigError, match=r"`raw` to be a layer behind a batch normalisation, got '0' \(margins\)"):
        work_out(["margins/raw"], Source(speaker, TASK, Replay(TRAIN, views())))


def test_directions_are_those_of_a_singular_value_decomposition():
    network = student("digits-small")
    given = source(network, ["features/stage2/pca5"])
    found = work_out(["pca/stage2"], given)["pca/stage2"].numpy()
    (maps,) = given.outputs("stage2")
    rows = maps.movedim(1, -1).reshape(-1, maps.shape[1]).double().numpy()
    _, _, wanted = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    assert found.shape == (6, 12)
    np.testing.assert_allclose(found[0], rows.mean(0), atol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(found[1:] * wanted[:5], 1)), 1, atol=1e-4)
    with pytest.raises(
        ConfigError, match=r"`directions` to be at most 16, the channels of the layer, got 20 \(pca/last\)"
    ):
        work_out(["pca/last"], source(network, ["features/last/pca20"]))


def test_a_paraphraser_learns_to_rebuild_the_maps(monkeypatch):
    maps = torch.rand(40, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(constants_module, "STEPS", 60)
    trained, again = (trained_paraphraser(maps, "cpu") for _ in range(2))
    monkeypatch.setattr(constants_module, "STEPS", 0)
    untrained = trained_paraphraser(maps, "cpu")
    with torch.no_grad():
        after, before = ((each(maps) - maps).square().mean() for each in (trained, untrained))
    assert after < 0.7 * before
    assert all(torch.equal(one, two) for one, two in zip(trained.parameters(), again.parameters(), strict=True))
    assert {name: list(each.shape) for name, each in trained.constants().items()} == {
        "weight1": [4, 4, 3, 3], "bias1": [4], "weight2": [2, 4, 3, 3], "bias2": [2], "weight3": [2, 2, 3, 3], "bias3": [2],
    }  # fmt: skip
    # What makes the factors is the first half.
    factors = maps
    with torch.no_grad():
        for layer in trained.encoder:
            factors = nn.functional.leaky_relu(layer(factors), 0.1)
    energy = factors.square().mean(1).flatten(1)
    known = trained.constants()
    said = paraphrase(maps, *([known[f"{part}{place}"] for place in (1, 2, 3)] for part in ("weight", "bias")))
    torch.testing.assert_close(said, energy / energy.norm(dim=1, keepdim=True))


def test_the_classifier_is_taken_where_it_is_given_the_mean_of_the_last_map():
    network = student("digits-small")
    found = work_out(["classifier/bias"], source(network))
    assert torch.equal(found["classifier/weight"], network.linear.weight)
    assert torch.equal(found["classifier/bias"], network.linear.bias)
    other = Source(Teacher(network, to_float, layers={"last": "bn3"}), TASK, Replay(TRAIN, views()))
    with pytest.raises(ConfigError, match=r"`last` to be the map whose mean the classifier is given, got bn3 of shape"):
        work_out(["classifier/weight"], other)
    with pytest.raises(UnknownNameError, match=r"Unknown constant 'classes/mean'|Unknown constant 'classes'"):
        work_out(["classes/mean"], source(network))


def test_what_is_missing():
    fields = ("logits", "features/last", "features/last/paraphrase", "features/stage1/pca2")
    assert missing_constants({}, (), fields) == ("paraphraser/last", "pca/stage1")
    assert missing_constants({"paraphraser/last/bias1": 0, "pca/stage1": 0}, (), fields) == ()
    assert Feature.of("features/last/mean").constant == ""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants_module, "STEPS", 6)
        return book(tmp_path_factory.mktemp("books") / "b", features=FIELDS, serve=["ofd", "simkd"], **EXACT).path


def empty_constants(path):
    for file in (path / _layout.CONSTANTS_FOLDER).iterdir():
        file.write_bytes(b"")


class TestBooks:
    def test_a_book_holds_what_its_fields_and_methods_ask_for(self, made):
        opened = Book(made)
        assert {name: opened.constants[name].shape for name in sorted(opened.constants) if "paraphraser" not in name} == {
            "classifier/bias": (10,), "classifier/weight": (10, 128), "margins/pre1": (32,), "margins/pre2": (64,),
            "margins/pre3": (128,), "pca/last": (4, 128), "pca/pooled": (3, 128),
        }  # fmt: skip
        assert len([name for name in opened.constants if name.startswith("paraphraser/last/")]) == 6
        assert {*FIELDS, "features/last", "features/pre1"} <= set(opened.fields)
        assert opened.fields["features/last/pca3"].shape == (3, 4, 4)

    def test_stored_is_live(self, made):
        replay, live, stored = Replay(TRAIN, views()), LiveKnowledge(teacher(), TASK), StoredKnowledge(made)
        offer(live, FIELDS, replay, constants=["margins/pre1"])
        batch = replay.batch([(row, row % 2) for row in range(20)])
        one, two = live.targets(batch, FIELDS), stored.targets(batch, FIELDS)
        for name in FIELDS:
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
        for name in live.constants:
            torch.testing.assert_close(live.constants[name], stored.constants[name], rtol=1e-4, atol=1e-5)

    def test_made_again_nothing_is_worked_out_again(self, made, monkeypatch):
        monkeypatch.setattr(constants_module, "CONSTANTS", dict.fromkeys(constants_module.CONSTANTS, never))
        again = book(made, features=FIELDS, serve=["ofd", "simkd"], **EXACT)
        assert again.content_digest == Book(made).content_digest

    def test_growing_and_mending_take_the_constants_of_the_book(self, tmp_path, monkeypatch):
        path = tmp_path / "b"
        few = book(path, features=FIELDS[:1], views=views(1), **EXACT)
        known = few.constants["pca/last"].copy()
        monkeypatch.setattr(constants_module, "CONSTANTS", dict.fromkeys(constants_module.CONSTANTS, never))
        grown = grow(path, teacher(), TRAIN, views(2), task=TASK)
        np.testing.assert_array_equal(grown.constants["pca/last"], known)
        live = LiveKnowledge(teacher().knowing({"pca/last": torch.tensor(known)}), TASK)
        replay = Replay(TRAIN, views(2))
        offer(live, FIELDS[:1], replay)
        batch = replay.batch([(row, 1) for row in range(8)])
        torch.testing.assert_close(
            StoredKnowledge(grown).targets(batch, FIELDS[:1])[FIELDS[0]], live.targets(batch, FIELDS[:1])[FIELDS[0]], rtol=1e-4, atol=1e-5
        )  # fmt: skip
        shard = next(path.glob("view-0001/*.safetensors"))
        shard.write_bytes(shard.read_bytes()[:-40] + bytes(40))
        repair(path, teacher(), TRAIN, views(2), task=TASK)
        assert Book(path).content_digest == grown.content_digest

    @pytest.mark.parametrize("also", [False, True], ids=["constants", "and records"])
    def test_damaged_ones_are_worked_out_again(self, made, tmp_path, monkeypatch, also):
        monkeypatch.setattr(constants_module, "STEPS", 6)
        path = shutil.copytree(made, tmp_path / "b")
        whole = {file: file.read_bytes() for file in path.rglob("*.safetensors")}
        constants = [file for file in whole if file.parent.name == _layout.CONSTANTS_FOLDER]
        assert len(constants) > 3
        shards = [next(file for file in whole if file.parent.name == "view-0001")] if also else []
        for file in (*constants, *shards):
            file.write_bytes(whole[file][:-9] + bytes(9))
        found = repair(path, teacher(), TRAIN, views(), task=TASK)
        assert len(found.restored) == len(constants) + len(shards)
        assert {file: file.read_bytes() for file in whole} == whole

    def test_of_more_samples_they_are_worked_out_of_those_of_the_book(self, tmp_path):
        path = book(tmp_path / "b", features=FIELDS[:1], **EXACT).path
        (file,) = (path / _layout.CONSTANTS_FOLDER).iterdir()
        whole = file.read_bytes()
        file.write_bytes(whole[:-9] + bytes(9))
        repair(path, teacher(), More(), views(), task=TASK)
        assert file.read_bytes() == whole

    def test_records_are_mended_beside_a_constant_that_nothing_works_out(self, tmp_path):
        path = book(tmp_path / "b", constants={"classifier/foo": np.ones(3), "margins/nowhere": np.ones(3)}).path
        shard = next(path.glob("view-0001/*.safetensors"))
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-9] + bytes(9))
        empty_constants(path)
        with pytest.raises(
            BookCorruptError,
            match=r"the constant .* stands nowhere else, and none was given.* Pass it: bookkd\.making\.repair\(",
        ):
            repair(path, teacher(), TRAIN, views(), task=TASK)
        assert shard.read_bytes() == whole

    def test_what_was_given_cannot_be_worked_out_again(self, tmp_path):
        path = book(tmp_path / "b", serve=["ofd"], constants={"margins/pre1": np.full(32, -0.5, np.float32)}).path
        empty_constants(path)
        with pytest.raises(
            BookCorruptError,
            match=r"the constant margins/pre1 stands nowhere else, and another was given or worked out",
        ):
            repair(path, teacher(), TRAIN, views(), task=TASK)

    def test_constants_that_are_given_are_kept(self, tmp_path):
        margins = np.full(32, -0.5, np.float32)
        made = book(tmp_path / "b", serve=["ofd"], constants={"margins/pre1": margins})
        np.testing.assert_array_equal(made.constants["margins/pre1"], margins)
        assert set(made.constants) == {"margins/pre1", "margins/pre2", "margins/pre3"}

    @pytest.mark.parametrize("name", ["ofd", "simkd"])
    def test_a_book_without_them_is_refused(self, name, tmp_path):
        method = build_method(name)
        without = StoredKnowledge(book(tmp_path / "b", features=list(method.needs(TASK).fields)))
        first = method.needs(TASK).constants[0]
        with pytest.raises(
            ConfigError, match=rf"constant '{first}' for method {name}, got none \(.*\)\. Make .* --serve {name}\."
        ):
            check_needs(method.needs(TASK), without, name)


@pytest.mark.parametrize("name", ["ft", "ofd", "simkd"])
def test_a_book_teaches_what_a_live_teacher_teaches(name, tmp_path):
    made = StoredKnowledge(book(tmp_path / "b", serve=[name], codec=Dense("float32"), **EXACT))
    learned = []
    for knowledge in (made, LiveKnowledge(teacher(), TASK)):
        torch.manual_seed(5)
        learned.append(
            run(None, method=build_method(name), knowledge=knowledge, network=student("digits-small"), training=training(epochs=1))
        )  # fmt: skip
    assert learned[0].teacher_forwards == 0
    for one, two in zip(*(each.student.parameters() for each in learned), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


class TestSimKD:
    def test_its_word_is_the_teachers_classifier_on_projected_maps(self):
        torch.manual_seed(0)
        trunk = student("digits-small")
        weight, bias = torch.randn(10, 6), torch.randn(10)
        shaped = ReusedClassifier(trunk, "relu", 16, (2, 2), weight, bias, width=3, pooled="linear:input").eval()
        views_given = torch.randn(4, 1, 8, 8)
        with torch.no_grad():
            said = shaped(views_given).numpy()
            first = trunk.bn1(trunk.conv1(views_given)).relu()
            second = trunk.bn2(trunk.conv2(nn.functional.max_pool2d(first, 2))).relu()
            maps = trunk.bn3(trunk.conv3(second)).relu().double().numpy()
        # 4 x 4 averaged to the teacher's 2 x 2.
        x = maps.reshape(4, 16, 2, 2, 2, 2).mean((3, 5))
        for conv, norm in ((shaped.projector[0], shaped.projector[1]), (shaped.projector[3], shaped.projector[4]),
                           (shaped.projector[6], shaped.projector[7])):  # fmt: skip
            kernel = conv.weight.detach().double().numpy()
            size = kernel.shape[-1]
            padded = np.pad(x, ((0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2))
            x = sum(
                np.einsum("nchw,oc->nohw", padded[:, :, i : i + 2, j : j + 2], kernel[:, :, i, j])
                for i in range(size)
                for j in range(size)
            )
            x = np.maximum(x / np.sqrt(1 + norm.eps), 0)
        wanted = x.mean((2, 3)) @ weight.double().numpy().T + bias.double().numpy()
        np.testing.assert_allclose(said, wanted, rtol=1e-4, atol=1e-5)
        assert isinstance(trunk.linear, nn.Identity)

    def test_the_student_that_is_kept_has_the_classifier_and_is_what_validation_measures(self, tmp_path):
        made = StoredKnowledge(book(tmp_path / "b", serve=["simkd"]))
        options = {
            "method": build_method("simkd"),
            "knowledge": made,
            "training": training(epochs=1),
            "validation": TRAIN,
        }
        learned = run(tmp_path / "run", network=student("digits-small"), **options)
        assert torch.equal(learned.student.classifier.weight, made.constants["classifier/weight"])
        images = torch.stack([to_float(TRAIN[row][0]) for row in range(len(TRAIN))])
        with torch.no_grad():
            hits = (learned.student(images).argmax(1).numpy() == TRAIN.labels).mean()
        assert learned.metrics["accuracy"] == pytest.approx(hits, abs=0.02)
        again = run(tmp_path / "run", network=student("digits-small"), **options)  # finished: weights are loaded
        for one, two in zip(learned.student.state_dict().values(), again.student.state_dict().values(), strict=True):
            assert torch.equal(one, two)
        # The file is enough to have it again, by the name of the network that it began as.
        path = str(tmp_path / "run" / "student.safetensors")
        named, _ = NetworkOptions("digits-small", weights=path).build(10, role="student")
        with torch.no_grad():
            assert torch.equal(named.eval()(images), learned.student(images))
        with pytest.raises(
            ConfigError, match=r"what a ReusedClassifier notes of itself.*Name the network that the student was"
        ):
            NetworkOptions("resnet8", weights=path).build(10, role="student")
        with pytest.raises(ConfigError, match="what a ReusedClassifier notes of itself"):
            ReusedClassifier.around(nn.Flatten(), {"last": "", "shape": [10, 4]})
        with pytest.raises(ConfigError, match="a plain network, got one that has a teacher's classifier already"):
            run(None, network=learned.student, **options)
        good = learned.student.configuration
        for changes in (
            {"shape": [10]},
            {"shape": [10**9, 10**9]},
            {"grid": [0, 1]},
            {"width": -1},
            {"last": "nope"},
            {"pooled": 5},
        ):
            with pytest.raises(ConfigError, match="what a ReusedClassifier notes of itself"):
                ReusedClassifier.around(student("digits-small"), {**good, **changes})
        with pytest.raises(WeightsError, match="of 3 classes, got 10"):
            NetworkOptions("digits-small", weights=path).build(3, role="student")

    def test_a_part_of_the_classes_is_refused(self, tmp_path):
        from bookkd.shaping.reuse import check_classifier

        with pytest.raises(ConfigError, match=r"`classes` to be the 10 of the classifier, got 3 \(method simkd\)"):
            check_classifier(torch.zeros(10, 4), (4, 2, 2), 3, "method simkd")
        with pytest.raises(ConfigError, match=r"`features/last` to be maps of 4 channels, as .* got shape \[5, 2, 2\]"):
            check_classifier(torch.zeros(10, 4), (5, 2, 2), 10, "method simkd")
