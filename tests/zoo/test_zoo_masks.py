"""Images with masks: layouts on disk, what is void, what is refused, and transforms that move both alike."""

from __future__ import annotations

import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from bookkd.core.errors import ConfigError, DataError, UnknownNameError
from bookkd.tasks import Segmentation
from bookkd.views import CachedViews, Pick, Replay, Views, check_replay
from bookkd.zoo import (
    CAMVID,
    FILELESS,
    MASKS,
    MaskDataset,
    create_network,
    create_preprocess,
    create_transform,
    fingerprint,
    open_dataset,
    save_weights,
    shapes,
)

NAMES = ("road", "sky", "tree")
LAYOUTS = {
    "annot": ("{split}/{name}.jpg", "{split}annot/{name}.png"),
    "inside": ("{split}/images/{name}.png", "{split}/masks/{name}.png"),
    "outside": ("images/{split}/{name}.png", "annotations/{split}/{name}.png"),
    "wrapped": ("set/{split}/{name}.png", "set/{split}annot/{name}.png"),
}


def mask_of(place, void=7):
    mask = np.full((6, 8), place % 3, np.uint8)
    mask[0], mask[:, :2] = void, (place + 1) % 3
    return mask


def write(root, layout, splits=("train", "test"), count=3):
    for split in splits:
        for place in range(count):
            paths = [root / each.format(split=split, name=f"{place:02}") for each in layout]
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((6, 8, 3), 40 * place, np.uint8)).save(paths[0])
            Image.fromarray(mask_of(place)).save(paths[1])
    return root


def opened(root, split="train", **args):
    return open_dataset("image-masks", root=root, split=split, args={"classes": NAMES, "void": 7, **args})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [False, True])
def test_layouts(tmp_path, layout, zipped):
    root = write(tmp_path / "data", LAYOUTS[layout])
    if zipped:
        root = shutil.make_archive(str(tmp_path / "data"), "zip", root)
    for split in ("train", "test"):
        data = opened(root, split)
        assert (len(data), data.class_names) == (3, NAMES)
        image, mask = data[1]
        assert (tuple(image.shape), image.dtype, tuple(mask.shape), mask.dtype) == (
            (3, 6, 8),
            torch.uint8,
            (6, 8),
            torch.int64,
        )
        wanted = mask_of(1).astype(int)
        wanted[wanted == 7] = -1
        assert np.array_equal(mask.numpy(), wanted)
        assert abs(float(image.float().mean()) - 40) < 2


def test_a_set_without_splits_and_names_in_a_file(tmp_path):
    root = write(tmp_path, ("images/{name}.png", "masks/{name}.png"), splits=("x",))
    (root / "classes.txt").write_text("road\nsky\n\ntree\n", encoding="utf-8")
    data = open_dataset("image-masks", root=root, args={"void": [7, 9]})
    assert (len(data), data.class_names) == (3, NAMES)
    with pytest.raises(UnknownNameError, match=r"Unknown split 'test' .*Nearest: train"):
        open_dataset("image-masks", root=root, split="test")


def test_the_cache_holds_the_same_and_everything_pickles(tmp_path):
    data = opened(write(tmp_path, LAYOUTS["inside"]))
    cached = opened(tmp_path, cache=True)
    assert isinstance(cached, MaskDataset)
    for each in (cached, pickle.loads(pickle.dumps(data)), pickle.loads(pickle.dumps(cached))):
        assert all(torch.equal(one, other) for one, other in zip(each[2], data[2], strict=True))
    assert fingerprint(cached)["samples"] == fingerprint(data)["samples"]
    assert len(open_dataset("image-masks", root=tmp_path, limit=2, args={"classes": NAMES, "void": 7})) == 2


def test_files_that_do_not_fit_are_refused_by_name(tmp_path):
    root = write(tmp_path, LAYOUTS["annot"])
    mask = root / "trainannot" / "01.png"
    for changed, wish in (
        (mask_of(1)[:, 1:], "`mask` to be [6, 8] pixels as its image, got [6, 7] (FILE). Bring both"),
        (
            np.where(mask_of(1) == 7, 5, mask_of(1)),
            "classes 0 to 2, or void, got 5 (FILE; 6 of 48 pixels). Name the classes",
        ),
        (np.zeros((6, 8, 3), np.uint8), "`mask` to be one id a pixel, got uint8 (6, 8, 3) (FILE)"),
    ):
        Image.fromarray(np.ascontiguousarray(changed).astype(np.uint8)).save(mask)
        with pytest.raises(DataError, match=re.escape(wish.replace("FILE", f"{root}, trainannot/01.png"))):
            opened(root)[1]
        with pytest.raises(DataError, match=r"trainannot/01\.png"):
            opened(root, cache=True)
    mask.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"`mask` to be a whole picture, got UnidentifiedImageError"):
        opened(root)[1]
    mask.unlink()
    with pytest.raises(
        DataError, match=r"`mask` to be beside each image, as trainannot/01.png, got 'none' .*train/01.jpg"
    ):
        opened(root)
    with pytest.raises(DataError, match=r"`classes` to be given, or in classes.txt, got 'neither'"):
        open_dataset("image-masks", root=root, split="test")
    with pytest.raises(UnknownNameError, match=r"Unknown split 'val'"):
        opened(root, "val")
    with pytest.raises(DataError, match=r"`root` to be a folder or a zip, got None .*--data.root DIR"):
        open_dataset("image-masks")


