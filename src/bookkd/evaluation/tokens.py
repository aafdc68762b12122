"""Language models: perplexity, calibration by position, and how good a draft model the student is, with intervals over sequences.

Logits of a whole text would fill the memory, so that sums of each sequence are gathered batch by batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bookkd.core.errors import DataError, expected
from bookkd.core.fields import IGNORE_LABEL, LABEL, LOGITS
from bookkd.evaluation._sums import SequenceSums
from bookkd.evaluation.intervals import Floats
from bookkd.evaluation.measures import Measures, bin_of, mean_where_known, measured

__all__ = ["TokenSums"]

_CHUNK_VALUES = 2**23


class TokenSums(SequenceSums):
    r"""Measures what a model says at the positions of sequences, and compares it with a teacher if one is given.

    Over all positions whose token is known, with q the student's distribution, p the teacher's, and y the token:

        nll = mean(-log q_y)  in nats a token       perplexity = exp(nll)       accuracy = share of positions with argmax q = y
        entropy = mean(-sum_v q_v log q_v)          ece over equal bins of max q, as in `evaluate`
        agreement = share with argmax q = argmax p: tokens accepted of the student as a draft at temperature 0
        acceptance = mean(sum_v min(q_v, p_v)): expected share of its draft tokens that are accepted at temperature 1
        teacher_kl = mean(KL(p || q))

    Intervals are bootstrapped over whole sequences, since the positions of one are no independent samples.

    With `class_names` there are also `balanced_accuracy`, the mean recall of the classes that occur, and recall and precision of each
    class.

    Args:
        bins: Bins of the calibration error.
        class_names: Of the classes of tags, one a logit; empty for tokens, of which there are too many to be told one by one.

    >>> sums = TokenSums()
    >>> said = {"logits": torch.tensor([[2.0, 0.0], [0.0, 1.0]])}
    >>> sums.add(said, {"label": torch.tensor([0, 0])}, torch.tensor([2]))
    >>> {name: round(each.value, 4) for name, each in sums.measures(replicates=0).metrics.items() if name != "ece"}
    {'nll': 0.7201, 'perplexity': 2.0546, 'accuracy': 0.5, 'entropy': 0.4738}

    Source: acceptance, Leviathan et al. 2023 (arXiv 2211.17192), theorem 3.5.
    """

    def __init__(self, *, bins: int = 15, class_names: Sequence[str] = ()) -> None:
        super().__init__(bins)
        self.class_names = tuple(class_names)

    def add(
        self,
        said: Mapping[str, Tensor],
        seen: Mapping[str, Any],
        counts: Tensor,
        teacher: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Take in some sequences.

        Args:
            said: The student's `logits` at all positions of the sequences, one after another, [positions, vocabulary].
            seen: The batch; its `label` is the token at each, int64 [positions], `IGNORE_LABEL` where it is not known.
            counts: Positions of each sequence, int64 [sequences].
            teacher: The teacher's `logits` at the same positions.

        Raises:
            DataError: for shapes that do not fit, a label that is no token, or logits that are not finite.
            TeacherOutputError: if the teacher's logits have another shape; if it is there for some batches and for others not.
        """
        logits, labels, theirs = said[LOGITS], seen[LABEL], None if teacher is None else teacher[LOGITS]
        _check(logits, labels, counts)
        self._compare(logits, theirs)
        rows = max(1, _CHUNK_VALUES // logits.shape[1])
        pieces = [
            self._values(logits[i : i + rows], labels[i : i + rows], None if theirs is None else theirs[i : i + rows])
            for i in range(0, len(logits), rows)
        ]
        sequence = np.repeat(np.arange(len(counts)), counts.cpu().numpy())
        for name in pieces[0] if pieces else ():
            values = np.concatenate([piece[name] for piece in pieces])
            sums = np.zeros((len(counts), *values.shape[1:]))
            np.add.at(sums, sequence, values)
            self._gather(name, sums)

    def measures(self, *, replicates: int = 1000, seed: int = 0, level: float = 0.95) -> Measures:
        """Return all metrics of what was taken in.

        Args:
            replicates: Bootstrap replicates over sequences; 0 for values alone.
            seed: Of the bootstrap.
            level: Share of the replicates inside an interval.

        Raises:
            DataError: if no position had a known token.
        """
        sums = self._gathered()
        if not sums or not sums["tokens"].sum():
            raise DataError(expected("positions", "at least one with a known token", "none", where="evaluation"))
        kept = sums["tokens"] > 0  # a sequence of hidden tokens says nothing
        sums = {name: values[kept] for name, values in sums.items()}
        return measured(
            _Statistic(sums, self.bins),
            len(sums["tokens"]),
            class_names=self.class_names,
            replicates=replicates,
            seed=seed,
            level=level,
            absolute=("ece",),
        )

    def _values(self, logits: Tensor, labels: Tensor, teacher: Tensor | None) -> dict[str, Floats]:
        """Return every figure of each position, 0 where the token is not known."""
        known = labels != IGNORE_LABEL
        log_q = logits.detach().float().log_softmax(-1)
        top, likeliest = log_q.max(dim=-1)
        right = likeliest == labels
        values = {
            "tokens": known,
            "nll": -log_q.gather(1, labels.clamp_min(0)[:, None])[:, 0],
            "accuracy": right,
            "entropy": -(log_q.exp() * log_q.masked_fill(log_q == -torch.inf, 0)).sum(-1),
        }
        if teacher is not None:
            log_p = teacher.detach().to(log_q.device).float().log_softmax(-1)
            p = log_p.exp()
            values["agreement"] = likeliest == log_p.argmax(-1)
            values["acceptance"] = torch.minimum(p, log_q.exp()).sum(-1)
            values["teacher_kl"] = torch.where(p > 0, p * (log_p - log_q), 0).sum(-1)
        found = {name: torch.where(known, value.double(), 0).cpu().numpy() for name, value in values.items()}
        confidence = (
            top.exp().double().nan_to_num(0.0).cpu().numpy()
        )  # NaN where the token is not known counts for nothing
        place = bin_of(confidence, self.bins)
        for name, value in (("bin_confidence", confidence), ("bin_right", right.double().cpu().numpy())):
            found[name] = np.zeros((len(place), self.bins))
            found[name][np.arange(len(place)), place] = np.where(known.cpu().numpy(), value, 0)
        if self.class_names:
            classes = torch.arange(len(self.class_names), device=labels.device)
            truth, guess = (labels[:, None] == classes), (likeliest[:, None] == classes) & known[:, None]
            for name, each in (("class_tokens", truth), ("class_guesses", guess), ("class_right", truth & guess)):
                found[name] = each.double().cpu().numpy()
        return found


class _Statistic:
    """Counts of sequences [r, n] -> every metric."""

    def __init__(self, sums: dict[str, Floats], bins: int) -> None:
        self.sums, self.bins = sums, bins

    def __call__(self, counts: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        sums = {name: counts @ values for name, values in self.sums.items()}
        tokens = sums.pop("tokens")
        confidence, right = sums.pop("bin_confidence"), sums.pop("bin_right")
        hits = {name: sums.pop(name) for name in ("class_tokens", "class_guesses", "class_right") if name in sums}
        found: dict[str, Floats] = {}
        for name, total in sums.items():
            found[name] = total / tokens
            if name == "nll":
                with np.errstate(over="ignore"):
                    found["perplexity"] = np.exp(found[name])
        found["ece"] = np.abs(confidence - right).sum(axis=1) / tokens
        if not hits:
            return found, {}
        with np.errstate(invalid="ignore", divide="ignore"):
            each = {
                "recall": hits["class_right"] / hits["class_tokens"],
                "precision": hits["class_right"] / hits["class_guesses"],
            }
        return {**found, "balanced_accuracy": mean_where_known(each["recall"])}, each


def _check(logits: Tensor, labels: Tensor, counts: Tensor) -> None:
    where = "evaluation of positions"
    if logits.ndim != 2 or not logits.is_floating_point() or labels.shape != logits.shape[:1]:
        got = f"{logits.dtype} {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        raise DataError(expected("logits", "floating [positions, vocabulary], and one label each", got, where=where))
    if int(counts.sum()) != len(logits) or bool((counts < 0).any()):
        raise DataError(expected("counts", f"such that they add up to {len(logits)} positions", int(counts.sum())))
    if bool(((labels < 0) & (labels != IGNORE_LABEL)).any() | (labels >= logits.shape[1]).any()):
        raise DataError(expected("labels", f"tokens below {logits.shape[1]}", int(labels.max()), where=where))
    said = logits[(labels != IGNORE_LABEL).to(logits.device)]
    if bool(torch.isnan(said).any() | (said == torch.inf).any()):
        raise DataError(expected("logits", "finite", "NaN or infinity", where=where))
