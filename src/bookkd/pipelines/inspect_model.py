"""The modules of a network with the shapes of what they give, for methods that look inside of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, expected
from bookkd.knowledge import layers_of
from bookkd.pipelines.options import NetworkOptions
from bookkd.zoo import count_parameters

__all__ = ["inspect_model"]


def inspect_model(
    model: str, *, args: Mapping[str, Any] | None = None, n_classes: int = 10, shape: Sequence[int] = (3, 32, 32)
) -> dict[str, Any]:
    """Return the modules of a network by path, with what each gives for one input.

    Args:
        model: Name of a network, as for `--student`.
        args: Its further arguments.
        n_classes: Width of its output.
        shape: Of one input: [channels, height, width] of an image, or [tokens] of a text.

    Returns:
        `model`, `parameters`, `named` (name of a layer -> path, see `bookkd.knowledge.layers_of`) and `modules`: of each `path`, `kind`,
        `parameters`, how often it `runs`, and the `shape` of what it gives of one input, None where it did not run or gives no tensor.

    >>> found = inspect_model("resnet8", shape=(3, 16, 16))
    >>> [(each["path"], each["shape"]) for each in found["modules"] if each["path"] in ("layer3", "linear")]
    [('layer3', [64, 4, 4]), ('linear', [10])]
    """
    for size in shape:
        at_least(size, 1, "input", where="inspect")
    options = NetworkOptions(model, args=dict(args or {}))
    network = options.build(n_classes, role="model")[0].eval()
    runs: dict[str, int] = {}
    shapes: dict[str, list[int] | None] = {}

    def note(path: str, output: Any) -> None:
        runs[path] = runs.get(path, 0) + 1
        first = (
            output[0] if isinstance(output, tuple | list) and output else getattr(output, "last_hidden_state", output)
        )
        shapes[path] = list(first.shape[1:]) if isinstance(first, Tensor) else None

    for path, module in network.named_modules():
        module.register_forward_hook(lambda _, __, output, path=path: note(path, output))
    image = len(shape) > 1
    given = torch.zeros(1, *shape) if image else torch.ones(1, *shape, dtype=torch.int64)
    more = () if image or not model.startswith("text-classifier:") else (torch.tensor([shape[0]]),)
    try:
        with torch.no_grad():
            network(given, *more)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        do = "Pass --input with the shape of one input, such as '[3, 224, 224]', or '[16]' for 16 tokens."
        raise ConfigError(
            expected("input", f"one that {model} takes", list(shape), where=str(error).split("\n")[0], do=do)
        ) from error
    modules = [
        {
            "path": path,
            "kind": type(module).__name__,
            "parameters": count_parameters(module),
            "runs": runs.get(path, 0),
            "shape": shapes.get(path),
        }
        for path, module in network.named_modules()
        if path
    ]
    parameters = count_parameters(network)
    return {"model": model, "parameters": parameters, "named": layers_of(network), "modules": modules}
