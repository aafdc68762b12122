"""The literal tables of the zoo: our own names -> `package.module:callable`, imported on first use."""

from __future__ import annotations

__all__ = ["DATASETS", "FAMILIES", "FILELESS", "MASKS", "NETWORKS", "SEQUENCES", "TRANSFORMS"]

NETWORKS = {
    "digits-large": "bookkd.zoo.digits_net:digits_large",
    "digits-small": "bookkd.zoo.digits_net:digits_small",
    "resnet8": "bookkd.zoo.resnet:resnet8",
    "resnet14": "bookkd.zoo.resnet:resnet14",
    "resnet20": "bookkd.zoo.resnet:resnet20",
    "resnet32": "bookkd.zoo.resnet:resnet32",
    "resnet44": "bookkd.zoo.resnet:resnet44",
    "resnet56": "bookkd.zoo.resnet:resnet56",
    "resnet110": "bookkd.zoo.resnet:resnet110",
    "unet-large": "bookkd.zoo.unet:unet_large",
    "unet-small": "bookkd.zoo.unet:unet_small",
}
"""Networks by name; beside them `FAMILY:NAME` and the user's own `package.module:callable`."""

FAMILIES = ("causal-lm", "seq2seq", "text-classifier", "timm", "torchvision")
"""Networks by `FAMILY:NAME`; of Transformers the name is a kind, such as gpt2, or a folder with its files."""

DATASETS = {
    "cifar10": "bookkd.zoo.torchvision_files:cifar10",
    "cifar100": "bookkd.zoo.torchvision_files:cifar100",
    "digits": "bookkd.zoo.digits:digits",
    "digits-angle": "bookkd.zoo.digits_targets:digits_angle",
    "digits-pairs": "bookkd.zoo.digits_targets:digits_pairs",
    "fashion-mnist": "bookkd.zoo.torchvision_files:fashion_mnist",
    "folder": "bookkd.zoo.folder:folder",
    "mnist": "bookkd.zoo.torchvision_files:mnist",
}
"""Data sets by name; beside them the user's own `package.module:callable`."""

MASKS = {
    "camvid": "bookkd.zoo.mask_folders:camvid",
    "image-masks": "bookkd.zoo.mask_folders:image_masks",
    "shapes": "bookkd.zoo.masks:shapes",
}
"""Data sets of images with a class at every pixel, by name."""

SEQUENCES = {
    "pairs": "bookkd.zoo.text_files:pairs",
    "spoken-digits": "bookkd.zoo.recordings:spoken_digits",
    "text": "bookkd.zoo.text_files:text",
    "text-classes": "bookkd.zoo.text_files:text_classes",
}
"""Data sets of sequences by name."""

FILELESS = ("digits", "digits-angle", "digits-pairs", "shapes")
"""Data sets that need no files, so that whoever reads their name in a book can open them."""

TRANSFORMS = {
    "auto-augment": "bookkd.zoo.transforms:auto_augment",
    "crop-flip": "bookkd.zoo.transforms:crop_flip",
    "crop-flip-jitter-erase": "bookkd.zoo.transforms:crop_flip_jitter_erase",
    "digits": "bookkd.zoo.transforms:digits",
    "jda": "bookkd.zoo.joint_augment:jda",
    "mask-affine": "bookkd.zoo.mask_transforms:mask_affine",
    "mask-crop": "bookkd.zoo.mask_transforms:mask_crop",
    "none": "bookkd.zoo.transforms:none",
    "rand-augment": "bookkd.zoo.transforms:rand_augment",
    "random-resized-crop": "bookkd.zoo.transforms:random_resized_crop",
    "spec-augment": "bookkd.zoo.spec_augment:SpecAugment",
    "token-mask": "bookkd.zoo.token_views:token_mask",
    "trivial-augment": "bookkd.zoo.transforms:trivial_augment",
}
"""Augmentations by name; beside them the user's own `package.module:callable`."""
