"""A `transformers.Trainer` on a book: the loss of our own step, however batches are divided; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from bookkd.book import Dense, Sampled, TopK  # noqa: E402
from bookkd.core.errors import BookMismatchError, ConfigError, ViewMismatchError  # noqa: E402
from bookkd.core.schedules import Clock  # noqa: E402
from bookkd.knowledge import StoredKnowledge, Teacher  # noqa: E402
from bookkd.learning.hugging_face import BookTrainer, tokens_of  # noqa: E402
from bookkd.learning.learner import Learner  # noqa: E402
from bookkd.learning.step import Step  # noqa: E402
from bookkd.making import make  # noqa: E402
from bookkd.methods import LLMKD  # noqa: E402
from bookkd.tasks import CausalLM  # noqa: E402
from bookkd.views import Replay, Views  # noqa: E402
from bookkd.zoo import LanguageModel, create_causal_lm  # noqa: E402

V = 20
SHAPE = {"model_type": "gpt2", "n_head": 2, "n_positions": 32, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
TASK, VIEWS = CausalLM(V), Views(None, n_views=1)


def model(seed, width=16, outputs=V):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return create_causal_lm({**SHAPE, "n_layer": 1, "n_embd": width}, vocabulary=outputs).model


def rows(count=24, prompts=True):
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        ids = ((np.arange(int(rng.integers(3, 12))) + rng.integers(V)) % V).tolist()
        hidden = 2 if prompts and number % 3 == 0 else 0
        found.append({"input_ids": ids, "labels": [-100] * hidden + ids[hidden:], "note": f"row {number}"})
    return found


ROWS = rows()


def collator(given):
    """Pads at the end, as DataCollatorForTokenClassification does."""
    longest = max(len(row["input_ids"]) for row in given)
    filled = [len(row["input_ids"]) for row in given]
    return {
        "input_ids": torch.tensor(
            [row["input_ids"] + [0] * (longest - n) for row, n in zip(given, filled, strict=True)]
        ),
        "attention_mask": torch.tensor([[1] * n + [0] * (longest - n) for n in filled]),
        "labels": torch.tensor([row["labels"] + [-100] * (longest - n) for row, n in zip(given, filled, strict=True)]),
    }


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("hugging-face") / "book"
    teacher = Teacher(LanguageModel(model(1, 32)), name="teacher")
    return make(path, teacher, tokens_of(ROWS, vocabulary=V), VIEWS, task=TASK, codec=TopK(6, (1.0,)))


def arguments(folder, **changes):
    options = {
        "output_dir": str(folder), "per_device_train_batch_size": 24, "num_train_epochs": 1, "report_to": [], "use_cpu": True,
        "save_strategy": "no", "lr_scheduler_type": "constant", "learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 0.0,
        "logging_steps": 1, "disable_tqdm": True, "seed": 3,
    }  # fmt: skip
    return transformers.TrainingArguments(**{**options, **changes})


def trained(book, folder, start=9, dataset=None, method=None, **changes):
    student = model(start)
    trainer = BookTrainer(
        student, arguments(folder, **changes), book=book.path, method=method, train_dataset=dataset or ROWS,
        data_collator=collator, probe_share=1.0,
    )  # fmt: skip
    trainer.train()
    return student, trainer


def flat(student):
    return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])


@pytest.mark.parametrize("method", [LLMKD(), LLMKD(divergence="jsd", ce_weight=0.5)], ids=["kl", "jsd and labels"])
def test_one_step_is_that_of_our_own_loop(book, tmp_path, method):
    student, trainer = trained(book, tmp_path, method=method)
    mine = LanguageModel(model(9))
    learner, step = Learner(mine, TASK), Step(method.objective(TASK), TASK, StoredKnowledge(book.path))
    batch = Replay(tokens_of(ROWS, vocabulary=V), VIEWS).batch([(row, 0) for row in range(len(ROWS))])
    loss = step.loss(learner.train(), batch, Clock()).loss
    loss.backward()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter -= 0.1 * parameter.grad
    torch.testing.assert_close(flat(student), flat(mine), rtol=1e-5, atol=1e-6)


def test_the_step_does_not_depend_on_how_the_batch_is_divided(book, tmp_path):
    whole, _ = trained(book, tmp_path / "a")
    for size, accumulate in ((6, 4), (1, 24)):
        how = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulate}
        parts, _ = trained(book, tmp_path / f"{size}", **how)
        torch.testing.assert_close(flat(parts), flat(whole), rtol=1e-5, atol=1e-6)


def test_it_trains_and_evaluates_on_labels(book, tmp_path):
    student = model(9)
    trainer = BookTrainer(
        student, arguments(tmp_path, num_train_epochs=30, per_device_train_batch_size=8, learning_rate=0.3), book=book.path,
        train_dataset=ROWS, eval_dataset=rows(6, prompts=False), data_collator=collator,
    )  # fmt: skip
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert np.isfinite(before)
    tokens = torch.tensor([rows(6, prompts=False)[0]["input_ids"]])
    assert student(tokens).logits.shape[-1] == V


def test_a_checkpoint_of_the_trainer_goes_on(book, tmp_path):
    how = {"num_train_epochs": 4, "per_device_train_batch_size": 8, "save_strategy": "epoch", "seed": 5}
    whole, _ = trained(book, tmp_path / "whole", **how)
    begun = BookTrainer(
        model(9), arguments(tmp_path / "parts", **{**how, "num_train_epochs": 4}, max_steps=6), book=book.path,
        train_dataset=ROWS, data_collator=collator,
    )  # fmt: skip
    begun.train()
    again = model(9)
    resumed = BookTrainer(
        again, arguments(tmp_path / "parts", **how), book=book.path, train_dataset=ROWS, data_collator=collator
    )
    resumed.train(resume_from_checkpoint=True)
    torch.testing.assert_close(flat(again), flat(whole), rtol=1e-5, atol=1e-6)


def test_other_tokens_are_found_by_the_probe(book, tmp_path):
    changed = [dict(row) for row in ROWS]
    changed[5] = {**changed[5], "input_ids": [(token + 1) % V for token in changed[5]["input_ids"]]}
    with pytest.raises(ViewMismatchError, match="sample 5"):
        trained(book, tmp_path, dataset=changed)


def test_what_cannot_be_is_refused_before_training(book, tmp_path):
    how = arguments(tmp_path)
    with pytest.raises(BookMismatchError, match=r"`rows` to be 24, as .*got 23"):
        BookTrainer(model(0), how, book=book.path, train_dataset=ROWS[:-1])
    with pytest.raises(BookMismatchError, match=r"at least 20, the vocabulary of .*got 12"):
        BookTrainer(model(0, outputs=12), how, book=book.path, train_dataset=ROWS)
    with pytest.raises(ConfigError, match="one that is indexed"):
        BookTrainer(model(0), how, book=book.path, train_dataset=iter(ROWS))

    def padded_left(given):
        return {name: value.flip(1) for name, value in collator(given).items()}

    left = BookTrainer(model(0), how, book=book.path, train_dataset=ROWS, data_collator=padded_left)
    with pytest.raises(ConfigError, match="`padding` to be at the end of each row"):
        left.train()


def test_another_tokenizer_is_refused(tmp_path):
    from tokenizers import Tokenizer, models

    def tokenizer(words):
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}))
        )

    mine, other = tokenizer([*"abcdefghijklmnopqrst"]), tokenizer([*"tsrqponmlkjihgfedcba"])
    data = tokens_of(ROWS, vocabulary=V, tokenizer=mine)
    book = make(tmp_path / "b", Teacher(LanguageModel(model(1))), data, VIEWS, task=TASK, codec=Dense())
    BookTrainer(model(0), arguments(tmp_path), book=book.path, train_dataset=ROWS, processing_class=mine)
    with pytest.raises(
        BookMismatchError, match=r"`tokenizer` to be .*Use the tokenizer that the book's tokens were made by"
    ):
        BookTrainer(model(0), arguments(tmp_path), book=book.path, train_dataset=ROWS, processing_class=other)


def test_draws_teach_too(tmp_path):
    book = make(
        tmp_path / "b",
        Teacher(LanguageModel(model(1, 32))),
        tokens_of(ROWS, vocabulary=V),
        VIEWS,
        task=TASK,
        codec=Sampled(40),
    )
    student, _ = trained(book, tmp_path / "run")
    assert torch.isfinite(flat(student)).all()
