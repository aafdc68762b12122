"""What a user names on the command line or in YAML, and how the named thing is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bookkd.core.errors import ConfigError, WeightsError, expected
from bookkd.core.names import is_reference
from bookkd.core.rng import draw64
from bookkd.knowledge import Teacher, lineage_of_weights, notes_of_weights
from bookkd.learning import Cohort
from bookkd.shaping import REUSED, ReusedClassifier
from bookkd.views import CutMix, MixUp, Views
from bookkd.zoo import (
    FAMILIES,
    ImageDataset,
    brings_weights,
    class_subset,
    create_network,
    create_preprocess,
    create_transform,
    load_weights,
    open_dataset,
)

__all__ = ["DataOptions", "NetworkOptions", "TaskOptions", "ViewOptions"]


@dataclass(frozen=True)
class DataOptions:
    """Where samples come from.

    Args:
        name: digits, digits-pairs (several labels), digits-angle (numbers), folder, cifar10, cifar100, mnist, fashion-mnist, text,
            text-classes, pairs, spoken-digits, image-masks, camvid, shapes, or package.module:callable.
        root: Folder (or zip, for "folder") that holds the files.
        split: Part of the data set.
        limit: Take so many samples, the same ones each time, with every class in its share.
        download: Fetch a public set that is not there.
        args: Further arguments of the reader, such as '{"cache": true}' for "folder".
        classes: Take the samples of these classes alone, by name or number, such as 3,5,7: the student tells them apart and no others,
            from a book that knows all.
    """

    name: str = "digits"
    root: str | None = None
    split: str = "train"
    limit: int | None = None
    download: bool = False
    args: dict[str, Any] = field(default_factory=dict)
    classes: str | tuple[str | int, ...] = ()

    def open(self) -> ImageDataset:
        """Return the data set."""
        found = open_dataset(
            self.name, root=self.root, split=self.split, limit=self.limit, download=self.download, args=self.args
        )
        if not self.classes:
            return found
        chosen = self.classes.split(",") if isinstance(self.classes, str) else self.classes
        return class_subset(found, [each.strip() if isinstance(each, str) else each for each in chosen])

    def other(self, split: str) -> DataOptions:
        """Return another split of the same set, whole."""
        return replace(self, split=split, limit=None)


@dataclass(frozen=True)
class TaskOptions:
    """What the data are, and what a task cannot tell from them.

    Args:
        name: classification (one class a sample), multi-label, regression, causal-lm, seq2seq, ctc, segmentation or tagging; taken from the book where
            there is one, else classification.
        args: Options of the task, such as '{"teacher_subsampling": 2}' of ctc, '{"stride": 4}' of segmentation.
    """

    name: str = ""
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NetworkOptions:
    """A network by name.

    Args:
        name: resnet8 to resnet110, digits-large, digits-small, unet-large, unet-small, timm:NAME, torchvision:NAME, causal-lm:NAME,
            seq2seq:NAME or text-classifier:NAME (a kind of Transformers such as gpt2, or a folder with its files), or
            package.module:callable.
        weights: Safetensors file to start from.
        args: Further arguments of the network, such as '{"width": 32}'.
        mean: Mean of each channel that is taken off a view; the network's own where none is given.
        std: Deviation of each channel that a view is divided by.
        size: Side that views are resized to.
        layers: Names of layers -> paths of modules, such as '{"stage1": "features.3"}', for methods that look inside of a network whose
            own layers are not found by themselves; see `bookkd inspect --model`.
    """

    name: str = ""
    weights: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    layers: dict[str, str] = field(default_factory=dict)

    @property
    def users_code(self) -> bool:
        """Whether its name is a reference to code of the user's own, which may change under one name."""
        return is_reference(self.name) and self.name.partition(":")[0] not in FAMILIES

    def for_data(self, dataset: Any) -> NetworkOptions:
        """Return the network as it has to be for some data: a language model keeps documents apart that are packed, where its `args` do not say.

        >>> from bookkd.zoo import pack
        >>> text = pack("mine", [[1, 2, 3]], length=4, separator=0, vocabulary=4)
        >>> NetworkOptions("causal-lm:gpt2").for_data(text).args, NetworkOptions("resnet20").for_data(text).args
        ({'separator': 0}, {})
        """
        found = getattr(dataset, "separator", None)
        packed = self.name.startswith("causal-lm:") and isinstance(found, int)
        return replace(self, args={"separator": found, **self.args}) if packed else self

    def cohort(self, n_classes: int, size: int, *, seed: int) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        """Return the student and its preprocessing, or a cohort of `size` that differ in their initial values."""
        if size == 1:
            return self.build(n_classes, role="student", seed=seed)
        peers = [self.build(n_classes, role="student", seed=seed, peer=peer) for peer in range(size)]
        return Cohort([network for network, _ in peers]), peers[0][1]

    def build(
        self, n_classes: int, *, role: str, seed: int = 0, peer: int = 0
    ) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
        """Return the network and its preprocessing; initial values are a function of `seed` and `peer`."""
        if not self.name:
            do = f"Pass --{role} NAME, for instance --{role} resnet20."
            raise ConfigError(expected(role, "the name of a network", self.name, do=do))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(draw64(seed, "initial values", [peer], [0])[0, 0] >> 1))
            noted = {} if self.weights is None else notes_of_weights(self.weights)
            network = create_network(
                self.name, n_classes=n_classes, weights=None if REUSED in noted else self.weights, args=self.args
            )
            if (
                REUSED in noted and self.weights is not None
            ):  # a student of `simkd`, which is more than the network it began as
                reused = ReusedClassifier.around(network, noted[REUSED])
                if reused.classifier.out_features != n_classes:
                    do = "Check the number of classes."
                    got = reused.classifier.out_features
                    raise WeightsError(
                        expected("weights", f"of {n_classes} classes", got, where=str(self.weights), do=do)
                    )
                load_weights(reused, self.weights)
                network = reused
        return network, create_preprocess(self.name, mean=self.mean, std=self.std, size=self.size)

    def refuse_untrained(self, role: str) -> None:
        """Refuse a network of ours, timm's or torchvision's with initial values; a user's own code may load its weights."""
        known = self.weights is not None or self.users_code or brings_weights(self.name, self.args)
        if self.name and not known:
            do = f"Pass --{role}.weights FILE.safetensors."
            raise ConfigError(expected(f"{role}.weights", "a safetensors file", None, where=self.name, do=do))

    def teacher(self, n_classes: int, device: str | torch.device) -> Teacher:
        """Return the network as a teacher.

        Raises:
            ConfigError: without weights, since an untrained teacher teaches noise.
        """
        self.refuse_untrained("teacher")
        network, preprocess = self.build(n_classes, role="teacher")
        lineage = None if self.weights is None else lineage_of_weights(self.weights)
        return Teacher(network, preprocess, name=self.name, device=device, lineage=lineage, layers=self.layers)


