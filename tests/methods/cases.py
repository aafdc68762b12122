"""One row for each method of the table: its defaults with their source, wrong options, and a worked total.

The worked numbers are those of the card of vanilla distillation: z = [1, 2, 0.5], v = [2, 3.5, -1], y = 1, one sample;
CE = 0.464369, T^2 KL = 0.636975 at T = 4.
"""

from __future__ import annotations

# Name -> defaults, and where each set of values comes from.
DEFAULTS = {
    # Card adaptive-label-smoothing: no constant to tune; "plain CE" until the first checkpoint, "clamp ... off by default".
    "adaptive-label-smoothing": {
        "mode": "live",
        "prior": "self",
        "alpha": None,
        "largest_alpha": 1.0,
        "first": "labels",
        "codec": "float16",
        "k": 64,
    },
    # Card instance-label-smoothing: the released code.
    "beta-smoothing": {
        "concentration": 3.0,
        "weight": 0.6,
        "momentum": 0.999,
        "confidence": "student",
        "average": "train",
    },
    # Card bookkd, equation 5: "Defaults: w_ce 0.1, w_kd 0.9, T 4, eps 0.1 (CIFAR)"; the range of the scalar from equation 3.
    "bookkd": {
        "temperature": 4.0,
        "kd_weight": 0.9,
        "ce_weight": 0.1,
        "label_smoothing": 0.1,
        "ensemble": "probability",
        "weights": "uniform",
        "correct": False,
        "flatten": 0.0,
        "entropy_low": None,
        "entropy_high": None,
        "learn_scale": True,
        "scale_lr": 0.05,  # the step of the card's worked example
        "scale_low": 0.05,
        "scale_high": 20.0,
    },
    # Card kd-augmentation: a = 0.5 and T = 4, so 2 (1 - a) and 2 a.
    "ccd": {"temperature": 4.0, "kd_weight": 1.0, "ce_weight": 1.0},
    # Card cons-kd-ctc: the terms are certain, their weights unknown and so 1; two passes, temperature and KL as the tests that pin it.
    "cons-kd": {
        "form": "kl",
        "kd_weight": 1.0,
        "ctc_weight": 1.0,
        "temperature": 1.0,
        "t_squared": True,
        "frames": "all",
        "around": 1,
        "heads": 0,
        "heads_share": 0.25,
        "consistency_weight": 1.0,
        "ramp_epochs": 1,
        "between": "passes",
    },
    # Card cons-kd-ctc: frame KL at T = 1; lam 0.25 of Inter-KD, by a survey.
    "ctc-kd": {
        "form": "kl",
        "kd_weight": 1.0,
        "ctc_weight": 1.0,
        "temperature": 1.0,
        "t_squared": True,
        "frames": "all",
        "around": 1,
        "heads": 0,
        "heads_share": 0.25,
    },
    # Card dil-seq2seq: "Sensible defaults to test: K=3, tau=2, alpha=beta=.5".
    "dil-seq2seq": {
        "assistants": 3,
        "temperature": 2.0,
        "alpha": 0.5,
        "beta": 0.5,
        "ensemble": "probability",
        "weights": "uniform",
        "ramp_epochs": 0,
        "convex": True,
    },
    # Card modern-logit-losses: the released loss classes; T = 1 where the code has none.
    "dist": {"beta": 1.0, "gamma": 1.0, "temperature": 1.0, "ce_weight": 1.0, "t_squared": True},
    # Card modern-logit-losses: mdistiller, CIFAR-100.
    "dkd": {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "ce_weight": 1.0, "warmup_epochs": 20},
    # Card online-mutual: "L_m = CE + (1/(M-1)) sum_{l != m} KL(sg p_l || p_m), T = 1".
    "dml": {"peers": 2, "average": True},
    # Card extractive-kd, equation 4: "Default here: tau_s = 1, tau_t = 4, w = 1, rho = 1".
    "extractive-kd": {
        "teacher_temperature": 4.0,
        "student_temperature": 1.0,
        "kd_weight": 1.0,
        "ce_weight": 1.0,
        "share": 1.0,
        "rank": 1,
        "label_smoothing": 0.0,
    },
    # Card llm-kd: forward KL of draws at T = 1 without labels; beta of GKD, alpha "Code default a = 0.1".
    "llm-kd": {
        "divergence": "forward-kl",
        "temperature": 1.0,
        "kd_weight": 1.0,
        "ce_weight": 0.0,
        "beta": 0.5,
        "alpha": 0.1,
        "t_squared": True,
    },
    # Card modern-logit-losses: the released code.
    "logit-standardization": {"temperature": 2.0, "kd_weight": 9.0, "ce_weight": 0.1, "ddof": 1},
    # Card kdexplainer: "L = 0.1 CE + 0.9 T^2 KL, T = 4", "t = 10/epoch", "1e-2 for gates", "gates start moving at epoch 3".
    "kdexplainer": {
        "temperature": 4.0,
        "kd_weight": 0.9,
        "ce_weight": 0.1,
        "label_smoothing": 0.0,
        "gate_temperature": 10.0,
        "gate_lr": 0.01,
        "gate_start": 2,
    },
    # Card modern-logit-losses: "Per temperature T in {base, 2, 3, 5, 6}", base 4; weights of 1.
    "mlkd": {
        "temperatures": (4.0, 2.0, 3.0, 5.0, 6.0),
        "kd_weight": 1.0,
        "class_weight": 1.0,
        "batch_weight": 1.0,
        "ce_weight": 1.0,
    },
    # Card instance-label-smoothing: temperature from the released script, on the teacher's side alone; beta is our choice.
    "self-distillation": {"beta": 1.0, "temperature": 4.0, "student_temperature": 1.0, "t_squared": False},
    "supervised": {"label_smoothing": 0.0, "smoothing_over": "all"},  # plain cross-entropy
    # Card kdexplainer: the repository's students; block size and penalty are "tuned per model" there, and our choice here.
    "vam": {
        "temperature": 4.0,
        "kd_weight": 0.9,
        "ce_weight": 0.1,
        "label_smoothing": 0.0,
        "entropy_weight": 0.01,
        "blocks": 4,
        "layers": (),
        "gate_temperature": 1.0,
        "gate_lr": None,
        "keep_scale": True,
        "classifier": False,
    },
    "vanilla-kd": {
        "temperature": 4.0,  # RepDistiller and mdistiller, CIFAR-100 benchmark
        "kd_weight": 0.9,  # the same
        "ce_weight": 0.1,  # the same
        "t_squared": True,  # Hinton et al. 2015, section 2: "multiply them by T^2 when using both"
        "class_reduction": "sum",  # the divergence itself; F.kl_div(reduction="batchmean")
        "soft_loss": "kl",
        "label_smoothing": 0.0,
    },
    # Card takd: lambda 0.5 and T 5, the author's own pick for ResNet-110 to ResNet-20 on CIFAR-100 (issue 7).
    "takd": {"temperature": 5.0, "alpha": 0.5, "class_reduction": "sum"},
    # Card tfkd: the released code's values for small networks (self) and for ResNet-18 (reg), at 100 classes.
    "tfkd-reg": {
        "temperature": 20.0,
        "alpha": 0.1,
        "multiplier": 1.0,
        "confidence": 0.99,
        "form": "code",
        "class_reduction": "sum",
    },
    # Not on the card: the defaults of the released code, as ports of it have them.
    "uld": {"temperature": 1.0, "kd_weight": 1.0, "ce_weight": 1.0},
    "tfkd-self": {"temperature": 20.0, "alpha": 0.95, "multiplier": 1.0, "class_reduction": "sum"},
}

