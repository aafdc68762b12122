"""What is taken inside of networks: paths, reductions, and that live and stored knowledge say the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bookkd.book import Dense, Int8
from bookkd.core.errors import BookMismatchError, ConfigError, TeacherOutputError
from bookkd.core.features import Feature
from bookkd.core.protocols import Needs
from bookkd.knowledge import Capture, LiveKnowledge, StoredKnowledge, Teacher, check_needs, layers_of
from bookkd.making import make
from bookkd.tasks import Classification
from bookkd.views import Replay, Views
from bookkd.zoo import create_network
from bookkd.zoo.resnet import resnet8

CLASSES = tuple("abcd")
TASK = Classification(CLASSES)
FIELDS = (
    "features/stage1/mean",
    "features/stage2/attention",
    "features/stage3/pool2",
    "features/last",
    "features/pooled",
)


class Images(torch.utils.data.Dataset):
    name, class_names = "images", CLASSES

    def __len__(self):
        return 12

    def __getitem__(self, row):
        torch.manual_seed(row)
        return torch.rand(3, 16, 16), row % 4


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return resnet8(n_classes=4, width=4).eval()


def flipped(image):
    return torch.flip(image, (2,)) if torch.rand(()) < 0.5 else image


VIEWS = Views(flipped, n_views=2, seed=1)


def test_paths_of_known_layouts(network):
    assert layers_of(network)["stage2"] == "layer2"
    named = layers_of(create_network("torchvision:resnet18", n_classes=4))
    assert (named["stage4"], named["last"], named["pooled"]) == ("layer4", "layer4", "fc:input")
    assert named["pre4"] == "layer4.1.relu:input"
    of_timm = layers_of(create_network("timm:resnet18", n_classes=4))
    assert (of_timm["stage1"], of_timm["pre1"], of_timm["pre4"]) == (
        "layer1",
        "layer1.1.act2:input",
        "layer4.1.act2:input",
    )


def test_outputs_are_those_of_the_modules(network):
    images, asked = (
        torch.rand(2, 3, 16, 16),
        ["features/layer1.0.conv1", "features/last", "features/pooled", "features/pre3"],
    )
    with torch.no_grad():
        logits, found = Capture(network, asked)(lambda: network(images))
        hidden = torch.relu(network.bn1(network.conv1(images)))
        torch.testing.assert_close(found["features/layer1.0.conv1"], network.layer1[0].conv1(hidden))
        torch.testing.assert_close(found["features/pooled"], found["features/last"].mean((2, 3)))
        torch.testing.assert_close(found["features/last"], found["features/pre3"].relu())
        torch.testing.assert_close(network.linear(found["features/pooled"]), logits)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_what_is_changed_in_place_afterwards_stays_as_it_was():
    """torchvision's blocks add the shortcut to bn2's output in place, and activate in place."""
    torch.manual_seed(0)
    network, images = create_network("torchvision:resnet18", n_classes=4).eval(), torch.rand(1, 3, 32, 32)
    asked = ["features/layer1.0.bn2", "features/pre1", "features/layer1.0.bn2/mean"]
    with torch.no_grad():
        _, found = Capture(network, asked)(lambda: network(images))
        block, before = network.layer1[0], network.maxpool(network.relu(network.bn1(network.conv1(images))))
        expected = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(before)))))
    torch.testing.assert_close(found["features/layer1.0.bn2"], expected)
    torch.testing.assert_close(found["features/layer1.0.bn2/mean"], expected.mean((2, 3)))
    assert (found["features/pre1"] < 0).any()


def test_maps_of_a_student_in_training_are_copied_only_where_the_network_changes_them():
    torch.manual_seed(0)
    network, images = create_network("torchvision:resnet18", n_classes=4), torch.rand(2, 3, 32, 32)
    names = ("layer1.0.bn2", "layer1.0.conv2")  # the shortcut is added to the first in place, the second stays
    capture, outputs = Capture(network, [f"features/{name}" for name in names]), {}
    for name in names:
        network.get_submodule(name).register_forward_hook(lambda _, given, out, name=name: outputs.update({name: out}))
    for expected in ([True, True], [True, False], [True, False]):
        _, found = capture(lambda: network(images))
        block = network.layer1[0]
        torch.testing.assert_close(found["features/layer1.0.bn2"], block.bn2(found["features/layer1.0.conv2"]))
        assert [found[f"features/{name}"].data_ptr() != outputs[name].data_ptr() for name in names] == expected


def test_a_module_that_runs_twice_a_pass_gives_its_last_output():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Linear(2, 2)

        def forward(self, x):
            first = self.block(x)
            second = self.block(first.tanh())
            kept.append(second.clone())
            second += first
            return second

    kept, network = [], Twice()
    capture = Capture(network, ["features/block"])
    for _ in range(3):
        _, found = capture(lambda: network(torch.ones(1, 2)))
        torch.testing.assert_close(found["features/block"], kept[-1])


def test_of_a_compiled_student_maps_are_those_before_what_follows_in_place():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(2)
    )
    images = torch.rand(2, 3, 8, 8)
    network(images)
    capture, wanted = Capture(network, ["features/1"]), network[1](network[0](images))
    network.compile(backend="aot_eager")
    for _ in range(3):
        _, found = capture(lambda: network(images))
        torch.testing.assert_close(found["features/1"], wanted)
        assert found["features/1"].min() < 0


def test_a_map_that_was_left_alone_and_is_changed_in_place_later_is_refused():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.calls = nn.Linear(2, 2), 0

        def forward(self, x):
            self.calls += 1
            hidden = self.first(x)
            return hidden.mul_(2) if self.calls > 1 else hidden * 2

    network = Moody()
    capture, inputs = Capture(network, ["features/first"]), torch.ones(1, 2)
    capture(lambda: network(inputs))
    with pytest.raises(
        ConfigError, match=r"one whose output is left as it is, .*got first, changed in place .*inplace=False"
    ):
        capture(lambda: network(inputs))
    _, found = capture(lambda: network(inputs))  # copied from now on
    torch.testing.assert_close(found["features/first"], network.first(inputs))
    _, found = capture(lambda: network.eval()(inputs))  # another mode begins with a copy
    torch.testing.assert_close(found["features/first"], network.first(inputs))


def test_hooks_are_gone_after_an_error(network):
    with pytest.raises(ZeroDivisionError):
        Capture(network, ["features/stage1"])(lambda: 1 / 0)
    assert not network.layer1._forward_hooks


def test_gradients_reach_the_student(network):
    _, found = Capture(network, ["features/stage1/mean"])(lambda: network(torch.rand(2, 3, 16, 16)))
    found["features/stage1/mean"].sum().backward()
    assert network.conv1.weight.grad.abs().sum() > 0
    network.zero_grad()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("features/stge3", r"`module path` to be one of CifarResNet, got 'stge3' \(features/stge3\)\. Nearest: stage3"),
        ("features/layer9.0", r"got 'layer9\.0' .*bookkd inspect --model"),
        ("features/stage1/sum", r"a reduction one of mean, attention, gram, spatial, pool<k>"),
        ("features/stage1/pool", r"a reduction one of mean"),
        ("features/pooled/attention", r"`pooled` to be \[batch, channels, height, width\], to take attention of it"),
    ],
)
def test_what_cannot_be_taken_is_refused(network, name, message):
    with pytest.raises((ConfigError, TeacherOutputError), match=message):
        Capture(network, [name])(lambda: network(torch.rand(1, 3, 16, 16)))


def test_a_module_that_never_runs_is_refused():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    network = Idle()
    with pytest.raises(
        ConfigError, match=r"`module` to be one that runs when the network is called, got 'idle' \(Idle\)"
    ):
        Capture(network, ["features/idle"])(lambda: network(torch.zeros(1, 2)))


def test_names_say_what_they_mean():
    assert Feature.of("features/layer3.0/pool4") == Feature("layer3.0", "pool", 4)
    assert Feature.of("features/layer3.0/pool4").loses.startswith("detail")
    with pytest.raises(ConfigError, match="above 0 for pool"):
        Feature("x", "mean", 3)


@pytest.mark.parametrize("codec", [Dense(), Dense("float32"), Int8()], ids=lambda codec: codec.name)
def test_books_say_what_live_teachers_say(network, tmp_path, codec):
    teacher, data = Teacher(network), Images()
    book = make(tmp_path / "book", teacher, data, VIEWS, task=TASK, features=FIELDS, feature_codec=codec)
    live, batch = LiveKnowledge(teacher, TASK), Replay(data, VIEWS).batch([(3, 0), (7, 1), (2, 1)])
    live.offer(FIELDS, batch)
    said, stored = live.targets(batch, FIELDS), StoredKnowledge(book).targets(batch, FIELDS)
    for name in FIELDS:
        error = {"float16": 2.0**-11, "float32": 0.0}.get(getattr(codec, "dtype", ""), 1 / 200)
        scale = said[name].abs().flatten(1).amax(1)
        assert ((stored[name] - said[name]).abs().flatten(1).amax(1) <= error * scale + 1e-6).all(), name
        assert live.fields[name].shape == tuple(book.fields[name].shape)
    assert book.fields["features/stage1/mean"].taken == {
        "module": "layer1",
        "loses": "positions: which of them were strong",
    }
    assert book.fields["features/last"].taken == {"module": "layer3"}


def test_a_book_of_flows_is_not_gone_on_with_to_another_layer(network, tmp_path):
    fields = ["features/stage1/fsp.there"]

    def begin(layer):
        return make(
            tmp_path / "book", Teacher(network, layers={"there": layer}), Images(), VIEWS, task=TASK, features=fields
        )

    assert begin("layer2.0.bn1").fields[fields[0]].taken["other"] == "layer2.0.bn1"
    with pytest.raises(BookMismatchError, match=r"layer2\.0\.bn2"):
        begin("layer2.0.bn2")


class Tokens(nn.Module):
    """Sequences both ways: tokens [batch, positions, channels], and maps of a convolution [batch, channels, positions]."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Linear(2, 3)
        self.maps = nn.Sequential(nn.Conv1d(3, 5, 1), nn.ReLU())
        self.wide = nn.Conv1d(5, 5, 2, stride=2)

    def forward(self, views):
        return self.wide(self.maps(self.tokens(views).mT)).mean(2)


