"""Networks by name: our own, any of timm, torchvision or Transformers, or the user's own code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bookkd.core.check import at_least
from bookkd.core.errors import ConfigError, WeightsError, expected
from bookkd.core.names import choose, import_reference, is_reference, look_up, require
from bookkd.zoo.calls import accepted, call
from bookkd.zoo.language import create_causal_lm, load_causal_lm
from bookkd.zoo.seq2seq import create_seq2seq, load_seq2seq
from bookkd.zoo.tables import NETWORKS
from bookkd.zoo.texts import create_text_classifier, is_classifier, load_text_classifier
from bookkd.zoo.translation import TranslationTransformer
from bookkd.zoo.weights import load_weights

__all__ = ["brings_weights", "count_parameters", "create_network"]

# torchvision builds these two with a second output, and warns that their slow old initialisation will go.
_ONE_OUTPUT = {"googlenet": {"aux_logits": False, "init_weights": False}}
_ONE_OUTPUT["inception_v3"] = _ONE_OUTPUT["googlenet"]


def create_network(
    name: str,
    *,
    n_classes: int,
    weights: str | Path | None = None,
    args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a network that returns logits of n_classes, from float images or from tokens.

    Nothing is downloaded unless `args` ask for it (`{"pretrained": True}` of timm, `{"weights": "DEFAULT"}` of torchvision).
    Initial values come from torch's global generator: seed it before, for a run that can be repeated.

    Args:
        name: A name of `NETWORKS`, `timm:NAME`, `torchvision:NAME`, `causal-lm:NAME`, `seq2seq:NAME` or
            `text-classifier:NAME` (a kind of Transformers, such as gpt2, or a folder with its files; `seq2seq:transformer` is our own), or `package.module:callable`. The callable is given `n_classes` (or `num_classes`) if it has such an argument, and must return a module.
        n_classes: Number of classes, at least 1.
        weights: A safetensors file for the network, or None for initial values.
        args: Further arguments of the network, such as `{"width": 32}` for the CIFAR ResNets.

    Raises:
        UnknownNameError: no such network; the nearest names are listed.
        ConfigError: arguments that the network does not take, or a callable that returns no module.
        MissingExtraError: timm is not installed.
        WeightsError: the weights cannot be read or do not fit.

    >>> sum(p.numel() for p in create_network("resnet20", n_classes=10).parameters())
    269722
    """
    at_least(n_classes, 1, "n_classes", where=f"network {name}")
    network = _build(name, n_classes, dict(args or {}))
    if not isinstance(network, nn.Module):
        raise ConfigError(expected("network", "a callable that returns a torch.nn.Module", network, where=name))
    if weights is not None:
        load_weights(network, weights)
    return network


def _build(name: str, n_classes: int, args: dict[str, Any]) -> Any:
    what = f"network {name}"
    family, _, rest = name.partition(":")
    if family in _FAMILIES:
        return _FAMILIES[family](rest, n_classes, args)
    if is_reference(name):
        factory = import_reference(name, "network")
        if not callable(factory):
            raise ConfigError(expected("network", "a callable that returns a torch.nn.Module", factory, where=name))
        takes = accepted(factory)
        fixed: dict[str, Any] = next(({key: n_classes} for key in ("n_classes", "num_classes") if key in takes), {})
        return call(factory, what, fixed, args)
    network = call(look_up(name, NETWORKS, "network"), what, {"n_classes": n_classes}, args)
    # Convolutions follow the layout of their weights: 2-4 times faster on a processor for networks of this size.
    return network.to(memory_format=torch.channels_last)


def _timm(name: str, n_classes: int, args: dict[str, Any]) -> Any:
    timm = require("timm", "timm")
    if not timm.is_model(name.partition(".")[0]):
        choose(name, timm.list_models(), "timm network")
    return _foreign(f"timm:{name}", lambda: timm.create_model(name, num_classes=n_classes, **args), args)


