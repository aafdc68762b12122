"""Rows of the losses on features, relations and dense maps, with the numbers of the cards.

References are numpy float64 from the equations, one sample, pair or triple at a time. `FS` and `FT` are the cards' maps
(2, 2, 1, 2), `S` and `T` their vectors (3, 2).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import norm

from bookkd.core.fields import IGNORE_LABEL
from bookkd.losses import (
    DenseTarget,
    SparseTarget,
    activation_boundary,
    adaptive_cross_entropy,
    cc_kernel,
    cc_neighbours,
    crd,
    csc,
    cwd,
    feature_l1,
    feature_mse,
    hcl,
    intra_class_variance,
    nst,
    orthogonal_projection,
    overhaul,
    pairwise_similarity,
    pkt,
    rkd_angle,
    rkd_distance,
    selective_kl,
    similarity_preserving,
    vid,
)
from bookkd.testing.losses import LossCase, SparseArrays, Worked

ROWS = 6
FS = ((((1, 2),), ((0, 1),)), (((2, 0),), ((1, 1),)))
FT = ((((1, 1),), ((1, 2),)), (((0, 2),), ((3, 1),)))
S, T = ((1, 0), (0, 2), (2, 1)), ((0, 1), (1, 1), (3, 0))
LABELS = torch.tensor([4, 1, IGNORE_LABEL, 2, 1, 3])  # 0 is ruled out in a check
GROUPS = torch.tensor([0, 1, 0, IGNORE_LABEL, 1, 2])


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def drawn(*shape, teacher=None):
    """A maker of student [6, *shape] and teacher, of the same shape or another."""

    def make(generator):
        student = torch.randn(ROWS, *shape, generator=generator, dtype=torch.float64)
        return student, torch.randn(ROWS, *(teacher or shape), generator=generator, dtype=torch.float64)

    return make


def bare(features):
    return (features,)


# References.


def each(values):
    """Mean over all but the first axis."""
    return values.reshape(len(values), -1).mean(1)


def ref_mse(student, teacher):
    return each((student - teacher) ** 2)


def shrunk(maps, height, width):
    """Means over equal blocks."""
    n, c, h, w = maps.shape
    return maps.reshape(n, c, height, h // height, width, w // width).mean((3, 5))


def ref_mse_pooled(student, teacher):
    return ref_mse(student, shrunk(teacher, *student.shape[2:]))


def ref_l1(student, teacher):
    return each(np.abs(student - teacher))


def ref_nst(student, teacher):
    def kernel(a, b):
        return np.mean([[(x @ y) ** 2 / (x @ x) / (y @ y) for x in a] for y in b])

    flat = [maps.reshape(*maps.shape[:2], -1) for maps in (student, teacher)]
    return np.array([kernel(t, t) + kernel(s, s) - 2 * kernel(s, t) for s, t in zip(*flat, strict=True)])


def ref_vid(student, teacher, variance=None):
    deviation = np.ones(student.shape[:2]) if variance is None else np.sqrt(variance)
    deviation = deviation.reshape(*deviation.shape, *[1] * (student.ndim - 2))
    return each(-norm.logpdf(teacher, student, deviation) - math.log(2 * math.pi) / 2)


def ref_hcl(student, teacher):
    used = [size for size in (4, 2, 1) if size < student.shape[2]]
    values = [ref_mse(student, teacher), *(ref_mse(shrunk(student, k, k), shrunk(teacher, k, k)) for k in used)]
    return np.average(values, axis=0, weights=[2.0**-k for k in range(len(values))])


def ref_boundary(student, teacher, *, margin):
    off = np.where((student > -margin) & (teacher <= 0), (student + margin) ** 2, 0)
    on = np.where((student <= margin) & (teacher > 0), (student - margin) ** 2, 0)
    return (off + on).reshape(len(student), -1).sum(1)


def ref_overhaul(student, teacher, margins=None):
    m = np.full_like(student, -np.inf) if margins is None else np.broadcast_to(margins[..., None, None], student.shape)
    value = np.select(
        [(student > m) & (teacher <= m), (student > teacher) & (m < teacher) & (teacher <= 0), teacher > 0],
        [np.where(np.isfinite(m), student - m, 0) ** 2, (student - teacher) ** 2, (student - teacher) ** 2],
    )
    return value.reshape(len(student), -1).sum(1)


def ref_sp(student, teacher):
    def gram(features):
        found = np.array([[np.vdot(a, b) for b in features] for a in features])
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    return np.linalg.norm(gram(student) - gram(teacher)) ** 2 / len(student) ** 2


def huber(a, b):
    apart = np.abs(a - b)
    return np.where(apart < 1, apart**2 / 2, apart - 0.5).mean()


def ref_distance(student, teacher):
    found = [cdist(x.reshape(len(x), -1), x.reshape(len(x), -1)) for x in (student, teacher)]
    return huber(*(x / x[x > 0].mean() for x in found))


def ref_angle(student, teacher):
    def angles(x):
        found = np.zeros((len(x),) * 3)
        for i, j, k in np.ndindex(found.shape):
            a, b = x[j] - x[i], x[k] - x[i]
            if i not in (j, k):
                found[i, j, k] = (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)
        return found

    return huber(angles(student), angles(teacher))


def cosines(x):
    x = x.reshape(len(x), -1)
    return 1 - cdist(x, x, "cosine")


def ref_pkt(student, teacher):
    q, p = ((cosines(x) + 1) / 2 for x in (student, teacher))
    q, p = (x / x.sum(1, keepdims=True) for x in (q, p))
    return (p * np.log((p + 1e-7) / (q + 1e-7))).mean()


def ref_neighbours(student, teacher):
    return np.mean(
        [np.abs(student[i] - teacher[i]) @ np.abs(student[i + 1] - teacher[i + 1]) for i in range(len(student) - 1)]
    )


def ref_kernel(student, teacher, *, gamma, order):
    def kernel(x):
        terms = [(2 * gamma) ** p / math.factorial(p) * cosines(x) ** p for p in range(order + 1)]
        return math.exp(-2 * gamma) * sum(terms)

    return ((kernel(student) - kernel(teacher)) ** 2).mean()


def ref_crd(student, teacher, labels=None, *, temperature, population, normaliser):
    close = np.exp((1 - cdist(student, teacher, "cosine")) / temperature)
    kept = [
        [j for j in range(len(teacher)) if j != i and (labels is None or labels[j] < 0 or labels[i] != labels[j])]
        for i in range(len(student))
    ]
    counted = [close[i, [i, *others]] for i, others in enumerate(kept)]
    z = np.concatenate(counted).mean() * population if normaliser is None else normaliser
    total = 0.0
    for positive, *others in (row / z for row in counted):
        noise = len(others) / population
        total -= math.log(positive / (positive + noise + 1e-7))
        total -= sum(math.log(noise / (other + noise + 1e-7)) for other in others)
    return total / len(student)


def held_normaliser(student, teacher, labels=None):
    """What `normaliser=None` stands for: no other labels here than that of two rows of one class."""
    close = np.exp((1 - cdist(student.detach().numpy(), teacher.detach().numpy(), "cosine")) / 0.2)
    return {"normaliser": float(close.mean() * 50)}


def ref_csc(student, teacher):
    def relations(maps):
        vectors = [x.ravel() / np.linalg.norm(x) for x in maps]
        return np.array([np.outer(x, x) for x in vectors])

    return ref_mse(relations(student), relations(teacher))


def ref_pairwise(student, teacher):
    def relations(maps):
        nodes = maps.reshape(*maps.shape[:2], -1)
        nodes = nodes / np.linalg.norm(nodes, axis=1, keepdims=True)
        return np.einsum("ncr,ncq->nrq", nodes, nodes)

    return ref_mse(relations(student), relations(teacher))


def ref_cwd(student, teacher, *, temperature, t_squared, channels):
    if channels == "last":
        student, teacher = np.moveaxis(student, -1, 1), np.moveaxis(teacher, -1, 1)
    q, p = (softmax(x.reshape(*x.shape[:2], -1) / temperature, axis=2) for x in (student, teacher))
    return rel_entr(p, q).sum(2).mean(1) * (temperature**2 if t_squared else 1)


def ref_adaptive(student, teacher, labels, *, form):
    found = []
    for z, t, y in zip(student, softmax(teacher, axis=-1), labels, strict=True):
        share = t[y] if form == "blend" else float(t.argmax() == y)
        wanted = share * t + (1 - share) * np.eye(len(t))[y]
        found.append(0.0 if y == IGNORE_LABEL else -(wanted * log_softmax(z)).sum())
    return np.array(found)


def ref_selective(student, teacher, labels, *, temperature, t_squared, factor, form):
    q = softmax(student / temperature, axis=-1)
    if isinstance(teacher, SparseArrays):
        place, best = (
            teacher.temperatures.index(temperature),
            teacher.indices[np.arange(ROWS), teacher.values.argmax(-1)],
        )
        tail = np.exp(teacher.log_tail_mass[:, place, None])
        p = np.concatenate([(1 - tail) * softmax(teacher.values / temperature, axis=-1), tail], -1)
        q = np.take_along_axis(q, teacher.indices, -1)
        q = np.concatenate([q, 1 - q.sum(-1, keepdims=True)], -1)
    else:
        p, best = softmax(teacher / temperature, axis=-1), teacher.argmax(-1)
    w = factor * (1 + (best == labels))
    squared = temperature**2 if t_squared else 1
    if form == "clean":
        return squared * w * rel_entr(p, q).sum(-1)
    entropy, cross = -(p * np.log(p)).sum(-1), -(p * np.log(q)).sum(-1)
    return squared * w * (np.log(w) - entropy + w * cross)


def ref_icv(student, labels, *, form):
    if form == "code":
        spread = student.var(1, ddof=1)
        return sum(np.linalg.norm(spread[labels == k]) for k in range(3))
    return sum(np.linalg.norm(student[labels == k].var(0, ddof=1)) for k in range(3) if (labels == k).sum() > 1)


def ref_opl(student, labels):
    close, pairs = cosines(student), {True: [], False: []}
    for i, j in np.ndindex(close.shape):
        if i != j and IGNORE_LABEL not in (labels[i], labels[j]):
            pairs[bool(labels[i] == labels[j])].append(close[i, j])
    alike, other = (sum(found) / (len(found) + 1e-6) for found in pairs.values())
    return 1 - alike + other / 2


# Rows.


def on_features(name, loss, reference, *worked, make=None, hyper=None, **more):
    return LossCase(
        name,
        loss,
        hyper or {},
        make or drawn(3, 4, 4),
        lambda *given, **options: np.asarray(reference(*given, **options)),
        worked,
        **{"from_logits": bare, "shift_invariant": False, "ruled_out": False, "samples": True, **more},
    )


def on_classes(name, loss, reference, hyper, *worked, given=lambda logits: (DenseTarget(logits),), **more):
    def arguments(logits):
        return (*given(logits), LABELS)

    def make(generator):
        student, teacher = 2 * torch.randn(2, ROWS, 5, generator=generator, dtype=torch.float64)
        return (student, *arguments(teacher))

    return LossCase(name, loss, hyper, make, reference, worked, arguments, **more)


def normals(generator):
    shape = (ROWS, 3, 4, 4)
    means, teacher = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return means, teacher, 0.1 + torch.rand(*shape[:2], generator=generator, dtype=torch.float64)


def with_margins(generator):
    student, teacher = drawn(3, 2, 2)(generator)
    return student, teacher, -torch.rand(ROWS, 3, generator=generator, dtype=torch.float64)


def behind_margins(generator):
    student, teacher, margins = with_margins(generator)
    return student, teacher.maximum(margins[..., None, None])


def with_groups(generator):
    return torch.randn(ROWS, 4, generator=generator, dtype=torch.float64), GROUPS


def of_nobody(name, loss, reference, hyper, worked):
    why = "it looks at no teacher"
    return on_features(
        name, loss, reference, worked, make=with_groups, hyper=hyper, from_logits=None, at_teacher="moves", why=why
    )


def of_sides(name, loss, reference, *worked, **more):
    """A relation of vectors, of which those of the teacher are wider, and of maps."""
    return (
        on_features(name, loss, reference, *worked, make=drawn(4), **more),
        on_features(f"{name}/wider", loss, reference, make=drawn(4, teacher=(5,)), **more),
    )


def crd_case(name, normaliser, labels, *worked):
    hyper = {"temperature": 0.2, "population": 50, "normaliser": normaliser}

    def make(generator):
        return (*drawn(4)(generator), *labels)

    why, frozen = "it tells samples apart", None if normaliser is not None else held_normaliser
    return on_features(
        name, crd, ref_crd, *worked, make=make, hyper=hyper, at_teacher="moves", why=why, frozen=frozen,
        from_logits=lambda features: (features, *labels),
    )  # fmt: skip


V5 = torch.full((2, 2), 5.0, dtype=torch.float64)
RAMP = tuple(tuple(map(tuple, row)) for row in (np.arange(64.0).reshape(1, 1, 8, 8) / 63).tolist()[0])
OFFSET = ((((0.3,) * 8,) * 8,),)
A, B = ((-2.0,), (-0.5,), (0.3,), (1.7,)), number(((-1.0,), (0.4,), (-0.2,), (2.0,)))
CWD_T = number((((0, 1, 2, 3), (1, 1, 0, -1)),))
CWD_S = (((0, 0.5, 1, 2), (0.5, 1, 0.5, 0)),)
ACE_S = tuple(map(tuple, np.log([[0.6, 0.3, 0.1], [0.3, 0.3, 0.4]]).tolist()))
ACE_T, ACE_Y = number([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]]).log(), torch.tensor([0, 2])
RIGHT = (number([2.0, 1.0, 0.1]), torch.tensor(0))
WRONG = (number([2.0, 1.0, 0.1]), torch.tensor(1))
ONE, GENTLE = (
    {"temperature": 1.0, "t_squared": True, "factor": 1.0},
    {"temperature": 2.0, "t_squared": True, "factor": 0.9},
)
F4 = ((1, 2, 3), (2, 2, 2), (0, 1, 5), (3, 1, 2))
Y4 = torch.tensor([0, 0, 1, 1])
CRD_V = number([[1.0, 0.5], [0.0, 1.0], [-1.0, 0.2]])


def selective_case(form, name="", given=lambda logits: (DenseTarget(logits),), worked=(), **more):
    hyper = {**GENTLE, "form": form}
    return on_classes(
        f"selective_kl/{form}{name}", selective_kl, ref_selective, hyper, *worked, given=given, **more
    )  # fmt: skip


def worked_selective(form, *numbers):
    return tuple(
        Worked((1.5, 0.5, 0.3), args, {**ONE, "factor": factor, "form": form}, value, slope)
        for args, factor, value, slope in numbers
    )


NO_DIVERGENCE = "the released code's value is no divergence; its gradient is"
FEATURES = (
    on_features("feature_mse", feature_mse, ref_mse, Worked(FS, (number(FT),), {}, 1.875)),
    on_features("feature_mse/vectors", feature_mse, ref_mse, Worked(S, (number(T),), {}, 1.0), make=drawn(4)),
    on_features("feature_mse/matrices", feature_mse, ref_mse, make=drawn(3, 4)),
    on_features(
        "feature_mse/pooled", feature_mse, ref_mse_pooled, make=drawn(3, 2, 2, teacher=(3, 4, 6)), from_logits=None
    ),
    on_features("feature_l1", feature_l1, ref_l1, Worked(((1.0, 2.0),), (number([[1, 4]]),), {}, 1.0), make=drawn(4)),
    on_features("nst", nst, ref_nst, Worked(FS, (number(FT),), {}, 0.225)),
    on_features("nst/few positions", nst, ref_nst, make=drawn(5, 2, 2, teacher=(7, 2, 2))),
    on_features(
        "vid",
        vid,
        ref_vid,
        Worked(FS, (number(FT), V5), {}, 0.992219),
        Worked(FT, (number(FT), V5), {}, 0.804719),
        make=normals,
        from_logits=lambda features: (features, torch.full(features.shape[:2], 5.0, dtype=features.dtype)),
        at_teacher="stationary",
        why="it is a likelihood: half the mean log variance is left",
    ),
    on_features("vid/one", vid, ref_vid, make=drawn(4)),
    on_features(
        "hcl",
        hcl,
        ref_hcl,
        Worked(OFFSET, (torch.zeros(1, 1, 8, 8, dtype=torch.float64),), {}, 0.09),
        Worked((RAMP,), (torch.zeros(1, 1, 8, 8, dtype=torch.float64),), {}, 0.326426),
        make=drawn(2, 4, 4),
    ),
    on_features("hcl/8", hcl, ref_hcl, make=drawn(1, 8, 8)),
    on_features(
        "activation_boundary",
        activation_boundary,
        ref_boundary,
        Worked(A, (B,), {"margin": 1.0}, (0 + 2.25 + 1.69 + 0) / 4),
        hyper={"margin": 1.0},
        at_teacher="moves",
        why="inside the margin it pushes outwards",
    ),
    on_features("overhaul", overhaul, ref_overhaul, make=behind_margins),
    on_features(
        "overhaul/margins",
        overhaul,
        ref_overhaul,
        Worked(A, (B, number([-0.6])), {}, (0 + 0.81 + 0.25 + 0.09) / 4),
        make=with_margins,
    ),
    *of_sides(
        "similarity_preserving",
        similarity_preserving,
        ref_sp,
        Worked(S, (number(T),), {}, 0.202510),
        Worked(FS, (number(FT),), {}, 0.025658),
    ),
    *of_sides(
        "rkd_distance",
        rkd_distance,
        ref_distance,
        Worked(S, (number(T),), {}, 0.115420),
        Worked((number(S) * 3 + 7).tolist(), (number(T),), {}, 0.115420),
    ),
    *of_sides(
        "rkd_angle",
        rkd_angle,
        ref_angle,
        Worked(S, (number(T),), {}, 0.120102),
        Worked((number(S) * 3 + 7).tolist(), (number(T),), {}, 0.120102),
    ),
    *of_sides(
        "pkt",
        pkt,
        ref_pkt,
        Worked(S, (number(T),), {}, 0.019090),
        why="1e-7 beside the probabilities",
        slack=1e-6,
    ),
    on_features("cc_neighbours", cc_neighbours, ref_neighbours, Worked(S, (number(T),), {}, 2.0), make=drawn(4)),
    *of_sides(
        "cc_kernel",
        cc_kernel,
        ref_kernel,
        Worked(S, (number(T),), {"gamma": 0.4, "order": 2}, 0.070120),
        hyper={"gamma": 0.4, "order": 2},
    ),
    crd_case(
        "crd",
        30.0,
        (),
        Worked(((1.0, 1.0),), (CRD_V,), {"temperature": 0.5, "population": 4, "normaliser": 10.0}, 1.223670),
    ),
    crd_case("crd/labels", 30.0, (GROUPS,)),
    crd_case("crd/normaliser of the batch", None, ()),
    on_features(
        "cwd",
        cwd,
        ref_cwd,
        *(
            Worked(CWD_S, (CWD_T,), {"temperature": t, "t_squared": True, "channels": "first"}, value)
            for t, value in ((1.0, 0.066481), (4.0, 0.110261))
        ),
        hyper={"temperature": 4.0, "t_squared": True, "channels": "first"},
    ),
    on_features(
        "cwd/last",
        cwd,
        ref_cwd,
        hyper={"temperature": 2.0, "t_squared": False, "channels": "last"},
        make=lambda generator: (lambda s, t: (s, DenseTarget(t)))(*drawn(4, 4, 3)(generator)),
        from_logits=lambda logits: (DenseTarget(logits),),
    ),
    on_features("csc", csc, ref_csc, Worked(FS, (number(FT),), {}, 0.075893), make=drawn(3, 2, 2)),
    on_features(
        "pairwise_similarity",
        pairwise_similarity,
        ref_pairwise,
        Worked((((1, 1, 0), (0, 1, 1)),), (number([[[1, 0, 1], [0, 1, 1]]]),), {}, 0.222222),
        make=drawn(3, 2, 2, teacher=(5, 2, 2)),
        stops=True,  # the norms; test_losses_features has the gradient
    ),
    *(
        on_classes(
            name,
            adaptive_cross_entropy,
            ref_adaptive,
            {"form": form},
            Worked(ACE_S, (ACE_T, ACE_Y), {"form": form}, value, slope),
            at_teacher="moves",
            why="it looks at labels",
        )
        for name, form, value, slope in (
            # (p_S - q) / 2, with q = (.7, .2, .1), (0, 0, 1) and (.79, .14, .07), (.06, .15, .79).
            ("adaptive_cross_entropy", "switch", 0.872461, ((-0.05, 0.05, 0.0), (0.15, 0.15, -0.3))),
            ("adaptive_cross_entropy/blend", "blend", 0.854997, ((-0.095, 0.08, 0.015), (0.12, 0.075, -0.195))),
        )
    ),
    selective_case(
        "clean",
        worked=worked_selective(
            "clean",
            (RIGHT, 1.0, 0.052485, (-0.119733, -0.044047, 0.163780)),
            (WRONG, 1.0, 0.026243, (-0.119733 / 2, -0.044047 / 2, 0.163780 / 2)),
        ),
    ),
    selective_case(
        "code",
        worked=worked_selective(
            "code",
            (RIGHT, 1.0, 3.184741, (-0.239466, -0.088094, 0.327560)),
            (RIGHT, 0.9, 2.362345, None),
            (WRONG, 1.0, 0.026243, None),
        ),
        at_teacher="stationary",
        why=NO_DIVERGENCE,
    ),
    selective_case("clean", " sparse", lambda logits: (SparseTarget.from_logits(logits, 2, (2.0,)),)),
    of_nobody(
        "intra_class_variance",
        intra_class_variance,
        ref_icv,
        {"form": "code"},
        Worked(F4, (Y4,), {"form": "code"}, 8.071068),
    ),
    of_nobody(
        "intra_class_variance/class",
        intra_class_variance,
        ref_icv,
        {"form": "class"},
        Worked(F4, (Y4,), {"form": "class"}, 7.071068),
    ),
    of_nobody("orthogonal_projection", orthogonal_projection, ref_opl, {}, Worked(F4, (Y4,), {}, 0.659055)),
)