# Name -> (fields with the temperatures asked, fields that must be dense) with the defaults.
NEEDS = {
    "adaptive-label-smoothing": ({}, ()),
    "beta-smoothing": ({}, ()),
    "bookkd": ({"logits": (4.0,)}, ()),
    "ccd": ({"logits": (4.0,)}, ("logits",)),
    "cons-kd": ({"logits": (1.0,)}, ()),
    "ctc-kd": ({"logits": (1.0,)}, ()),
    "dil-seq2seq": ({}, ()),
    "dist": ({"logits": (1.0,)}, ("logits",)),
    "dkd": ({"logits": (4.0,)}, ("logits",)),
    "dml": ({}, ()),
    "extractive-kd": ({"logits": (1.0,)}, ("logits",)),
    "kdexplainer": ({"logits": (4.0,)}, ()),
    "llm-kd": ({"logits": (1.0,)}, ()),
    "logit-standardization": ({"logits": (2.0,)}, ("logits",)),
    "mlkd": ({"logits": (2.0, 3.0, 4.0, 5.0, 6.0)}, ("logits",)),
    "self-distillation": ({"logits": (1.0,)}, ("logits",)),
    "supervised": ({}, ()),
    "takd": ({"logits": (5.0,)}, ()),
    "tfkd-reg": ({}, ()),
    "tfkd-self": ({"logits": (20.0,)}, ()),
    "uld": ({"logits": (1.0,)}, ()),
    "vam": ({"logits": (4.0,)}, ()),
    "vanilla-kd": ({"logits": (4.0,)}, ()),
}