def test_means_of_sequences_do_not_see_their_padding():
    torch.manual_seed(0)
    network, views, lengths = Tokens(), torch.rand(2, 6, 2), torch.tensor([6, 4])
    asked = ["features/tokens/mean", "features/maps/mean", "features/into/mean"]
    batch, into = {"input": views, "length": lengths}, {"into": "maps.0:input"}
    _, padded = Capture(network, asked, layers=into)(lambda: network(views), batch)
    _, alone = Capture(network, asked, layers=into)(lambda: network(views[1:, :4]))
    hidden = network.tokens(views[1:, :4])
    expected = (hidden, network.maps(hidden.mT).mT, hidden)
    for name, values in zip(asked, expected, strict=True):
        torch.testing.assert_close(alone[name], values.mean(1))
        torch.testing.assert_close(padded[name][1:], values.mean(1))
    with pytest.raises(ConfigError, match=r"as many positions as the sequences have, 6, .*mean of shape \[2, 5, 3\]"):
        Capture(network, ["features/wide/mean"])(lambda: network(views), batch)
    with pytest.raises(ConfigError, match=r"features/tokens/fsp\.tokens.*fsp of shape \[2, 6, 3\]"):
        Capture(network, ["features/tokens/fsp.tokens"])(lambda: network(views), batch)


