"""One row for each task of the table: a task, a tiny network and batch, and what must come out."""

from __future__ import annotations

import torch
from torch import nn

from bookkd.tasks import CTC, CausalLM, Classification, MultiLabel, Regression, Segmentation, Seq2Seq, Tagging


def classification():
    torch.manual_seed(0)
    batch = {
        "input": torch.rand(4, 1, 2, 2),
        "label": torch.tensor([0, 2, 1, -1]),
        "weight": torch.tensor([1.0, 1.0, 1.0, 0.0]),
    }
    return Classification(("a", "b", "c")), nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), batch


def multi_label():
    torch.manual_seed(0)
    batch = {
        "input": torch.rand(4, 1, 2, 2),
        "label": torch.tensor([[0, 1, 1], [1, -1, 0], [0, 0, 0], [1, 1, -1]]),
        "weight": torch.tensor([1.0, 1.0, 1.0, 0.0]),
    }
    return MultiLabel(("a", "b", "c")), nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), batch


class Normal(nn.Module):
    """Mean and variance of two outputs."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        self.spread = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Softplus())

    def forward(self, x):
        return self.mean(x), self.spread(x) + 0.01


def regression():
    torch.manual_seed(0)
    batch = {
        "input": torch.rand(4, 1, 2, 2),
        "label": torch.tensor([[0.5, 1.0], [torch.nan, -1.0], [2.0, 0.0], [9.0, torch.nan]]),
        "weight": torch.tensor([1.0, 1.0, 1.0, 0.0]),
    }
    return Regression(("x", "y"), variance="both"), Normal(), batch


class Tokens(nn.Module):
    """Logits at every token, of that token alone."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.embed(x.long()))


def causal_lm():
    torch.manual_seed(0)
    batch = {
        "input": torch.tensor([[0, 1, 2, 3], [4, 0, 2, 0], [3, 2, 0, 0], [1, 1, 1, 1]]),
        "length": torch.tensor([4, 3, 2, 4]),
        "label": torch.tensor([[0, 1, -1, 3], [4, 0, 2, -1], [3, 2, -1, -1], [1, 1, 1, 1]]),
        "weight": torch.tensor([1.0, 1.0, 1.0, 0.0]),
    }
    return CausalLM(5), Tokens(), batch


class Frames(nn.Module):
    """Logits at every second frame, of that frame alone."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, x, lengths):
        return self.head(x[:, ::2])


def ctc():
    torch.manual_seed(0)
    batch = {
        "input": torch.rand(4, 7, 2),
        "length": torch.tensor([7, 5, 3, 6]),
        "label": torch.tensor([[1, 2], [-1, -1], [2, -1], [1, 1]]),
        "label_length": torch.tensor([2, 1, 1, 2]),
        "sample": torch.arange(4),
        "weight": torch.tensor([1.0, 1.0, 1.0, 0.0]),
    }
    return CTC(("-", "a", "b"), subsampling=2), Frames(), batch


def segmentation():
    torch.manual_seed(0)
    labels = torch.tensor([[0, 1, 2, 2], [1, 1, -1, 0], [-1, 2, 2, 0]])
    batch = {
        "input": torch.rand(4, 2, 3, 4),
        "label": torch.stack([labels, labels.flip(1), torch.full_like(labels, -1), labels.flip(0)]),
        "weight": torch.tensor([1.0, 1.0, 1.0, 0.0]),
    }
    return Segmentation(("a", "b", "c"), stride=2), nn.Conv2d(2, 3, 1), batch


class Translator(nn.Module):
    """Logits at every prefix token, of that token and the mean of the source."""

    def __init__(self):
        super().__init__()
        self.source, self.target, self.head = nn.Embedding(5, 6), nn.Embedding(5, 6), nn.Linear(6, 5)

    def forward(self, source, lengths, prefix):
        there = (torch.arange(source.shape[1]) < lengths[:, None])[..., None]
        mean = (self.source(source) * there).sum(1) / lengths[:, None]
        return self.head(self.target(prefix) + mean[:, None])


def seq2seq():
    torch.manual_seed(0)
    batch = {
        "input": torch.tensor([[0, 1, 2, 3], [4, 0, 2, 0], [3, 2, 0, 0], [1, 1, 1, 1]]),
        "length": torch.tensor([4, 3, 2, 4]),
        "label": torch.tensor([[3, 2, -1], [4, 2, -1], [3, 4, 2], [3, 3, 2]]),
        "label_length": torch.tensor([2, 2, 3, 3]),
        "weight": torch.tensor([1.0, 1.0, 1.0, 0.0]),
    }
    return Seq2Seq(5, begin=1), Translator(), batch


class Steps(nn.Module):
    """Logits at every step, of that step alone."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 3)

    def forward(self, x, lengths):
        return self.head(x)


def tagging():
    torch.manual_seed(0)
    batch = {
        "input": torch.rand(4, 3, 2),
        "length": torch.tensor([3, 2, 1, 3]),
        "label": torch.tensor([[0, 1, 2], [2, -1, -1], [1, -1, -1], [0, 0, 0]]),
        "label_length": torch.tensor([3, 2, 1, 3]),
        "weight": torch.tensor([1.0, 1.0, 1.0, 0.0]),
    }
    return Tagging(("a", "b", "c")), Steps(), batch


# Name -> task, network and batch.
TASKS = {
    "causal-lm": causal_lm,
    "classification": classification,
    "ctc": ctc,
    "multi-label": multi_label,
    "regression": regression,
    "segmentation": segmentation,
    "seq2seq": seq2seq,
    "tagging": tagging,
}
# Name -> fields with the shape of one record.
FIELDS = {
    "causal-lm": {"logits": (5,)},
    "classification": {"logits": (3,)},
    "ctc": {"logits": (3,)},
    "multi-label": {"logits": (3,)},
    "regression": {"mean": (2,), "variance": (2,)},
    "segmentation": {"logits": (3,)},
    "seq2seq": {"logits": (5,)},
    "tagging": {"logits": (3,)},
}
# Name -> axes of a field before those, where it is not one of records or positions alone: here records and pixels.
LEADING = {"segmentation": 3}
# Name -> primary metric.
METRICS = {
    "causal-lm": "perplexity",
    "classification": "accuracy",
    "ctc": "wer",
    "multi-label": "map",
    "regression": "r2",
    "segmentation": "miou",
    "seq2seq": "perplexity",
    "tagging": "accuracy",
}