# Name -> views of a sample in one batch, where there are several.
VIEWS = {"ccd": 2, "mlkd": 2}

# Methods that relate the rows of a batch: their worked sample is the three rows of card modern-logit-losses, of which the first is
# that of all others, with the labels of the other two hidden; each row stands there once a view.
RELATIONAL = ("ccd", "dist", "mlkd")

# Methods of speech, whose worked sample and data are others: see tests/methods/speech.py.
SPEECH = ("cons-kd", "ctc-kd")

# What a student with gates says of them in the worked sample: card kdexplainer, the mean of the two row entropies of test 4.
GATE_ENTROPY = (0.635455 + 0.650094) / 2

# Name -> total on the worked sample with the defaults, from numbers on the cards.
TOTALS = {
    "adaptive-label-smoothing": 0.464369,  # no checkpoint yet: cross-entropy
    # 0.4 CE + 0.6 (0.8 CE + 0.1 (CE + 1) + 0.1 (CE + 1.5)): -log q is CE, CE + 1 and CE + 1.5.
    "beta-smoothing": 0.4 * 0.464369 + 0.6 * (0.464369 + 0.25),
    "bookkd": 0.1 * 0.547702 + 0.9 * 0.636975,  # label smoothing 0.1, and the one-teacher L_book at a = 1
    # The same view twice, of which the teacher says the same: 1.5 KL, card kd-augmentation; three rows as of mlkd.
    "ccd": 0.464369 + 1.5 * 0.271685,
    "cons-kd": 0.842712,  # card cons-kd-ctc, weights 1 and frame KL
    "ctc-kd": 0.504357 + 0.162295,  # card cons-kd-ctc, CTC and frame KL of the first pass
    "dil-seq2seq": 4 * 0.5 * 0.464369,  # a student and three assistants that agree: half of the labels' term each
    "dist": 0.464369 + 0.010950 + 0.011950,
    "dkd": 0.464369 + 6.060594 / 20,  # the first of 20 epochs of warm-up
    "dml": 2 * 0.464369,  # peers that agree teach one another nothing
    "extractive-kd": 0.464369 + 0.166682,
    "kdexplainer": 0.619714,  # as vanilla-kd
    "llm-kd": 0.1365202,  # KL at T = 1 of softmax(2, 3.5, -1) from softmax(1, 2, 0.5), by numpy in float64
    "logit-standardization": 0.1 * 0.464369 + 0.419165,
    # Two views; 1.3285797 by the card's equations in numpy over T = 2 to 6, of which T = 4 is on the card.
    "mlkd": 2 * (0.4643688 + 1.3285797),
    "self-distillation": 0.464369 + 0.039283 + 1.008735,  # CE + KL + H of the teacher at T = 4
    "supervised": 0.464369,
    "takd": 0.575697,  # card takd: teacher -> student
    "tfkd-reg": 0.436489,
    "tfkd-self": 0.05 * 0.464369 + 0.95 * 0.824327,
    # CE, and the differences of the sorted softmax(z) and softmax(v), as in the case of softened_mse.
    "uld": 0.464369 + 0.181684 + 0.050440 + 0.131243,
    "vam": 0.619714 + 0.01 * GATE_ENTROPY,
    "vanilla-kd": 0.619714,  # 0.1 * 0.464369 + 0.9 * 0.636975
}

