"""The table of losses: for each a maker of inputs, a reference written from the equation in numpy, and worked numbers.

Worked numbers: `VANILLA` is student z = [1, 2, 0.5] and teacher v = [2, 3.5, -1]; `LANGUAGE` is six classes with
teacher probabilities t and student logits x, of which K = {0, 1} is kept where a target is sparse.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from scipy.spatial.distance import cosine
from scipy.special import log_softmax, logsumexp, rel_entr, softmax
from scipy.stats import entropy, pearsonr, wasserstein_distance
from tests.losses.feature_cases import FEATURES
from tests.losses.regression_cases import REGRESSION
from tests.losses.speech_cases import SAID, SPEECH, Z1

from bookkd.book import RowIds, Sampled
from bookkd.core.fields import IGNORE_LABEL
from bookkd.losses import (
    DenseTarget,
    SampledTarget,
    SparseTarget,
    adaptive_smoothing,
    agreed_kl,
    batch_gram,
    class_gram,
    correlation_inter,
    correlation_intra,
    cross_entropy,
    decoupled_kl,
    generalised_jsd,
    probability_cross_entropy,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    smoothing_strength,
    soft_cross_entropy,
    soft_target_kl,
    softened_mse,
    student_entropy,
    truncated_kl,
    uld,
)
from bookkd.testing.losses import LossCase, SparseArrays, Worked

ROWS, CLASSES = 6, 5
Z, V = (1.0, 2.0, 0.5), torch.tensor([2.0, 3.5, -1.0], dtype=torch.float64)
T = torch.tensor([0.50, 0.20, 0.15, 0.08, 0.05, 0.02], dtype=torch.float64)
X = (1.0, 0.5, 0.0, -0.5, 0.2, -1.0)
TOP2 = SparseTarget.from_logits(T.log(), 2, (1.0,))
ALL6 = SparseTarget.from_logits(T.log(), 6, (1.0,))


def dense(logits):
    return (DenseTarget(logits),)


def bare(logits):
    return (logits,)


def sparse(k, *temperatures):
    return lambda logits: (SparseTarget.from_logits(logits, k, temperatures),)


def drawn(draws, temperature):
    """Targets of the codec's draws; every call draws the same."""

    def from_logits(logits):
        codec, values = Sampled(draws, temperature), logits.detach().double().numpy()
        said = codec.decode(codec.encode(values, RowIds(np.arange(len(values)), 0, "logits")), values.shape[1:])
        weights = torch.from_numpy(said.counts.to_padded(fill=0) / draws)
        return (SampledTarget(torch.from_numpy(said.classes.to_padded(fill=0)), weights, temperature, values.shape[1]),)

    return from_logits


def ref_drawn_ce(student, shares, *, temperature, t_squared, **rest):
    factor = temperature**2 if t_squared else 1
    return -factor * (shares * log_softmax(student / temperature, axis=-1)).sum(axis=-1)


def ref_drawn_kl(student, shares, *, temperature, t_squared, class_reduction):
    factor = temperature**2 if t_squared else 1
    return factor * rel_entr(shares, softmax(student / temperature, axis=-1)).sum(axis=-1)


# The shares of draws 0, 0, 1: gradient p - w at T = 1.
DRAWN = SampledTarget(torch.tensor([0, 1]), torch.tensor([2 / 3, 1 / 3], dtype=torch.float64), 1.0, 6)
DRAWN_GRADIENT = (0.359427 - 2 / 3, 0.218004 - 1 / 3, 0.132226, 0.080199, 0.161501, 0.048643)


def made(from_logits):
    def make(generator):
        student, teacher = 2 * torch.randn(2, ROWS, CLASSES, generator=generator, dtype=torch.float64)
        return (student, *from_logits(teacher))

    return make


def make_labels(generator):
    student = 2 * torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64)
    return student, torch.tensor([4, 0, IGNORE_LABEL, 2, 1, 3])


def make_mixed(generator):
    student, labels = make_labels(generator)
    ratio = torch.rand(ROWS, generator=generator, dtype=torch.float64)
    return student, labels, torch.tensor([0, 0, 3, IGNORE_LABEL, 4, 2]), ratio


# References. scipy.special.rel_entr(a, b) is a log(a / b), and 0 at a = 0.


def divergence(a, b):
    return rel_entr(a, b).sum(-1)


