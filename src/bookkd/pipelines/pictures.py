"""What a segmentation looks like: an image, its classes, and what teacher and student say, as small PNG files in base64."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bookkd.core.fields import IGNORE_LABEL, LOGITS
from bookkd.core.names import require
from bookkd.tasks import Task
from bookkd.tasks.segmentation import PIXELS
from bookkd.views import Pick, Replay, Views

__all__ = ["colours_of", "pictures_of"]

_SIDE = 320
"""Longest side of a picture."""


def colours_of(n_classes: int) -> list[str]:
    """Return one colour a class, as far apart as one turn of the hue at three degrees of brightness allows.

    >>> colours_of(2)
    ['#d94c4c', '#3cabab']
    """
    found = []
    for place in range(n_classes):
        hue, value = place / n_classes, (0.85, 0.67, 0.98)[place % 3]
        red, green, blue = (
            value * (1 - 0.65 * min(1.0, max(0.0, 2 - abs(6 * ((hue + shift) % 1) - 3))))
            for shift in (0.0, 2 / 3, 1 / 3)
        )
        found.append("#" + "".join(f"{round(255 * each):02x}" for each in (red, green, blue)))
    return found


def pictures_of(
    network: Callable[..., Any],
    dataset: Any,
    task: Task,
    *,
    teacher: Callable[..., Any] | None = None,
    device: str | torch.device = "cpu",
    count: int = 4,
) -> dict[str, Any]:
    """Return pictures of a few samples, evenly spread over a data set.

    Args:
        network: In evaluation mode, with its preprocessing.
        dataset: Of images with masks.
        task: Segmentation.
        teacher: Another network, on the same device.
        device: Where the views go.
        count: Samples, at most.

    Returns:
        `{"colours": ["#rrggbb"], "samples": [{"sample", "image", "truth", "student", "teacher"}]}`; void pixels are black, and no class is.
    """
    replay, colours = Replay(dataset, Views(None, n_views=1), probe_share=0), colours_of(task.n_outputs)
    samples = []
    for sample in sorted({len(replay) * place // count for place in range(count)}):
        batch = replay.batch([Pick(sample, 0)])
        inputs = [each.to(device) if isinstance(each, Tensor) else each for each in task.inputs(batch)]
        seen = task.batch(batch)
        shown = {"image": _image(batch["input"][0]), "truth": _classes(seen[PIXELS + "label"][0], colours)}
        for name, each in (("student", network), ("teacher", teacher)):
            if each is not None:
                with torch.inference_mode():
                    said = task.student(task.fields(each(*inputs), batch))[PIXELS + LOGITS]
                shown[name] = _classes(said[0].argmax(-1).cpu(), colours)
        samples.append({"sample": sample, **shown})
    return {"colours": colours, "samples": samples}


def _image(view: Tensor) -> str:
    values = view if view.dtype == torch.uint8 else (view.float().clamp(0, 1) * 255).to(torch.uint8)
    pixels = values[:3] if len(values) >= 3 else values[:1].expand(3, -1, -1)
    return _png(require("PIL.Image", "train").fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())))


def _classes(classes: Tensor, colours: list[str]) -> str:
    places = torch.where(classes == IGNORE_LABEL, len(colours), classes).numpy().astype(np.uint8)
    picture = require("PIL.Image", "train").fromarray(places)
    picture.putpalette(b"".join(bytes.fromhex(colour[1:]) for colour in colours) + b"\0\0\0")
    return _png(picture)


def _png(picture: Any) -> str:
    if max(picture.size) > _SIDE:
        share = _SIDE / max(picture.size)
        # Nearest, since what stands in a mask is no quantity.
        resample = require("PIL.Image", "train").Resampling.NEAREST
        picture = picture.resize([max(1, round(side * share)) for side in picture.size], resample)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