def test_means_of_tokens_are_added_up_in_single_precision():
    network, views = Tokens().half(), torch.full((1, 4096, 2), 0.5).half()
    _, found = Capture(network, ["features/tokens/mean"])(lambda: network.tokens(views))
    assert found["features/tokens/mean"].dtype == torch.float32
    torch.testing.assert_close(found["features/tokens/mean"][0], network.tokens(views[0, 0]).float())


def test_a_live_teacher_finds_its_modules_once(network):
    live, batch = LiveKnowledge(Teacher(network), TASK), Replay(Images(), VIEWS).batch([(3, 0), (7, 1)])
    live.offer(["features/stage1/mean"], batch)
    live.targets(batch, ["features/stage1/mean"])
    first = live._capture(("features/stage1/mean",))
    assert live._capture(("features/stage1/mean",)) is first
    live.teacher = live.teacher.knowing({"pca/last": torch.zeros(2, 16)})
    assert "pca/last" in live._capture(("features/stage1/mean",)).constants


def test_a_book_of_channel_means_is_small(network, tmp_path):
    names = [f"features/stage{stage}/mean" for stage in (1, 2, 3)]
    book = make(tmp_path / "book", Teacher(network), Images(), VIEWS, task=TASK, features=names)
    assert sum(book.fields[name].bytes_per_record for name in names) == 2 * (4 + 8 + 16)