@dataclass(frozen=True)
class ViewOptions:
    """How samples are augmented, so that every view can be drawn again.

    Args:
        transform: none, digits, crop-flip, crop-flip-jitter-erase, auto-augment, rand-augment, trivial-augment, jda,
            random-resized-crop, mask-affine, mask-crop, token-mask, or package.module:callable.
        n_views: Views of each sample.
        seed: Of all draws.
        args: Arguments of the transform, such as '{"size": 32, "padding": 4}'.
        mix: Mix each view with one of another sample: none, mixup or cutmix.
        mix_alpha: Both parameters of the Beta distribution of the mixing ratio.
    """

    transform: str = "none"
    n_views: int = 16
    seed: int = 0
    args: dict[str, Any] = field(default_factory=dict)
    mix: Literal["none", "mixup", "cutmix"] = "none"
    mix_alpha: float = 1.0

    def without_repeats(self) -> ViewOptions:
        """Return views that differ: a single one where nothing is drawn.

        >>> ViewOptions("none", 16).without_repeats().n_views, ViewOptions("digits", 16).without_repeats().n_views
        (1, 16)
        """
        return replace(self, n_views=1) if self.transform == "none" and self.mix == "none" else self

    def build(self) -> Views:
        """Return the views."""
        mix = {"none": None, "mixup": MixUp, "cutmix": CutMix}[self.mix]
        return Views(
            create_transform(self.transform, self.args),
            self.n_views,
            self.seed,
            mix=None if mix is None else mix(self.mix_alpha),
            name=self.transform,
            args=self.args,
        )