# Method, options that contradict each other, what the message says.
CONTRADICTIONS = [
    (
        "adaptive-label-smoothing",
        {"codec": "int8"},
        r"`codec` to be float16 with mode live, got 'int8' \(method adaptive",
    ),
    ("adaptive-label-smoothing", {"mode": "chapter", "k": 3}, r"`k` to be 64 with codec float16, got 3"),
    ("adaptive-label-smoothing", {"mode": "final", "first": "uniform"}, r"`first` to be labels with mode final"),
    ("adaptive-label-smoothing", {"prior": "uniform", "mode": "final"}, r"`mode` to be live with prior uniform"),
    ("adaptive-label-smoothing", {"alpha": 0.1, "largest_alpha": 0.9}, r"`largest_alpha` to be 1\.0 with alpha 0\.1"),
    (
        "bookkd",
        {"learn_scale": False, "scale_lr": 0.1},
        r"`scale_lr` to be 0\.05 with learn_scale False, got 0\.1 \(method bookkd\)\. It changes nothing there: leave out",
    ),
    ("bookkd", {"learn_scale": False, "scale_low": 0.5}, r"`scale_low` to be 0\.05 with learn_scale False, got 0\.5"),
    ("bookkd", {"learn_scale": False, "scale_high": 2.0}, r"`scale_high` to be 20\.0 with learn_scale False, got 2\.0"),
    (
        "bookkd",
        {"scale_low": 1.0, "scale_high": 1.0},
        r"`scale_high` to be above scale_low, got 1\.0 \(method bookkd\)",
    ),
    ("bookkd", {"ce_weight": 0.0, "label_smoothing": 0.2}, r"`label_smoothing` to be 0 with ce_weight 0, got 0\.2"),
    (
        "beta-smoothing",
        {"confidence": "book", "momentum": 0.9},
        r"`momentum` to be 0\.999 with confidence book, got 0\.9 \(method beta-smoothing\)",
    ),
    (
        "beta-smoothing",
        {"confidence": "book", "average": "eval"},
        r"`average` to be train with confidence book, got 'eval'",
    ),
    ("cons-kd", {"kd_weight": 0.0, "form": "l2"}, r"`form` to be kl with kd_weight 0, got 'l2' \(method cons-kd\)"),
    (
        "cons-kd",
        {"kd_weight": 0.0, "ctc_weight": 0.0},
        r"`kd_weight` to be above 0, or ctc_weight, got 0 .*saying nothing",
    ),
    (
        "cons-kd",
        {"consistency_weight": 0.0, "ramp_epochs": 3},
        r"`ramp_epochs` to be 1 with consistency_weight 0, got 3",
    ),
    ("ctc-kd", {"form": "guided", "temperature": 2.0}, r"`temperature` to be 1\.0 with form guided, got 2\.0"),
    ("ctc-kd", {"form": "guided", "frames": "spikes"}, r"`frames` to be all with form guided, got 'spikes'"),
    ("ctc-kd", {"around": 2}, r"`around` to be 1 with frames all, got 2 \(method ctc-kd\)"),
    ("ctc-kd", {"heads_share": 0.5}, r"`heads_share` to be 0\.25 with heads 0, got 0\.5"),
    ("dist", {"beta": 0.0, "gamma": 0.0}, r"`beta` to be above 0, or gamma, got 0 \(method dist\)"),
    ("dkd", {"alpha": 0.0, "beta": 0.0}, r"`alpha` to be above 0, or beta, got 0 \(method dkd\)"),
    ("extractive-kd", {"share": 0.0, "rank": 2}, r"`rank` to be 1 with share 0, got 2 \(method extractive-kd\)"),
    (
        "extractive-kd",
        {"ce_weight": 0.0, "label_smoothing": 0.1},
        r"`label_smoothing` to be 0 with ce_weight 0, got 0\.1",
    ),
    ("llm-kd", {"beta": 0.3}, r"`beta` to be 0\.5 with divergence forward-kl, got 0\.3 \(method llm-kd\)"),
    ("llm-kd", {"divergence": "jsd", "alpha": 0.3}, r"`alpha` to be 0\.1 with divergence jsd, got 0\.3"),
    (
        "mlkd",
        {"kd_weight": 0.0, "class_weight": 0.0, "batch_weight": 0.0},
        r"`kd_weight` to be above 0, or class_weight or batch_weight, got 0 \(method mlkd\)",
    ),
    (
        "supervised",
        {"smoothing_over": "others"},
        r"`smoothing_over` to be all with label_smoothing 0, got 'others' \(method supervised\)",
    ),
    (
        "kdexplainer",
        {"kd_weight": 0.0, "ce_weight": 0.0},
        r"`kd_weight` to be above 0, or ce_weight, got 0 .*from labels",
    ),
    (
        "vam",
        {"kd_weight": 0.0, "ce_weight": 1.0, "temperature": 2.0},
        r"`temperature` to be 4\.0 with kd_weight 0, got 2\.0 \(method vam\)",
    ),
    ("vam", {"kd_weight": 0.0, "ce_weight": 0.0}, r"`kd_weight` to be above 0, or ce_weight, got 0 \(method vam\)"),
    ("vanilla-kd", {"ce_weight": 0.0, "label_smoothing": 0.1}, r"`label_smoothing` to be 0 with ce_weight 0, got 0\.1"),
]

