"""Views that hide tokens: how many, which never, that they replay, and that labels stay the text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bookkd.core.errors import ConfigError, DataError
from bookkd.tasks import CausalLM
from bookkd.views import Replay, Views, check_replay
from bookkd.zoo import TokenDataset, create_transform, special_tokens

PAD, CLS, MASK = 0, 1, 2
SPECIAL = (PAD, CLS, MASK)


def text(**options):
    rng = np.random.default_rng(0)
    rows = [[CLS, *rng.integers(3, 50, int(rng.integers(5, 60)))] for _ in range(200)]
    return TokenDataset.of("x", rows, vocabulary=50, pad_value=PAD, **options)


def views(share=0.3, n=2, seed=0):
    args = {"mask": MASK, "share": share, "never": SPECIAL}
    return Views(create_transform("token-mask", args), n_views=n, seed=seed, name="token-mask", args=args)


def test_a_share_is_hidden_and_special_tokens_never():
    data = text()
    batch = Replay(data, views()).batch([(row, 0) for row in range(len(data))])
    tokens = torch.cat([data[row][0] for row in range(len(data))])
    seen = torch.cat([row[:length] for row, length in zip(batch["input"], batch["length"], strict=True)])
    hidden = seen == MASK
    ordinary = tokens > MASK
    assert not hidden[~ordinary].any()
    assert float(hidden[ordinary].float().mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(seen[~hidden], tokens[~hidden])
    padding = torch.cat([row[length:] for row, length in zip(batch["input"], batch["length"], strict=True)])
    assert (padding == PAD).all()


def test_views_replay_and_differ():
    replay = Replay(text(), views())
    check_replay(replay)
    first, second = (replay[(7, view)]["input"] for view in (0, 1))
    assert torch.equal(first, replay[(7, 0)]["input"])
    assert not torch.equal(first, second)
    assert not torch.equal(first, Replay(text(), views(seed=1))[(7, 0)]["input"])
    recipe = views().recipe(10)
    assert (recipe["transform"], recipe["args"]["share"], recipe["args"]["never"]) == ("token-mask", 0.3, [0, 1, 2])


def test_labels_of_tokens_are_the_text():
    data, task = text(), CausalLM(50)
    plain, hidden = (
        task.batch(Replay(data, each).batch([(3, 0), (8, 0)])) for each in (Views(None, n_views=1), views(1.0))
    )
    assert torch.equal(hidden["label"], plain["label"])
    assert (hidden["input"][0, 1 : int(hidden["length"][0])] == MASK).all()
    learnt = np.zeros(len(data.tokens), bool)
    given = Replay(text(learnt=learnt), views(1.0)).batch([(3, 0)])
    assert (given["label"] == -1).all()


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"`share` to be between 0 and 1, got 1\.5 \(transform token-mask\)"):
        views(1.5)
    with pytest.raises(ConfigError, match=r"`token` to be a whole number of at least 0, got -1"):
        create_transform("token-mask", {"mask": -1})
    with pytest.raises(DataError, match=r"whole numbers in one row, got torch.float32 of shape \[3\]"):
        views().transform(torch.zeros(3))


def test_special_tokens_are_read_from_the_tokenizer():
    from tokenizers import AddedToken, Tokenizer, models

    made = Tokenizer(models.WordLevel({"[PAD]": 0, "a": 1, "b": 2}, unk_token="a"))
    made.add_special_tokens(["[PAD]", AddedToken("<|end|>", special=True)])
    made.add_tokens(["word"])
    assert special_tokens(made) == (0, 3)
