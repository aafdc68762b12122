"""The state of one training run, and the one place that moves it; the doors (plain loop, Lightning) only drive it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from bookkd.core.errors import CheckpointError, DataError, expected
from bookkd.core.protocols import EVENTS
from bookkd.core.rng import draw64
from bookkd.core.schedules import Clock
from bookkd.knowledge import Surroundings
from bookkd.learning.learner import Learner
from bookkd.learning.on_policy import OnPolicy
from bookkd.learning.step import Batch, Step
from bookkd.learning.training import LearningRate, Training, make_optimizer
from bookkd.methods import Handler

__all__ = ["Run", "Sampler"]


class Sampler(Protocol):
    """What a run needs of its order of samples: to say what was consumed, and to go on from there."""

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch."""
        ...

    def consumed(self, n_batches: int = 1) -> None:
        """Count batches that were learnt from."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


def _plain_backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


class Run:
    """Learner, optimizer, learning rate, order of samples and clock, moved together.

    Args:
        learner: The student, already on its device.
        step: Where fields meet the objective.
        training: Plain values.
        sampler: The order of samples.
        steps_per_epoch: Optimizer steps of an epoch.
        handlers: Event handlers of the method.
        surroundings: Data set, views and folder, for handlers that write; None where they are not known.
        on_policy: Which samples the student writes itself, and how; None for none.
    """

    def __init__(
        self,
        learner: Learner,
        step: Step,
        training: Training,
        sampler: Sampler,
        *,
        steps_per_epoch: int,
        handlers: Sequence[Handler] = (),
        surroundings: Surroundings | None = None,
        on_policy: OnPolicy | None = None,
    ) -> None:
        self.on_policy = on_policy
        self.learner = learner
        self.step = step
        self.training = training
        self.sampler = sampler
        self.steps_per_epoch = steps_per_epoch
        self.handlers = tuple(handlers)
        self.surroundings = surroundings
        self.optimizer = make_optimizer(learner, training)
        self.rate = LearningRate(self.optimizer, training, steps_per_epoch)
        self.steps = 0
        self.lr = training.lr
        self.best: float | None = None
        self.stale = 0
        self._best_learner: dict[str, Any] | None = None
        self._best_epoch = 0
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._group = dist.is_available() and dist.is_initialized()
        self._forwards_before = 0
        self._forwards_at_start = self._forwards_here

    @property
    def clock(self) -> Clock:
        """Where the run is."""
        return Clock(self.steps, self.steps / self.steps_per_epoch, self.steps_per_epoch * self.training.epochs)

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.steps // self.steps_per_epoch

    @property
    def checkpoint_due(self) -> bool:
        """Whether `checkpoint_steps` asks for a checkpoint here, inside an epoch; the end of one is always saved."""
        every = self.training.checkpoint_steps
        return bool(every and self.steps % every == 0 and self.steps % self.steps_per_epoch)

    @property
    def teacher_forwards(self) -> int:
        """Samples that this run passed through a teacher, on all ranks, before and after an interruption."""
        return self._forwards_before + self._ranks * (self._forwards_here - self._forwards_at_start)

    @property
    def _forwards_here(self) -> int:
        return 0 if self.step.knowledge is None else self.step.knowledge.teacher_forwards

    @property
    def _ranks(self) -> int:
        return dist.get_world_size() if self._group else 1

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the validation metric has stalled for `patience` validations."""
        patience = self.training.patience
        return self.epoch >= self.training.epochs or (patience is not None and self.stale >= patience)

    def optimizer_step(
        self,
        group: Sequence[Batch],
        *,
        backward: Callable[[Tensor], Any] = _plain_backward,
        apply: Callable[[], Any] | None = None,
    ) -> None:
        """Learn from a group of micro-batches: one optimizer step.

        The result does not depend on how the group is split into batches or over ranks, since every term is divided
        by its weight over all of them.

        Args:
            group: Batches on the learner's device.
            backward: How a door runs the backward pass (scaling, distributed hooks).
            apply: How a door steps the optimizer; None steps it directly.
        """
        self._seed_dropout()
        clock, ranks = self.clock, self._ranks
        group = self._rewritten(group)
        totals = self.step.totals(group)
        weighed: set[str] = set()
        for batch in group:
            losses = self.step.loss(self.learner, batch, clock, totals)
            # Distributed backward averages gradients over ranks, the totals already run over all of them.
            backward(losses.loss * ranks if ranks > 1 else losses.loss)
            for name, value in {**losses.terms, "loss": losses.loss.detach()}.items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value
                weighed.add(name)
        if self.training.clip_norm is not None:
            clip_grad_norm_(self.learner.parameters(), self.training.clip_norm)
        (apply or self.optimizer.step)()
        self.learner.after_step()
        self.optimizer.zero_grad(set_to_none=True)
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.rate.after_step()
        self.steps += 1
        for name in weighed:
            self._counts[name] = self._counts.get(name, 0) + 1
        self.sampler.consumed(len(group))
        self.fire("step_end")

    def begin_epoch(self) -> None:
        """Put the learner into training mode, and tell the handlers of an epoch unless it is gone on with."""
        self.learner.train()
        if self.steps % self.steps_per_epoch == 0:
            self.fire("epoch_start")

    def end_epoch(self) -> dict[str, float]:
        """Close an epoch and start the next one's order of samples.

        Returns:
            Term name -> mean over the steps of the epoch in which it weighed something and over all ranks, and `loss`.

        Raises:
            DataError: if the loss is not finite, which means that training has diverged.
        """
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        if self._group:
            # Each rank's values are already divided by the weight over all ranks.
            dist.all_reduce(sums)
        means = {name: value / self._counts[name] for name, value in zip(names, sums.tolist(), strict=True)}
        if not math.isfinite(means["loss"]):
            raise DataError(
                expected(
                    "loss",
                    "finite",
                    means["loss"],
                    where=f"training, epoch {self.epoch}",
                    do="Training has diverged: lower --training.lr, or set --training.clip_norm.",
                )
            )
        self._sums, self._counts = {}, {}
        self.fire("epoch_end")
        self.sampler.set_epoch(self.epoch)
        return {**means, **self.learner.logged()}

    def validated(self, metric: float) -> bool:
        """Take in a validation metric (larger is better) and say whether it is the best so far.

        Raises:
            DataError: if it is not a number, which means that training has diverged.
        """
        if math.isnan(metric):
            do = "Training has diverged: lower --training.lr, or set --training.clip_norm."
            raise DataError(
                expected("validation metric", "a number", metric, where=f"training, epoch {self.epoch}", do=do)
            )
        improved = self.best is None or metric > self.best
        self.best, self.stale = (metric, 0) if improved else (self.best, self.stale + 1)
        self.rate.after_validation(metric)
        if improved:
            if self.training.patience is not None:
                self._best_epoch = self.epoch
                weights = self.learner.state_dict().items()
                self._best_learner = {name: value.detach().cpu().clone() for name, value in weights}
            self.fire("validation_improved")
        return improved

    @property
    def chosen_epoch(self) -> int:
        """Epoch of the weights that the run ends with: the best validated one where `patience` is set, else the last."""
        return self.epoch if self._best_learner is None else self._best_epoch

    def conclude(self) -> None:
        """Put the weights of `chosen_epoch` into the learner; every door calls it last."""
        if self._best_learner is not None:
            self.learner.load_state_dict(self._best_learner)

    def fire(self, event: str) -> None:
        """Tell every handler of `event`, one of `bookkd.core.protocols.EVENTS`."""
        if event not in EVENTS:
            raise ValueError(event)
        for handler in self.handlers:
            handler.on(event, self)

    def progress_state(self) -> dict[str, Any]:
        """Return all but weights and optimizer, which some doors save themselves."""
        return {
            "steps": self.steps,
            "steps_per_epoch": self.steps_per_epoch,
            "sampler": self.sampler.state_dict(),
            "rate": self.rate.state_dict(),
            "best": self.best,
            "stale": self.stale,
            "best_epoch": self._best_epoch,
            "best_learner": self._best_learner,
            "sums": self._sums,
            "counts": self._counts,
            "teacher_forwards": self.teacher_forwards,
            "handlers": [handler.state_dict() for handler in self.handlers],
        }

    def load_progress_state(self, state: Mapping[str, Any]) -> None:
        """Take it back.

        Raises:
            CheckpointError: if the checkpoint is of a run with other epochs or handlers.
        """
        if state["steps_per_epoch"] != self.steps_per_epoch or len(state["handlers"]) != len(self.handlers):
            raise CheckpointError(
                f"Expected a checkpoint of {self.steps_per_epoch} steps an epoch and {len(self.handlers)} event handlers, got "
                f"{state['steps_per_epoch']} and {len(state['handlers'])}. It belongs to another run; choose another --out."
            )
        self.steps, self.best, self.stale = state["steps"], state["best"], state["stale"]
        self._best_epoch, self._best_learner = state["best_epoch"], state["best_learner"]
        device = next(self.learner.parameters()).device
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])
        self._forwards_before, self._forwards_at_start = state["teacher_forwards"], self._forwards_here
        self.sampler.load_state_dict(state["sampler"])
        self.rate.load_state_dict(state["rate"])
        for handler, handler_state in zip(self.handlers, state["handlers"], strict=True):
            handler.load_state_dict(handler_state)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on."""
        return {"learner": self.learner.state_dict(), "optimizer": self.optimizer.state_dict(), **self.progress_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back; training goes on as if it had not stopped."""
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.load_progress_state(state)

    def _rewritten(self, group: Sequence[Batch]) -> Sequence[Batch]:
        """Return the batches of a step, with what the student writes in them."""
        if self.on_policy is None:
            return group
        first = (dist.get_rank() if self._group else 0) * len(group)
        return [
            self.on_policy.rewritten(batch, self.learner, step=self.steps, part=first + place)
            for place, batch in enumerate(group)
        ]

    def _seed_dropout(self) -> None:
        # A function of (seed, step, rank), so that a resumed run draws what an uninterrupted one would have drawn.
        rank = dist.get_rank() if self._group else 0
        seed = int(draw64(self.training.seed, "step", [self.steps], [rank])[0, 0] >> 1)
        torch.default_generator.manual_seed(seed)
        if next(self.learner.parameters()).is_cuda:
            torch.cuda.manual_seed(seed)
