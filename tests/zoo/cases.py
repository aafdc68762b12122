"""One row for each name in the tables of the zoo, with what is known of it from elsewhere."""

from __future__ import annotations

# Name -> parameters for 10 classes. resnet20 to 56: counted in the published weights; 8, 14 and 110 by adding blocks:
# 75,290 + 97,216 (n - 1). The digits pair: sum over layers of 9 in out + out, 2 out for normalisation, and the linear layer.
NETWORKS = {
    "digits-large": 94_410,
    "digits-small": 2_942,
    "resnet8": 75_290,
    "resnet14": 172_506,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "unet-large": 3_032_810,
    "unet-small": 207_070,
}

# Name -> shape of an image.
DATASETS = {
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
    "digits": (1, 8, 8),
    "digits-angle": (1, 8, 8),
    "digits-pairs": (1, 8, 16),
    "fashion-mnist": (1, 28, 28),
    "folder": (3, 5, 6),
    "mnist": (1, 28, 28),
}

# Name -> (dtype, length) of the labels, where they are vectors and no class.
VECTORS = {"digits-angle": ("float32", 1), "digits-pairs": ("int64", 10)}

# Name -> (arguments, shape that goes in, shape that comes out).
TRANSFORMS = {
    "auto-augment": ({"policy": "svhn"}, (3, 32, 32), (3, 32, 32)),
    "crop-flip": ({}, (3, 32, 32), (3, 32, 32)),
    "crop-flip-jitter-erase": ({"size": 16, "padding": 2}, (3, 16, 16), (3, 16, 16)),
    "digits": ({}, (1, 8, 8), (1, 8, 8)),
    "jda": ({}, (3, 32, 32), (3, 32, 32)),
    "mask-affine": ({"brightness": 0.2}, (3, 20, 30), (3, 20, 30)),
    "mask-crop": ({"size": [16, 24]}, (3, 20, 30), (3, 16, 24)),
    "none": ({}, (1, 5, 7), (1, 5, 7)),
    "rand-augment": ({"size": 32, "padding": 0}, (3, 32, 32), (3, 32, 32)),
    "random-resized-crop": ({"size": 24}, (3, 40, 30), (3, 24, 24)),
    "spec-augment": ({}, (40, 16), (40, 16)),
    "token-mask": ({"mask": 3}, (40,), (40,)),
    "trivial-augment": ({"size": 16}, (3, 16, 16), (3, 16, 16)),
}

# The tensors of the published resnet20, without the counters of batch normalisation.
RESNET20_TEXT = """
    bn1.bias bn1.running_mean bn1.running_var bn1.weight conv1.weight layer1.0.bn1.bias layer1.0.bn1.running_mean
    layer1.0.bn1.running_var layer1.0.bn1.weight layer1.0.bn2.bias layer1.0.bn2.running_mean
    layer1.0.bn2.running_var layer1.0.bn2.weight layer1.0.conv1.weight layer1.0.conv2.weight layer1.1.bn1.bias
    layer1.1.bn1.running_mean layer1.1.bn1.running_var layer1.1.bn1.weight layer1.1.bn2.bias
    layer1.1.bn2.running_mean layer1.1.bn2.running_var layer1.1.bn2.weight layer1.1.conv1.weight
    layer1.1.conv2.weight layer1.2.bn1.bias layer1.2.bn1.running_mean layer1.2.bn1.running_var layer1.2.bn1.weight
    layer1.2.bn2.bias layer1.2.bn2.running_mean layer1.2.bn2.running_var layer1.2.bn2.weight layer1.2.conv1.weight
    layer1.2.conv2.weight layer2.0.bn1.bias layer2.0.bn1.running_mean layer2.0.bn1.running_var layer2.0.bn1.weight
    layer2.0.bn2.bias layer2.0.bn2.running_mean layer2.0.bn2.running_var layer2.0.bn2.weight layer2.0.conv1.weight
    layer2.0.conv2.weight layer2.1.bn1.bias layer2.1.bn1.running_mean layer2.1.bn1.running_var layer2.1.bn1.weight
    layer2.1.bn2.bias layer2.1.bn2.running_mean layer2.1.bn2.running_var layer2.1.bn2.weight layer2.1.conv1.weight
    layer2.1.conv2.weight layer2.2.bn1.bias layer2.2.bn1.running_mean layer2.2.bn1.running_var layer2.2.bn1.weight
    layer2.2.bn2.bias layer2.2.bn2.running_mean layer2.2.bn2.running_var layer2.2.bn2.weight layer2.2.conv1.weight
    layer2.2.conv2.weight layer3.0.bn1.bias layer3.0.bn1.running_mean layer3.0.bn1.running_var layer3.0.bn1.weight
    layer3.0.bn2.bias layer3.0.bn2.running_mean layer3.0.bn2.running_var layer3.0.bn2.weight layer3.0.conv1.weight
    layer3.0.conv2.weight layer3.1.bn1.bias layer3.1.bn1.running_mean layer3.1.bn1.running_var layer3.1.bn1.weight
    layer3.1.bn2.bias layer3.1.bn2.running_mean layer3.1.bn2.running_var layer3.1.bn2.weight layer3.1.conv1.weight
    layer3.1.conv2.weight layer3.2.bn1.bias layer3.2.bn1.running_mean layer3.2.bn1.running_var layer3.2.bn1.weight
    layer3.2.bn2.bias layer3.2.bn2.running_mean layer3.2.bn2.running_var layer3.2.bn2.weight layer3.2.conv1.weight
    layer3.2.conv2.weight linear.bias linear.weight
"""
RESNET20_NAMES = RESNET20_TEXT.split()