def outcomes(student, teacher, temperature):
    """Probabilities of student and teacher over the classes, or over the kept classes and the rest."""
    q = softmax(student / temperature, axis=-1)
    if not isinstance(teacher, SparseArrays):
        return q, softmax(teacher / temperature, axis=-1)
    q_kept = np.take_along_axis(q, teacher.indices, axis=-1)
    tail = np.exp(teacher.log_tail_mass[..., teacher.temperatures.index(temperature)])[..., None]
    p_kept = (1 - tail) * softmax(teacher.values / temperature, axis=-1)
    if q_kept.shape == q.shape:
        return q_kept, p_kept
    rest = 1 - q_kept.sum(-1, keepdims=True)
    return np.concatenate([q_kept, rest], -1), np.concatenate([p_kept, tail], -1)


def factor(temperature, t_squared):
    return temperature * temperature if t_squared else 1.0


def ref_kl(student, teacher, *, temperature, t_squared, class_reduction):
    q, p = outcomes(student, teacher, temperature)
    classes = student.shape[-1] if class_reduction == "mean" else 1
    return factor(temperature, t_squared) * divergence(p, q) / classes


def ref_soft_ce(student, teacher, *, temperature, t_squared):
    q, p = outcomes(student, teacher, temperature)
    return -factor(temperature, t_squared) * (p * np.log(q)).sum(-1)


def ref_probability_ce(student, probabilities, *, temperature, t_squared):
    log_q = student / temperature - logsumexp(student / temperature, axis=-1, keepdims=True)
    return -factor(temperature, t_squared) * np.einsum("nc,nc->n", probabilities, log_q)


def ref_mse(student, teacher, *, temperature, t_squared, class_reduction="mean"):
    q, p = outcomes(student, teacher, temperature)
    return factor(temperature, t_squared) * getattr(np.square(p - q), class_reduction)(-1)


def ref_entropy(student, *, temperature):
    return entropy(softmax(student / temperature, axis=-1), axis=-1)


def ref_reverse(student, teacher, *, temperature, t_squared):
    q, p = outcomes(student, teacher, temperature)
    return factor(temperature, t_squared) * divergence(q, p)


def ref_jsd(student, teacher, *, beta, temperature, t_squared):
    q, p = outcomes(student, teacher, temperature)
    m = beta * p + (1 - beta) * q
    return factor(temperature, t_squared) * (beta * divergence(p, m) + (1 - beta) * divergence(q, m))


def ref_skew(student, teacher, *, alpha, temperature, t_squared):
    q, p = outcomes(student, teacher, temperature)
    return factor(temperature, t_squared) * divergence(p, alpha * p + (1 - alpha) * q)


def ref_skew_reverse(student, teacher, *, alpha, temperature, t_squared):
    q, p = outcomes(student, teacher, temperature)
    return factor(temperature, t_squared) * divergence(q, (1 - alpha) * p + alpha * q)


def ref_truncated(student, teacher, *, temperature, t_squared, renormalise):
    q, p = outcomes(student, teacher, temperature)
    q, p = q[..., : teacher.values.shape[-1]], p[..., : teacher.values.shape[-1]]
    p = p if renormalise == "none" else p / p.sum(-1, keepdims=True)
    q = q / q.sum(-1, keepdims=True) if renormalise == "both" else q
    return factor(temperature, t_squared) * rel_entr(p, q).sum(-1)


def ref_ce(student, labels, partner_labels=None, ratio=None, *, label_smoothing, smoothing_over="all"):
    log_q, n_classes = log_softmax(student, axis=-1), student.shape[-1]
    partner_labels = labels if partner_labels is None else partner_labels
    ratio = np.ones(len(labels)) if ratio is None else ratio
    wanted = ratio[:, None] * np.eye(n_classes)[labels] + (1 - ratio[:, None]) * np.eye(n_classes)[partner_labels]
    rest = 1 / n_classes if smoothing_over == "all" else (1 - wanted) / (n_classes - 1)
    wanted = (1 - label_smoothing) * wanted + label_smoothing * rest
    known = (labels != IGNORE_LABEL) & (partner_labels != IGNORE_LABEL)
    return np.where(known, -(wanted * log_q).sum(-1), 0.0)