# Method, option, value that is refused, what the message says.
REFUSED = [
    ("adaptive-label-smoothing", "alpha", 1.5, r"`alpha` to be between 0 and 1, got 1\.5 \(method adaptive"),
    ("adaptive-label-smoothing", "largest_alpha", 0.0, r"`largest_alpha` to be a number above 0, got 0\.0"),
    ("adaptive-label-smoothing", "k", 0, r"`k` to be a whole number of at least 1, got 0"),
    ("beta-smoothing", "concentration", 0.0, r"`concentration` to be a number above 0, got 0\.0 \(method beta"),
    ("beta-smoothing", "weight", 0.0, r"`weight` to be a number above 0, got 0\.0"),
    ("beta-smoothing", "weight", 1.1, r"`weight` to be between 0 and 1, got 1\.1"),
    ("beta-smoothing", "momentum", -0.1, r"`momentum` to be from 0 to below 1, got -0\.1"),
    ("beta-smoothing", "momentum", 1.0, r"`momentum` to be from 0 to below 1, got 1\.0 \(method beta-smoothing\)"),
    ("bookkd", "temperature", 0, r"`temperature` to be a number above 0, got 0 \(method bookkd\)"),
    ("bookkd", "kd_weight", 0.0, r"`kd_weight` to be above 0, got 0 "),
    ("bookkd", "ce_weight", -1.0, r"`ce_weight` to be at least 0, got -1\.0"),
    ("bookkd", "label_smoothing", 2, r"`label_smoothing` to be between 0 and 1, got 2"),
    ("bookkd", "weights", (-1.0, 2.0), r"`weights` to be uniform, accuracy or numbers"),
    ("bookkd", "flatten", 1.5, r"`flatten` to be between 0 and 0\.999, got 1\.5"),
    ("bookkd", "entropy_low", -1.0, r"`entropy` to be 0 <= low <= high"),
    ("bookkd", "scale_lr", 0.0, r"`scale_lr` to be a number above 0, got 0\.0"),
    ("bookkd", "scale_low", 2.0, r"`scale_low` to be between 0 and 1, got 2\.0"),
    ("bookkd", "scale_high", 0.5, r"`scale_high` to be between 1 and 1000000\.0, got 0\.5"),
    ("cons-kd", "kd_weight", -1.0, r"`kd_weight` to be at least 0, got -1\.0 \(method cons-kd\)"),
    ("cons-kd", "ctc_weight", -1.0, r"`ctc_weight` to be at least 0, got -1\.0"),
    ("cons-kd", "consistency_weight", float("nan"), r"`consistency_weight` to be a finite number, got nan"),
    ("cons-kd", "ramp_epochs", 0, r"`ramp_epochs` to be a whole number of at least 1, got 0"),
    ("ctc-kd", "form", "mse", r"`form` to be one of kl, l2, guided, got 'mse' \(method ctc-kd\)"),
    ("ctc-kd", "temperature", 0.0, r"`temperature` to be a number above 0, got 0\.0"),
    ("ctc-kd", "kd_weight", 0.0, r"`kd_weight` to be above 0, got 0 "),
    ("ctc-kd", "heads", -1, r"`heads` to be a whole number of at least 0, got -1"),
    ("ctc-kd", "heads_share", 1.0, r"`heads_share` to be below 1, where the last layer learns nothing, got 1"),
    ("dil-seq2seq", "assistants", 0, r"`assistants` to be a whole number of at least 1, got 0 \(method dil-seq2seq\)"),
    ("dil-seq2seq", "temperature", 0.0, r"`temperature` to be a number above 0, got 0\.0"),
    ("dil-seq2seq", "alpha", 0.0, r"`alpha` to be a number above 0, got 0\.0"),
    ("dil-seq2seq", "beta", 1.5, r"`beta` to be between 0 and 1, got 1\.5"),
    ("dil-seq2seq", "ramp_epochs", -1, r"`ramp_epochs` to be a whole number of at least 0, got -1"),
    ("dist", "beta", -1.0, r"`beta` to be at least 0, got -1\.0 \(method dist\)"),
    ("ccd", "temperature", 0.0, r"`temperature` to be a number above 0, got 0\.0 \(method ccd\)"),
    ("ccd", "kd_weight", 0.0, r"`kd_weight` to be above 0, got 0 "),
    ("ccd", "ce_weight", -1.0, r"`ce_weight` to be at least 0, got -1\.0"),
    ("dist", "temperature", 0.0, r"`temperature` to be a number above 0, got 0\.0"),
    ("dist", "ce_weight", float("inf"), r"`ce_weight` to be a finite number, got inf"),
    ("dkd", "alpha", -1.0, r"`alpha` to be at least 0, got -1\.0 \(method dkd\)"),
    ("dkd", "ce_weight", -0.1, r"`ce_weight` to be at least 0, got -0\.1"),
    ("dkd", "temperature", 0.0, r"`temperature` to be a number above 0, got 0\.0"),
    ("dkd", "warmup_epochs", 0, r"`warmup_epochs` to be a whole number of at least 1, got 0"),
    (
        "dml",
        "peers",
        1,
        r"`peers` to be a whole number of at least 2, got 1 \(method dml\)\. One network alone is method",
    ),
    ("extractive-kd", "teacher_temperature", 0.0, r"`teacher_temperature` to be a number above 0, got 0\.0"),
    ("extractive-kd", "student_temperature", -1.0, r"`student_temperature` to be a number above 0, got -1\.0"),
    ("extractive-kd", "share", 1.1, r"`share` to be between 0 and 1, got 1\.1"),
    ("extractive-kd", "rank", 0, r"`rank` to be a whole number of at least 1, got 0"),
    ("extractive-kd", "kd_weight", 0.0, r"`kd_weight` to be above 0, got 0 "),
    (
        "kdexplainer",
        "gate_temperature",
        0.0,
        r"`gate_temperature` to be a number above 0, got 0\.0 \(method kdexplainer",
    ),
    ("kdexplainer", "gate_lr", 0.0, r"`gate_lr` to be a number above 0, got 0\.0"),
    ("kdexplainer", "gate_start", -1, r"`gate_start` to be a whole number of at least 0, got -1"),
    ("llm-kd", "divergence", "js", r"`divergence` to be one of forward-kl, jsd, .*, got 'js' \(method llm-kd\)"),
    ("llm-kd", "temperature", 0, r"`temperature` to be a number above 0, got 0 \(method llm-kd\)"),
    ("llm-kd", "kd_weight", 0.0, r"`kd_weight` to be above 0, got 0 "),
    ("llm-kd", "ce_weight", -1.0, r"`ce_weight` to be at least 0, got -1\.0"),
    ("llm-kd", "beta", 1.5, r"`beta` to be between 0 and 1, got 1\.5"),
    ("llm-kd", "alpha", 1.0, r"`alpha` to be below 1, where nothing is left to learn, got 1"),
    ("logit-standardization", "ddof", 2, r"`ddof` to be 0 or 1, got 2"),
    ("logit-standardization", "temperature", 0.0, r"`temperature` to be a number above 0, got 0\.0"),
    ("logit-standardization", "kd_weight", 0.0, r"`kd_weight` to be above 0, got 0 "),
    ("mlkd", "temperatures", (), r"`temperatures` to be at least one, got \(\) \(method mlkd\)"),
    ("mlkd", "temperatures", (4.0, 4.0), r"`temperatures` to be without repeats, got 4\.0 twice"),
    ("mlkd", "temperatures", (4.0, 0.0), r"`temperatures` to be a number above 0, got 0\.0"),
    ("mlkd", "batch_weight", -1.0, r"`batch_weight` to be at least 0, got -1\.0"),
    ("self-distillation", "beta", 0.0, r"`beta` to be above 0, got 0 "),
    ("self-distillation", "temperature", 0.0, r"`temperature` to be a number above 0, got 0\.0"),
    ("takd", "alpha", 0.0, r"`alpha` to be a number above 0, got 0\.0 \(method takd\)"),
    ("takd", "temperature", 0.0, r"`temperature` to be a number above 0, got 0\.0"),
    ("tfkd-reg", "alpha", 0.0, r"`alpha` to be a number above 0, got 0\.0"),
    ("tfkd-reg", "confidence", 0.0, r"`confidence` to be above 0, got 0\.0"),
    ("tfkd-reg", "multiplier", 0.0, r"`multiplier` to be a number above 0, got 0\.0"),
    ("tfkd-self", "alpha", 1.1, r"`alpha` to be between 0 and 1, got 1\.1"),
    ("tfkd-self", "temperature", 0.0, r"`temperature` to be a number above 0, got 0\.0"),
    (
        "supervised",
        "label_smoothing",
        -0.1,
        r"`label_smoothing` to be between 0 and 1, got -0\.1 \(method supervised\)",
    ),
    ("supervised", "label_smoothing", 1.5, r"between 0 and 1, got 1\.5"),
    ("uld", "temperature", 0.0, r"`temperature` to be a number above 0, got 0\.0 \(method uld\)"),
    ("uld", "kd_weight", 0.0, r"`kd_weight` to be above 0, got 0 "),
    ("uld", "ce_weight", -1.0, r"`ce_weight` to be at least 0, got -1\.0"),
    ("vam", "blocks", 1, r"`blocks` to be a whole number of at least 2, got 1 \(method vam\)"),
    ("vam", "entropy_weight", -0.1, r"`entropy_weight` to be at least 0, got -0\.1"),
    ("vam", "gate_temperature", 0.0, r"`gate_temperature` to be a number above 0, got 0\.0"),
    ("vam", "gate_lr", -1.0, r"`gate_lr` to be a number above 0, got -1\.0"),
    ("vam", "kd_weight", -1.0, r"`kd_weight` to be at least 0, got -1\.0"),
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