def test_camvid_has_its_names_and_its_void(tmp_path):
    root = write(tmp_path, LAYOUTS["annot"])
    for path in root.glob("*annot/*.png"):
        ids = np.asarray(Image.open(path))
        Image.fromarray(np.where(ids == 7, 11, ids).astype(np.uint8)).save(path)
    data = open_dataset("camvid", root=root)
    assert (data.class_names, len(CAMVID)) == (CAMVID, 11)
    assert data[0][1][0].tolist() == [1] * 2 + [-1] * 6
    assert set(MASKS) == {"camvid", "image-masks", "shapes"}


def test_drawn_shapes_are_one_set_on_every_machine():
    assert "shapes" in FILELESS
    data = open_dataset("shapes", split="test")
    assert (len(data), data.masks.min(), data.masks.max()) == (60, -1, 3)
    share = np.bincount(data.masks.ravel() + 1) / data.masks.size
    assert share.min() > 0.02
    assert len(shapes(split="all", n=2)) == 4
    assert -1 not in shapes(n=3, void=False).masks
    with pytest.raises(ConfigError, match=r"`height` to be .*16, got 8"):
        shapes(height=8)


class Own:
    """A data set of the user's."""

    class_names = NAMES
    void = 9

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return np.zeros((3, 6, 8), np.uint8), Image.fromarray(mask_of(index, void=9))


def own():
    return Own()


def nameless():
    return [(torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.long))]


def test_a_users_own_masks():
    data = open_dataset(f"{__name__}:own")
    assert torch.equal(data[1][1], torch.from_numpy(np.where(mask_of(1) == 7, -1, mask_of(1).astype(np.int64))))
    Segmentation.of(data).check_data(data)
    with pytest.raises(DataError, match=r"`class_names` to be given with masks, got 'none'"):
        open_dataset(f"{__name__}:nameless")


def coded():
    """Images whose every channel is 60 times the class and 20, and masks without void."""
    data = shapes(n=4, height=40, width=56, void=False)
    images = torch.from_numpy(data.masks.astype(np.uint8) * 60 + 20)[:, None].expand(-1, 3, -1, -1).contiguous()
    return MaskDataset("coded", images, data.masks, data.class_names)


@pytest.mark.parametrize(("name", "args"), [("mask-affine", {}), ("mask-crop", {"size": [24, 32]})])
def test_image_and_mask_move_alike(name, args):
    views = Views(create_transform(name, args), 6, 5, name=name, args=args)
    replay = Replay(coded(), views)
    check_replay(replay)
    moved = 0
    for sample in range(4):
        for view in range(6):
            item = replay[Pick(sample, view)]
            image, mask = item["input"][0].int(), item["label"]
            assert image.shape == mask.shape
            known = mask >= 0
            assert ((image - (mask * 60 + 20)).abs() < 25)[known].float().mean() > 0.9
            if name == "mask-affine" and not bool(known.all()):
                assert (image[~known] < 25).float().mean() > 0.9
                moved += int((~known).sum())
    assert moved > 100 or name == "mask-crop"
    cached = CachedViews(replay, max_bytes=10**8)
    batch, again = cached.__getitems__([Pick(3, 2), Pick(0, 5)]), replay.batch([Pick(3, 2), Pick(0, 5)])
    assert torch.equal(batch["label"], again["label"])


def test_colours_change_in_the_image_alone():
    drawn = [
        Replay(coded(), Views(create_transform("mask-affine", args), 3, 1)).batch([Pick(1, 2), Pick(0, 1)])
        for args in ({}, {"brightness": 0.5, "contrast": 0.5})
    ]
    assert torch.equal(drawn[0]["label"], drawn[1]["label"])
    assert not torch.equal(drawn[0]["input"], drawn[1]["input"])
    assert not torch.equal(drawn[0]["probe/hash"], drawn[1]["probe/hash"])


def test_student_and_teacher():
    sizes = [
        sum(p.numel() for p in create_network(name, n_classes=11).parameters()) for name in ("unet-small", "unet-large")
    ]
    assert 5 * sizes[0] < sizes[1]
    for name in ("unet-small", "unet-large"):
        network = create_network(name, n_classes=5, args={"width": 4, "stages": 3, "in_channels": 1})
        out = network(torch.rand(2, 1, 45, 61))
        out.mean().backward()
        assert out.shape == (2, 5, 45, 61)


def test_networks_of_torchvision_from_local_weights(tmp_path):
    name = "torchvision:lraspp_mobilenet_v3_large"
    torch.manual_seed(0)
    first = create_network(name, n_classes=4).eval()
    save_weights(first, tmp_path / "w.safetensors")
    second = create_network(name, n_classes=4, weights=tmp_path / "w.safetensors").eval()
    view = torch.randint(0, 255, (1, 3, 32, 48), dtype=torch.uint8)
    task, prepared = Segmentation(("a", "b", "c", "d")), create_preprocess(name)(view)
    with torch.inference_mode():
        said = [task.fields(each(prepared), {"input": view})["logits"] for each in (first, second)]
    assert said[0].shape == (1, 32, 48, 4)
    assert torch.equal(*said)


def test_what_the_recipe_of_digits_moves_in_is_void():
    data = MaskDataset(
        images=torch.full((1, 3, 16, 16), 9, dtype=torch.uint8),
        masks=np.full((1, 16, 16), 2),
        class_names=NAMES,
        name="flat",
    )
    item = Replay(data, Views(create_transform("digits", {"degrees": 45, "shift": 0.5}), n_views=1, name="digits"))[
        Pick(0, 0)
    ]
    assert set(item["label"].unique().tolist()) == {-1, 2}