def ref_adaptive(student, teacher, labels, *, alpha, largest, drawn=False):
    whole = softmax(student, axis=-1)
    q, p = (whole, teacher) if drawn else outcomes(student, teacher, 1.0)
    share = np.minimum(1 - entropy(whole, axis=-1) / np.log(student.shape[-1]), largest) if alpha is None else alpha
    wanted = (1 - share) * -np.log(whole[np.arange(len(labels)), np.maximum(labels, 0)]) - share * (p * np.log(q)).sum(
        -1
    )
    return np.where(labels == IGNORE_LABEL, 0.0, wanted)


def ref_decoupled(student, teacher, labels, *, alpha, beta, temperature, t_squared):
    q, p = outcomes(student, teacher, temperature)
    target = np.eye(q.shape[-1])[np.maximum(labels, 0)].astype(bool)
    p_y, q_y = p[target], q[target]
    binary = rel_entr(p_y, q_y) + rel_entr(1 - p_y, 1 - q_y)
    others = [x[~target].reshape(len(x), -1) / (1 - x[target])[:, None] for x in (p, q)]
    value = alpha * binary + beta * divergence(*others)
    return factor(temperature, t_squared) * np.where(labels == IGNORE_LABEL, 0.0, value)


def correlation(a, b):
    """Pearson's, with the 1e-8 of the released code beside the product of the norms."""
    product = len(a) * a.std() * b.std()
    return pearsonr(a, b)[0] * product / (product + 1e-8)


def ref_inter(student, teacher, *, temperature, t_squared):
    q, p = outcomes(student, teacher, temperature)
    return factor(temperature, t_squared) * (1 - np.array([correlation(a, b) for a, b in zip(q, p, strict=True)]))


def ref_intra(student, teacher, *, temperature, t_squared):
    q, p = outcomes(student, teacher, temperature)
    return np.asarray(
        factor(temperature, t_squared) * np.mean([1 - correlation(q[:, k], p[:, k]) for k in range(CLASSES)])
    )


def ref_gram(student, teacher, temperature, views, product):
    q, p = outcomes(student, teacher, temperature)
    pairs = [
        (np.einsum(product, p[v::views], p[v::views]), np.einsum(product, q[v::views], q[v::views]))
        for v in range(views)
    ]
    return np.mean([np.linalg.norm(theirs - ours) ** 2 / len(ours) for theirs, ours in pairs])


def ref_class_gram(student, teacher, *, temperature, views):
    return ref_gram(student, teacher, temperature, views, "bi,bj->ij")


def ref_batch_gram(student, teacher, *, temperature, views):
    return ref_gram(student, teacher, temperature, views, "ik,jk->ij")


def ref_agreed_kl(student, teacher, *, temperature, t_squared):
    q, p = outcomes(student, teacher, temperature)
    apart = rel_entr(p, q).sum(-1)
    weights = [2 - cosine(one, other) for one, other in zip(teacher[::2], teacher[1::2], strict=True)]
    return factor(temperature, t_squared) * (apart[::2].mean() + np.mean(weights * apart[1::2])) / 2


# Worked numbers.


def at(temperature, **more):
    return {"temperature": temperature, "t_squared": True, **more}


def kl_at(temperature, **more):
    return at(temperature, class_reduction="sum", **more)


PAIR = [[1.5, 0.5, 0.3], [0.8, 1.0, 0.2]], torch.tensor([[2.0, 1.0, 0.1], [1.0, 1.5, -0.5]], dtype=torch.float64)