def test_a_book_is_not_gone_on_with_from_another_layer(network, tmp_path):
    make(
        tmp_path / "book",
        Teacher(network, layers={"here": "layer1"}),
        Images(),
        VIEWS,
        task=TASK,
        features=["features/here/mean"],
    )
    with pytest.raises(BookMismatchError, match="layer2"):
        make(
            tmp_path / "book",
            Teacher(network, layers={"here": "layer2"}),
            Images(),
            VIEWS,
            task=TASK,
            features=["features/here/mean"],
        )


def test_a_method_of_features_asked_of_a_book_of_logits_says_the_command(network, tmp_path):
    book = make(tmp_path / "book", Teacher(network), Images(), VIEWS, task=TASK)
    needs = Needs({"features/stage1/mean": ()})
    with pytest.raises(
        ConfigError,
        match=r"field 'features/stage1/mean' for method x, got logits \(.*book\)\. .*bookkd make \.\.\. --features features/stage1/mean, or --serve x",
    ):
        check_needs(needs, StoredKnowledge(book), "x")
    needs = Needs({"logits": (), "features/stage1/mean": (), "features/last": ()})
    with pytest.raises(
        ConfigError, match=r"holds them all: .* --features '\[features/stage1/mean, features/last\]', or"
    ):
        check_needs(needs, StoredKnowledge(book), "x")


def test_outputs_whose_shape_changes_between_views_are_refused(tmp_path):
    def cut(image):
        return image[:, :, : 8 if torch.rand(()) < 0.5 else 16]

    torch.manual_seed(0)
    network = resnet8(n_classes=4, width=4).eval()
    with pytest.raises(TeacherOutputError, match="features/stage1"):
        make(
            tmp_path / "book", Teacher(network), Images(), Views(cut, n_views=4, seed=0), task=TASK,
            features=["features/stage1"], batch_size=1,
        )  # fmt: skip


def test_a_grown_book_goes_on_with_its_features(network, tmp_path):
    from dataclasses import replace

    from bookkd.making import grow

    names = ["features/stage1/mean"]
    make(tmp_path / "book", Teacher(network), Images(), VIEWS, task=TASK, features=names)
    book = grow(tmp_path / "book", [Teacher(network)], Images(), replace(VIEWS, n_views=3), task=TASK)
    whole = make(tmp_path / "whole", Teacher(network), Images(), replace(VIEWS, n_views=3), task=TASK, features=names)
    rows, views = np.arange(12), np.full(12, 2)
    np.testing.assert_array_equal(book.read(rows, views)[names[0]], whole.read(rows, views)[names[0]])