def _torchvision(name: str, n_classes: int, args: dict[str, Any]) -> Any:
    models = require("torchvision.models", "train")
    of_pixels = models.list_models(module=models.segmentation)
    choose(name, [*models.list_models(module=models), *of_pixels], "torchvision network")
    # Those of segmentation would fetch the weights of their backbone by themselves.
    backbone = {"weights_backbone": None} if name in of_pixels else {}
    merged = {"weights": None, **backbone, **_ONE_OUTPUT.get(name, {}), **args}
    return _foreign(f"torchvision:{name}", lambda: models.get_model(name, num_classes=n_classes, **merged), args)


def _causal_lm(name: str, n_classes: int, args: dict[str, Any]) -> Any:
    """A language model from a folder, or with initial values from a kind and its options; `separator` of both, see `LanguageModel`."""
    separator = args.pop("separator", None)
    if _is_folder(name):
        _refuse_options(f"causal-lm:{name}", args)
        return load_causal_lm(name, separator=separator)
    return create_causal_lm({"model_type": name, **args}, vocabulary=n_classes, separator=separator)


def _text_classifier(name: str, n_classes: int, args: dict[str, Any]) -> Any:
    """A classifier from a folder, or its encoder alone, or one with initial values from a kind and its options, under a new head."""
    own: dict[str, Any] = {key: args.pop(key) for key in ("pooling", "dropout") if key in args}
    if _is_folder(name):
        own |= {key: args.pop(key) for key in ("head", "class_names") if key in args}
        _refuse_options(f"text-classifier:{name}", args)
        return load_text_classifier(name, n_classes, **own)
    vocabulary = args.pop("vocabulary", None)
    if not isinstance(vocabulary, int):
        do = "It is the number of tokens of the tokenizer."
        raise ConfigError(expected("args", "with a vocabulary", args, where=f"network text-classifier:{name}", do=do))
    return create_text_classifier({"model_type": name, **args}, vocabulary=vocabulary, n_classes=n_classes, **own)


def _is_folder(name: str) -> bool:
    return "/" in name or "\\" in name or Path(name).is_dir()


def brings_weights(name: str, args: Mapping[str, Any]) -> bool:
    """Whether a network comes with trained weights by its name alone, so that it needs no file of them."""
    family, _, folder = name.partition(":")
    if args.get("pretrained") or args.get("weights"):
        return True
    if family == "text-classifier":
        return args.get("head") != "new" and not {"pooling", "dropout"} & set(args) and is_classifier(folder)
    return family in ("causal-lm", "seq2seq") and _is_folder(folder)


def _refuse_options(name: str, args: Mapping[str, Any]) -> None:
    if args:
        do = "The folder's config.json says what the model is."
        raise ConfigError(expected("args", "absent", dict(args), where=f"network {name}", do=do))


def _seq2seq(name: str, n_classes: int, args: dict[str, Any]) -> Any:
    """Our own transformer, or an encoder-decoder of Transformers from a folder, or with initial values from a kind and its options."""
    if name == "transformer":
        return call(TranslationTransformer, "network seq2seq:transformer", {"vocabulary": n_classes}, args)
    if _is_folder(name):
        _refuse_options(f"seq2seq:{name}", args)
        return load_seq2seq(name)
    special = {key: args.pop(key) for key in ("begin", "end", "pad") if key in args}
    return create_seq2seq({"model_type": name, **args}, vocabulary=n_classes, **special)


_FAMILIES = {
    "causal-lm": _causal_lm,
    "seq2seq": _seq2seq,
    "text-classifier": _text_classifier,
    "timm": _timm,
    "torchvision": _torchvision,
}


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module, trained or not; one that is shared counts once.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in module.parameters())


def _foreign(name: str, build: Any, args: dict[str, Any]) -> Any:
    try:
        return build()
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(
            expected("args", "arguments that the network takes", args, where=f"network {name}: {error}")
        ) from error
    except OSError as error:
        raise WeightsError(
            expected("weights", "pretrained weights that can be fetched", args, where=f"network {name}: {error}")
            + " Without a connection, fetch them elsewhere and pass a safetensors file as weights."
        ) from error