VANILLA_KL = (
    Worked(Z, (V,), kl_at(1.0), 0.136520),
    Worked(Z, (V,), kl_at(2.0), 0.403105),
    Worked(Z, (V,), kl_at(4.0), 0.636975, (-0.103204, -0.366128, 0.469333)),
    Worked(Z, (V,), kl_at(20.0), 0.824327),
    Worked(Z, (V,), kl_at(1000.0), 0.860438),
    # T -> infinity: half the mean squared difference of the centred logits.
    Worked(Z, (V,), kl_at(1e5), 0.861111, (-0.222222, -0.388889, 0.611111), tolerance=1e-5),
    Worked(Z, (V,), {**kl_at(4.0), "t_squared": False}, 0.039811),
    Worked(Z, (V,), {**kl_at(4.0), "class_reduction": "mean"}, 0.636975 / 3),
    Worked(X, (T.log(),), kl_at(1.0), 0.090129),
)
TAIL_GRADIENT = (-0.140573, 0.018004, 0.038353, 0.023262, 0.046845, 0.014109)
TRUNCATED = {
    "none": Worked(
        X,
        (TOP2,),
        at(1.0, renormalise="none"),
        0.147809,
        (-0.248401, -0.047397, 0.092558, 0.056139, 0.113051, 0.034050),
    ),
    # p - t_K / M, with the card's p.
    "teacher": Worked(
        X,
        (TOP2,),
        at(1.0, renormalise="teacher"),
        0.567831,
        (0.359427 - 0.5 / 0.7, 0.218004 - 0.2 / 0.7, 0.132226, 0.080199, 0.161501, 0.048643),
    ),
    "both": Worked(X, (TOP2,), at(1.0, renormalise="both"), 0.018665, (-0.091826, 0.091826, 0, 0, 0, 0)),
}
FORGETS_TAIL = "a student equal to the teacher gives the kept classes mass M, and the target asks for more"
ENTROPY = "its value there is the teacher's entropy"


def ref_uld(student, teacher, *, temperature):
    q, p = outcomes(student, teacher, temperature)
    if not isinstance(teacher, SparseArrays):
        width = max(p.shape[-1], q.shape[-1])
        return sum_apart(*(np.pad(each, [(0, 0), (0, width - each.shape[-1])]) for each in (p, q)))
    k = teacher.values.shape[-1]
    largest = np.sort(softmax(student / temperature, axis=-1), axis=-1)[:, ::-1][:, :k]
    return sum_apart(p[:, :k], largest) + np.abs(1 - p[:, :k].sum(-1) - (1 - largest.sum(-1)))


def sum_apart(p, q):
    """scipy's distance between the sorted values, which are as many on both sides, times their number."""
    return np.array([len(a) * wasserstein_distance(a, b) for a, b in zip(p, q, strict=True)])


def other_classes(generator):
    student = 2 * torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64)
    return student, DenseTarget(2 * torch.randn(ROWS, CLASSES + 3, generator=generator, dtype=torch.float64))


# Card llm-kd: "ULD: [.6,.3,.1] vs [.5,.2,.2,.1] = .4"; either side may have the fewer classes.
FOUR, THREE_ = (0.5, 0.2, 0.2, 0.1), (0.3, 0.6, 0.1)
ULD = (
    Worked(tuple(np.log(FOUR)), (torch.tensor(THREE_).double().log(),), {"temperature": 1.0}, 0.4),
    Worked(tuple(np.log(THREE_)), (torch.tensor(FOUR).double().log(),), {"temperature": 1.0}, 0.4),
)


def truncated_case(renormalise, at_teacher, why):
    whole = Worked(X, (ALL6,), at(1.0, renormalise=renormalise), 0.090129)
    return LossCase(
        f"truncated_kl/{renormalise}",
        truncated_kl,
        at(4.0, renormalise=renormalise),
        made(sparse(3, 1.0, 4.0)),
        ref_truncated,
        (TRUNCATED[renormalise], whole),
        sparse(3, 1.0, 4.0),
        at_teacher,
        why,
    )


def divergence_cases(name, loss, hyper, reference, worked, **more):
    """A row on dense and a row on sparse targets, whose tail bucket is never empty in these checks."""
    on_sparse = sparse(3, 1.0, 4.0)
    return (
        LossCase(
            name,
            loss,
            at(4.0, **hyper),
            made(dense),
            reference,
            worked,
            dense,
            **more,
        ),
        LossCase(f"{name}/sparse", loss, at(4.0, **hyper), made(on_sparse), reference, (), on_sparse, **more),
    )


# Card modern-logit-losses; the last is the plain divergence, by its identity with alpha 1 and beta 1 - p_y.
P_Y = float(softmax(V.numpy() / 4)[1])
DECOUPLED = tuple(
    Worked(Z, (V, torch.tensor(1)), at(temperature, alpha=alpha, beta=beta), value)
    for temperature, alpha, beta, value in (
        (4.0, 1.0, 0.0, 0.273110),
        (4.0, 0.0, 1.0, 0.723435),
        (4.0, 1.0, 8.0, 6.060594),
        (1.0, 1.0, 0.0, 0.078271),
        (1.0, 0.0, 1.0, 0.306925),
        (4.0, 1.0, 1 - P_Y, 0.636975),
    )
)
Z3 = ((1.0, 2.0, 0.5), (0.2, -0.3, 1.5), (1.2, 0.1, -0.7))
V3 = torch.tensor([[2, 3.5, -1], [0, 0.5, 2.5], [2.2, 0.4, 0.3]], dtype=torch.float64)
SMALL_CONSTANT = "1e-8 beside the product of the norms"


