"""One row for each method of the table: its defaults with their source, wrong options, and a worked total.

The worked numbers are those of the card of vanilla distillation: z = [1, 2, 0.5], v = [2, 3.5, -1], y = 1, one sample;
CE = 0.464369, T^2 KL = 0.636975 at T = 4.
"""

from __future__ import annotations

# Name -> defaults, and where each set of values comes from.
DEFAULTS = {
    "supervised": {"label_smoothing": 0.0},  # plain cross-entropy
    "vanilla-kd": {
        "temperature": 4.0,  # RepDistiller and mdistiller, CIFAR-100 benchmark
        "kd_weight": 0.9,  # the same
        "ce_weight": 0.1,  # the same
        "t_squared": True,  # Hinton et al. 2015, section 2: "multiply them by T^2 when using both"
        "class_reduction": "sum",  # the divergence itself; F.kl_div(reduction="batchmean")
        "soft_loss": "kl",
        "label_smoothing": 0.0,
    },
}

# Name -> (fields with the temperatures asked, fields that must be dense) with the defaults.
NEEDS = {"supervised": ({}, ()), "vanilla-kd": ({"logits": (4.0,)}, ())}

# Name -> total on the worked sample with the defaults: 0.464369, and 0.1 * 0.464369 + 0.9 * 0.636975.
TOTALS = {"supervised": 0.464369, "vanilla-kd": 0.619714}

# Method, option, value that is refused, what the message says.
REFUSED = [
    (
        "supervised",
        "label_smoothing",
        -0.1,
        r"`label_smoothing` to be between 0 and 1, got -0\.1 \(method supervised\)",
    ),
    ("supervised", "label_smoothing", 1.5, r"between 0 and 1, got 1\.5"),
    (
        "vanilla-kd",
        "temperature",
        0,
        r"`temperature` to be a number above 0, got 0 \(method vanilla-kd\)\. Pass --method",
    ),
    ("vanilla-kd", "temperature", float("nan"), r"`temperature` to be a number above 0, got nan"),
    ("vanilla-kd", "temperature", "4", r"`temperature` to be a number above 0, got '4'"),
    ("vanilla-kd", "kd_weight", -1.0, r"`kd_weight` to be at least 0, got -1\.0"),
    ("vanilla-kd", "kd_weight", 0.0, r"`kd_weight` to be above 0, got 0 .*Without a soft term use method supervised"),
    ("vanilla-kd", "kd_weight", float("inf"), r"`kd_weight` to be a finite number, got inf"),
    ("vanilla-kd", "ce_weight", -0.1, r"`ce_weight` to be at least 0, got -0\.1"),
    ("vanilla-kd", "class_reduction", "batchmean", r"`class_reduction` to be one of sum, mean, got 'batchmean'"),
    ("vanilla-kd", "soft_loss", "mae", r"`soft_loss` to be one of kl, mse, got 'mae'"),
    ("vanilla-kd", "soft_loss", "mse", r"`class_reduction` to be mean with soft_loss mse, got 'sum'"),
    ("vanilla-kd", "label_smoothing", 2, r"`label_smoothing` to be between 0 and 1, got 2"),
]
