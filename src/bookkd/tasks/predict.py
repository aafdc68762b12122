"""Run a network over a data set and keep what it says: the way from a model to the fields that evaluation takes."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bookkd.core.called import check_called
from bookkd.core.check import at_least
from bookkd.core.fields import INPUT, LABEL, SAMPLE, WEIGHT
from bookkd.tasks.base import Task
from bookkd.views import Pick, Replay, Views, as_label, collate

__all__ = ["Predictions", "plain_loader", "predict"]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network says about a data set, in its order.

    Args:
        fields: Field name -> CPU tensor [samples, ...].
        labels: [samples, ...], as the data set gives them: int64, or floating.
    """

    fields: dict[str, Tensor]
    labels: Tensor


class _Plain(Dataset[dict[str, Any]]):
    """The samples themselves, with no augmentation, as dicts."""

    def __init__(self, dataset: Any, transform: Callable[[Any], Tensor] | None) -> None:
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.dataset[index]
        view = image if self.transform is None else self.transform(image)
        return {INPUT: torch.as_tensor(view), LABEL: as_label(label, index), SAMPLE: index, WEIGHT: 1.0}


def plain_loader(
    dataset: Sized, *, transform: Callable[[Any], Tensor] | None = None, batch_size: int = 256, workers: int = 0
) -> DataLoader[dict[str, Any]]:
    """Return a loader over the samples in order, as dict batches without augmentation; sequences are padded as `Replay` does."""
    at_least(batch_size, 1, "batch_size", where="loader of samples")
    # A generator of its own, since a DataLoader otherwise draws from the global one.
    options: dict[str, Any] = {"num_workers": workers, "collate_fn": collate, "generator": torch.Generator()}
    if getattr(dataset, "pad_value", None) is None:
        return DataLoader(_Plain(dataset, transform), batch_size=batch_size, **options)
    picks = [Pick(row, 0) for row in range(len(dataset))]
    batches = [picks[start : start + batch_size] for start in range(0, len(picks), batch_size)]
    replay = Replay(dataset, Views(transform, n_views=1), probe_share=0)
    return DataLoader(replay, batch_sampler=batches, **options)


def predict(
    network: Callable[..., Any],
    dataset: Sized,
    task: Task,
    *,
    transform: Callable[[Any], Tensor] | None = None,
    batch_size: int = 256,
    device: str | torch.device = "cpu",
    workers: int = 0,
) -> Predictions:
    """Run `network` over every sample of `dataset`, in order, without augmentation.

    Args:
        network: Takes what the task gives its networks, its own preprocessing included. Put it in evaluation mode first.
        dataset: `dataset[i] -> (image, label)`.
        task: Turns the output into fields.
        transform: Deterministic transform to a tensor, where the data set does not give tensors of one size.
        batch_size: Samples a pass.
        device: Where the views go.
        workers: Loader processes.

    Returns:
        Fields and labels on the CPU, float32 (float64 stays).

    Raises:
        ConfigError: for a network that is not called with what the task gives.
    """
    fields: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    with torch.inference_mode():
        for batch in plain_loader(dataset, transform=transform, batch_size=batch_size, workers=workers):
            inputs = [
                each.to(device, non_blocking=True) if isinstance(each, Tensor) else each for each in task.inputs(batch)
            ]
            check_called(network, inputs, task.name)
            said = task.fields(network(*inputs), batch)
            for name, values in said.items():
                fields.setdefault(name, []).append((values if values.dtype == torch.float64 else values.float()).cpu())
            labels.append(batch[LABEL])
    return Predictions({name: torch.cat(parts) for name, parts in fields.items()}, torch.cat(labels))