def with_labels(logits):
    return DenseTarget(logits), torch.tensor([4, 0, IGNORE_LABEL, 2, 1, 3])


# Card adaptive-label-smoothing: p = [0.7, 0.2, 0.1], phi = [0.5, 0.3, 0.2], y = 0.
P3 = tuple(float(x) for x in np.log([0.7, 0.2, 0.1]))
PHI, FIRST, SECOND = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log(), torch.tensor(0), torch.tensor(1)
UNIFORM = torch.zeros(3, dtype=torch.float64)
ADAPTIVE, TENTH = {"alpha": None, "largest": 1.0}, {"alpha": 0.1, "largest": 1.0}
SMOOTHED = (
    Worked(P3, (PHI, FIRST), ADAPTIVE, 0.563345, (-0.164923, 0.118954, 0.045969)),
    # The student at the teacher: the gradient of cross-entropy shrunk by 1 - 0.270153.
    Worked(P3, (torch.tensor(P3).double(), FIRST), ADAPTIVE, 0.476932, (-0.218954, 0.145969, 0.072985)),
    Worked((0.0, 0.0, 0.0), (PHI, FIRST), ADAPTIVE, float(np.log(3))),  # uniform p: alpha = 0
    Worked(Z, (UNIFORM, SECOND), TENTH, 0.547702),  # label smoothing
    Worked(Z, (torch.tensor([-torch.inf, 0, -torch.inf]).double(), SECOND), ADAPTIVE, 0.464369),  # phi = e_y: plain
    Worked(P3, (PHI, FIRST), {"alpha": None, "largest": 0.0}, float(-np.log(0.7))),
)


def adaptive_case(name, from_logits, hyper, *worked):
    def arguments(logits):
        return (*from_logits(logits), torch.tensor([4, 1, IGNORE_LABEL, 2, 1, 3]))  # 0 is ruled out in a check

    def frozen(student, *_):
        return {} if hyper["alpha"] is not None else {"alpha": smoothing_strength(student, **hyper)}

    return LossCase(
        name, adaptive_smoothing, hyper, made(arguments), partial(ref_adaptive, drawn=name.endswith("drawn")), worked,
        arguments, "moves", "it looks at labels",
        frozen=frozen,
    )  # fmt: skip


def three(value, temperature, **more):
    return Worked(Z3, (V3,), {"temperature": temperature, **more}, value)


def gram_cases(name, loss, reference, *worked):
    return tuple(
        LossCase(case, loss, {"temperature": 4.0, "views": views}, made(dense), reference, numbers, dense)
        for case, views, numbers in ((name, 1, worked), (f"{name}/views", 2, ()))
    )


