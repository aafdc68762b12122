"""What tables of gates say of classes: which read the same parents, and in what order they stand together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bookkd.core.errors import DataError, expected
from bookkd.core.names import require

__all__ = ["class_order", "shared_parents"]

Array = npt.NDArray[np.float64]


def shared_parents(shares: npt.ArrayLike) -> Array:
    r"""Return how much each two children read of the same parents, 0 to 1: sum over i of min(alpha_ji, alpha_ki).

    It is 1 less the total variation distance of their gates, and does not depend on how parents are numbered, so that it may be
    averaged over seeds where gates themselves may not.

    Args:
        shares: Alpha, [children, parents]; each row not negative and adding up to 1.

    Returns:
        Shape [children, children], 1 on the diagonal.

    Raises:
        DataError: for rows that are no shares.

    >>> shared_parents([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]).round(2).tolist()
    [[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]]
    """
    alpha = np.asarray(shares, dtype=np.float64)
    if alpha.ndim != 2 or not alpha.size or (alpha < 0).any() or not np.allclose(alpha.sum(1), 1, atol=1e-4):
        got = (
            f"shape {list(alpha.shape)}"
            if alpha.ndim != 2 or not alpha.size
            else f"rows of {alpha.sum(1).round(4).tolist()[:3]}"
        )
        raise DataError(expected("shares", "rows that add up to 1", got, where="gates"))
    return np.stack([np.minimum(row, alpha).sum(1) for row in alpha])


def class_order(similarity: npt.ArrayLike) -> tuple[int, ...]:
    """Return the order in which children that read the same parents stand together: leaves of average-linkage clustering.

    Args:
        similarity: Symmetric, [children, children], 0 to 1, as `shared_parents` gives it, or a mean of several.

    Raises:
        MissingExtraError: if SciPy is not installed.

    >>> class_order([[1.0, 0.1, 0.9], [0.1, 1.0, 0.2], [0.9, 0.2, 1.0]]) in {(1, 0, 2), (1, 2, 0), (0, 2, 1), (2, 0, 1)}
    True
    """
    near = np.asarray(similarity, dtype=np.float64)
    if len(near) < 3:
        return tuple(range(len(near)))
    hierarchy = require("scipy.cluster.hierarchy", "report")
    distances = np.clip(1 - (near + near.T) / 2, 0, None)[np.triu_indices(len(near), 1)]
    tree = hierarchy.linkage(distances, method="average", optimal_ordering=True)
    return tuple(int(leaf) for leaf in hierarchy.leaves_list(tree))
