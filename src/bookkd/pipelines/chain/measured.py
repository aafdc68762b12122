"""How good a finished network is on some samples, kept beside it, so that it is measured once."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import bookkd
from bookkd.core.errors import BookFormatError
from bookkd.core.fields import LOGITS
from bookkd.core.files import file_digest, write_atomic
from bookkd.core.jsonio import digest, parse, pretty, read
from bookkd.evaluation import diversity, evaluate
from bookkd.learning import Learner, find_device, predictions_of
from bookkd.learning.folder import plain
from bookkd.pipelines.options import NetworkOptions
from bookkd.tasks import Classification
from bookkd.zoo import ImageDataset, fingerprint

__all__ = ["Measurer"]


class Measurer:
    """Measures networks on one set of samples.

    What it finds is kept in a file beside the network. That is taken in place of another pass where it is of the same bytes
    of weights, the same network and preprocessing, the same samples and the same version of this package; never for code of
    the user's own, which may have changed.

    Args:
        dataset: The samples.
        name: Theirs, such as a split; stands in the record.
        task: With their classes.
        accelerator: Where networks run.
    """

    def __init__(self, dataset: ImageDataset, name: str, task: Classification, accelerator: str) -> None:
        self.dataset, self.name, self.task, self.accelerator = dataset, name, task, accelerator

    @cached_property
    def _samples(self) -> dict[str, Any]:
        return fingerprint(self.dataset)

    def __call__(self, network: NetworkOptions, folder: Path) -> dict[str, Any]:
        """Return the measures of a network with weights, by name.

        Args:
            network: Built and run where nothing is known of it.
            folder: Where its measures are kept.
        """
        if network.users_code or network.weights is None:
            return self._measure(network)
        options = plain(network) | {"weights": file_digest(Path(network.weights))}
        about = {"network": options, "samples": self._samples, "version": bookkd.__version__}
        # Through JSON and back, so that tuples and lists compare equal.
        about = parse(pretty(about), "measures")
        path = folder / f"measured-{digest(about)[:16]}.json"
        found = _kept(path)
        if found.get("about") != about or not isinstance(found.get("measures"), dict):
            found = {"about": about, "measures": self._measure(network)}
            write_atomic(path, pretty(found))
        return {"split": self.name, **found["measures"]}

    def _measure(self, options: NetworkOptions) -> dict[str, Any]:
        network, preprocess = options.build(self.task.n_classes, role="student")
        learner = Learner(network, self.task, preprocess=preprocess).to(find_device(self.accelerator))
        said = predictions_of(learner, self.dataset)
        metrics = evaluate(said.fields[LOGITS], said.labels, replicates=0).metrics
        return {
            "split": self.name,
            **{name: metrics[name].value for name in ("accuracy", "nll", "ece")},
            **diversity(said.fields[LOGITS], said.labels).to_json(),
        }


def _kept(path: Path) -> dict[str, Any]:
    try:
        return read(path, str(path)) if path.exists() else {}
    except (BookFormatError, OSError):  # damaged: it is measured again
        return {}