CASES = (
    LossCase(
        "cross_entropy",
        cross_entropy,
        {"label_smoothing": 0.0},
        make_labels,
        ref_ce,
        (
            Worked(
                Z,
                (torch.tensor(1),),
                {"label_smoothing": 0.0},
                0.464369,
                (0.231224, 0.628532 - 1, 0.140244),
            ),
        ),
        at_teacher="moves",
        why="it looks at labels",
    ),
    LossCase(
        "cross_entropy/smoothed",
        cross_entropy,
        {"label_smoothing": 0.1},
        make_labels,
        ref_ce,
        # Card instance-label-smoothing: "0.547702 (eps/K form), 0.589369 (eps/(K-1) form)"; the gradient is q less the target.
        (
            Worked(
                Z,
                (torch.tensor(1),),
                {"label_smoothing": 0.1},
                0.547702,
                (0.231224 - 0.1 / 3, 0.628532 - 0.9 - 0.1 / 3, 0.140244 - 0.1 / 3),
            ),
            Worked(
                Z,
                (torch.tensor(1),),
                {"label_smoothing": 0.1, "smoothing_over": "others"},
                0.589369,
                (0.231224 - 0.05, 0.628532 - 0.9, 0.140244 - 0.05),
            ),
        ),
        at_teacher="moves",
        why="it looks at labels",
    ),
    LossCase(
        "cross_entropy/mixed_others",
        cross_entropy,
        {"label_smoothing": 0.1, "smoothing_over": "others"},
        make_mixed,
        ref_ce,
        at_teacher="moves",
        why="it looks at labels",
    ),
    LossCase(
        "cross_entropy/mixed",
        cross_entropy,
        {"label_smoothing": 0.1},
        make_mixed,
        ref_ce,
        at_teacher="moves",
        why="it looks at labels",
    ),
    adaptive_case("adaptive_smoothing", dense, ADAPTIVE, *SMOOTHED),
    adaptive_case("adaptive_smoothing/constant", dense, TENTH),
    adaptive_case("adaptive_smoothing/clamped", dense, {"alpha": None, "largest": 0.5}),
    adaptive_case("adaptive_smoothing/sparse", sparse(2, 1.0), ADAPTIVE),
    adaptive_case("adaptive_smoothing/drawn", drawn(7, 1.0), ADAPTIVE),
    LossCase("soft_target_kl", soft_target_kl, kl_at(4.0), made(dense), ref_kl, VANILLA_KL, from_logits=dense),
    LossCase(
        "soft_target_kl/mean", soft_target_kl, at(2.0, class_reduction="mean"), made(bare), ref_kl, from_logits=bare
    ),
    LossCase(
        "soft_target_kl/sparse",
        soft_target_kl,
        kl_at(4.0),
        made(sparse(2, 1.0, 4.0)),
        ref_kl,
        (Worked(X, (TOP2,), kl_at(1.0), 0.045038, TAIL_GRADIENT), Worked(X, (ALL6,), kl_at(1.0), 0.090129)),
        sparse(2, 1.0, 4.0),
    ),
    LossCase(
        "soft_target_kl/drawn",
        soft_target_kl,
        kl_at(2.0),
        made(drawn(7, 2.0)),
        ref_drawn_kl,
        # (2/3) log(2/3 / 0.359427) + (1/3) log(1/3 / 0.218004)
        (Worked(X, (DRAWN,), kl_at(1.0), 0.553396, DRAWN_GRADIENT),),
        drawn(7, 2.0),
        at_teacher="moves",
        why="draws are the teacher on average only: so is the gradient zero there",
    ),
    LossCase(
        "soft_cross_entropy/drawn",
        soft_cross_entropy,
        at(2.0),
        made(drawn(7, 2.0)),
        ref_drawn_ce,
        (Worked(X, (DRAWN,), at(1.0), 1.189910, DRAWN_GRADIENT),),
        drawn(7, 2.0),
        at_teacher="moves",
        why="draws are the teacher on average only: so is the gradient zero there",
    ),
    LossCase(
        "soft_target_kl/all-kept",
        soft_target_kl,
        kl_at(2.0),
        made(sparse(CLASSES, 2.0)),
        ref_kl,
        from_logits=sparse(CLASSES, 2.0),
    ),
    *divergence_cases(
        "soft_cross_entropy",
        soft_cross_entropy,
        {},
        ref_soft_ce,
        (
            Worked(Z, (V,), {"temperature": 4.0, "t_squared": False}, 1.048546),
            Worked(X, (T.log(),), at(1.0), 1.473244),
        ),
        at_teacher="stationary",
        why=ENTROPY,
    ),
    LossCase(
        "probability_cross_entropy",
        probability_cross_entropy,
        at(4.0),
        made(lambda logits: ((logits / 4).softmax(-1),)),
        ref_probability_ce,
        (Worked(X, (T,), at(1.0), 1.473244),),
        lambda logits: ((logits / 4).softmax(-1),),
        "stationary",
        ENTROPY,
    ),
    LossCase(
        "softened_mse",
        softened_mse,
        at(4.0),
        made(dense),
        ref_mse,
        # By hand, T = 1, from the card's softmax(z) and softmax(v).
        (
            Worked(Z, (V,), at(1.0), (0.050440**2 + 0.181684**2 + 0.131243**2) / 3),
            Worked(Z1, (SAID,), at(1.0, class_reduction="sum"), 0.090612 / 2),  # card cons-kd-ctc, L_SKD by frame
        ),
        dense,
    ),
    LossCase("softened_mse/sum", softened_mse, at(4.0, class_reduction="sum"), made(dense), ref_mse, (), dense),
    LossCase(
        "student_entropy",
        student_entropy,
        {"temperature": 4.0},
        lambda generator: (2 * torch.randn(ROWS, CLASSES, generator=generator, dtype=torch.float64),),
        ref_entropy,
        # Card bookkd: entropy of the student at T = 4, with a = 1 and with the best a (2.489799).
        (
            Worked(Z, (), {"temperature": 4.0}, 1.086096),
            Worked(Z, (), {"temperature": 4.0 / 2.489799}, 1.020675),
        ),
        at_teacher="moves",
        why="it looks at no teacher",
    ),
    *divergence_cases(
        "reverse_kl",
        reverse_kl,
        {},
        ref_reverse,
        (Worked(X, (T.log(),), at(1.0), 0.116259),),
    ),
    *divergence_cases(
        "generalised_jsd",
        generalised_jsd,
        {"beta": 0.3},
        ref_jsd,
        (
            Worked(X, (T.log(),), at(1.0, beta=0.5), 0.024795),
            Worked(X, (T.log(),), at(1.0, beta=0.1), 0.008242),
            Worked(X, (T.log(),), at(1.0, beta=0.9), 0.010052),
            Worked(X, (T.log(),), at(1.0, beta=0.0), 0.090129),
            Worked(X, (T.log(),), at(1.0, beta=1.0), 0.116259),
        ),
    ),
    *divergence_cases(
        "skew_kl",
        skew_kl,
        {"alpha": 0.1},
        ref_skew,
        (
            Worked(X, (T.log(),), at(1.0, alpha=0.1), 0.075413),
            Worked(X, (T.log(),), at(1.0, alpha=0.0), 0.090129),
        ),
    ),
    *divergence_cases(
        "skew_reverse_kl",
        skew_reverse_kl,
        {"alpha": 0.1},
        ref_skew_reverse,
        (
            Worked(X, (T.log(),), at(1.0, alpha=0.1), 0.087089),
            Worked(X, (T.log(),), at(1.0, alpha=0.0), 0.116259),
        ),
    ),
    truncated_case("none", "moves", FORGETS_TAIL),
    truncated_case("teacher", "moves", FORGETS_TAIL),
    truncated_case("both", "zero", ""),
    LossCase(
        "decoupled_kl",
        decoupled_kl,
        at(4.0, alpha=1.0, beta=8.0),
        made(with_labels),
        ref_decoupled,
        DECOUPLED,
        with_labels,
    ),
    LossCase(
        "correlation_inter",
        correlation_inter,
        at(2.0),
        made(dense),
        ref_inter,
        (three(0.010950, 1.0, t_squared=True), three(0.053290, 4.0, t_squared=False)),
        dense,
        why=SMALL_CONSTANT,
        slack=1e-5,
    ),
    LossCase(
        "correlation_intra",
        correlation_intra,
        at(2.0),
        made(dense),
        ref_intra,
        (three(0.011950, 1.0, t_squared=True), three(0.088238, 4.0, t_squared=False)),
        dense,
        why=SMALL_CONSTANT,
        slack=1e-5,
    ),
    *gram_cases("class_gram", class_gram, ref_class_gram, three(0.041288, 1.0, views=1), three(0.002881, 4.0, views=1)),
    *gram_cases("batch_gram", batch_gram, ref_batch_gram, three(0.040865, 1.0, views=1), three(0.001219, 4.0, views=1)),
    LossCase(
        "agreed_kl",
        agreed_kl,
        at(4.0),
        made(dense),
        ref_agreed_kl,
        (Worked(PAIR[0], (PAIR[1],), at(4.0, t_squared=False), 0.008117),),  # card kd-augmentation, test 3
        dense,
        shift_invariant=False,
        together=2,
    ),
    LossCase("uld", uld, {"temperature": 2.0}, made(dense), ref_uld, ULD, dense),
    LossCase("uld/other classes", uld, {"temperature": 2.0}, other_classes, ref_uld),
    LossCase("uld/sparse", uld, {"temperature": 4.0}, made(sparse(3, 1.0, 4.0)), ref_uld, (), sparse(3, 1.0, 4.0)),
    *REGRESSION,
    *SPEECH,
    *FEATURES,
)
