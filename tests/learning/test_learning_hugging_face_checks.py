"""What a `transformers.Trainer` on a book refuses: other rows, models and methods, and documents that see one another."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tests.learning.hugging_face import (  # noqa: E402
    ROWS,
    SHAPE,
    TASK,
    VIEWS,
    V,
    arguments,
    book_at,
    collator,
    flat,
    model,
    trained,
)

from bookkd.book import Dense  # noqa: E402
from bookkd.core.errors import BookMismatchError, ConfigError, ViewMismatchError  # noqa: E402
from bookkd.core.schedules import Clock  # noqa: E402
from bookkd.knowledge import StoredKnowledge, Teacher  # noqa: E402
from bookkd.learning.hugging_face import BookTrainer, tokens_of  # noqa: E402
from bookkd.learning.learner import Learner  # noqa: E402
from bookkd.learning.step import Step  # noqa: E402
from bookkd.making import make  # noqa: E402
from bookkd.methods import LLMKD, build_method  # noqa: E402
from bookkd.views import Replay  # noqa: E402
from bookkd.zoo import LanguageModel, create_causal_lm, positions_within  # noqa: E402


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return book_at(tmp_path_factory.mktemp("hugging-face") / "book")


def test_what_cannot_be_is_refused_before_training(book, tmp_path):
    how = arguments(tmp_path)
    with pytest.raises(BookMismatchError, match=r"`rows` to be 24, as .*got 23.*say which they are: rows="):
        BookTrainer(model(0), how, book=book.path, train_dataset=ROWS[:-1])
    with pytest.raises(BookMismatchError, match=r"at least 20, the vocabulary of .*got 12"):
        BookTrainer(model(0, outputs=12), how, book=book.path, train_dataset=ROWS)
    for method in ("llm-kd", LLMKD):
        with pytest.raises(
            ConfigError, match=r"`method` to be a method, got .*Pass one with its options, such as LLMKD\(\)"
        ):
            BookTrainer(model(0), how, book=book.path, train_dataset=ROWS, method=method)
    with pytest.raises(ConfigError, match="one that is indexed"):
        BookTrainer(model(0), how, book=book.path, train_dataset=iter(ROWS))

    def padded_left(given):
        return {name: value.flip(1) for name, value in collator(given).items()}

    left = BookTrainer(model(0), how, book=book.path, train_dataset=ROWS, data_collator=padded_left)
    with pytest.raises(ConfigError, match="`padding` to be at the end of each row"):
        left.train()
    for change, message in (
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` to be absent, got 0.1.*The loss is the method's"),
        ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, None),
    ):
        changed = arguments(tmp_path, **change)
        if message is not None:
            with pytest.raises(ConfigError, match=message):
                BookTrainer(model(0), changed, book=book.path, train_dataset=ROWS)
        else:
            BookTrainer(model(0), changed, book=book.path, train_dataset=ROWS)
    with pytest.raises(ConfigError, match="`compute_loss_func` to be absent"):
        BookTrainer(model(0), how, book=book.path, train_dataset=ROWS, compute_loss_func=lambda *_, **__: 0)
    with pytest.raises(ConfigError, match="one row of the book, below 24, for each of 2, got 24 for row 1"):
        BookTrainer(model(0), how, book=book.path, train_dataset=ROWS[:2], rows=[0, 24])
    with pytest.raises(BookMismatchError, match=r"at least 20, the vocabulary of .*got 12"):
        BookTrainer(None, how, book=book.path, train_dataset=ROWS, model_init=lambda: model(0, outputs=12))


@pytest.mark.parametrize("name", ["dkd", "dist", "bookkd", "dml", "beta-smoothing", "tfkd-reg", "takd"])
def test_methods_that_it_does_not_serve_are_refused(book, tmp_path, name):
    method = build_method(name)
    with pytest.raises(ConfigError, match=r"one that method .* serves|one without"):
        BookTrainer(model(0), arguments(tmp_path), book=book.path, train_dataset=ROWS, method=method)


def test_rows_in_another_order_are_refused_before_training(book, tmp_path):
    """The likeliest slip: the script shuffled its rows after the book was made."""
    with pytest.raises(ViewMismatchError, match=r"Row 0 here is row \d+ of the book: the rows stand in another order"):
        BookTrainer(model(0), arguments(tmp_path), book=book.path, train_dataset=ROWS[::-1])
    with pytest.raises(ViewMismatchError, match=r"Row 0 here is row 1 of the book") as raised:
        BookTrainer(model(0), arguments(tmp_path), book=book.path, train_dataset=ROWS[1:] + ROWS[:1])
    assert not re.search("pillow|torchvision|transform", str(raised.value))  # what draws pixels is no matter of tokens


def test_rows_of_a_book_without_probes_are_held_against_its_fingerprint(tmp_path):
    from dataclasses import replace

    from bookkd.book import BookWriter

    whole = make(
        tmp_path / "whole",
        Teacher(LanguageModel(model(1))),
        tokens_of(ROWS, vocabulary=V),
        VIEWS,
        task=TASK,
        codec=Dense(),
    )
    plan = replace(whole.plan, fields={"logits": whole.plan.fields["logits"]}, unit_rows=None)
    with BookWriter(tmp_path / "bare", plan) as writer:
        writer.write_rows(0, 0, whole.read(np.arange(24), np.zeros(24, int), ["logits"]))
        writer.finish({})
    BookTrainer(model(0), arguments(tmp_path), book=tmp_path / "bare", train_dataset=ROWS)
    with pytest.raises(BookMismatchError, match=r"`rows` to be those of .*bare, which has no probes but a fingerprint"):
        BookTrainer(model(0), arguments(tmp_path), book=tmp_path / "bare", train_dataset=ROWS[::-1])
    with pytest.raises(BookMismatchError, match="a part of them"):
        BookTrainer(model(0), arguments(tmp_path), book=tmp_path / "bare", train_dataset=ROWS[:2], rows=[0, 1])


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


def test_a_model_of_fewer_positions_than_the_rows_is_refused(book, tmp_path):
    short = create_causal_lm({**SHAPE, "n_layer": 1, "n_embd": 16, "n_positions": 8}, vocabulary=V).model
    with pytest.raises(BookMismatchError, match=r"`positions of the model` to be at least 11, the longest .*, got 8"):
        BookTrainer(short, arguments(tmp_path), book=book.path, train_dataset=ROWS, data_collator=collator)


def test_documents_that_the_teacher_kept_apart_stay_apart(tmp_path):
    """With position_ids of the collator the student sees what the teacher saw; without them it is refused."""
    data, teacher = tokens_of(ROWS, vocabulary=V), Teacher(LanguageModel(model(1, 32), separator=0))
    book = make(tmp_path / "b", teacher, data, VIEWS, task=TASK)
    assert book.plan.teachers[0].mode == "eval, documents apart at token 0"

    def apart(given):
        batch = collator(given)
        return {**batch, "position_ids": positions_within(batch["input_ids"], 0)}

    def trainer(collate):
        return BookTrainer(model(9), arguments(tmp_path), book=book.path, train_dataset=ROWS, data_collator=collate)

    with pytest.raises(
        ConfigError, match=r"`position_ids` to be in the batch, got 'none' .*documents apart at token 0"
    ):
        trainer(collator).train()

    def counted(given):
        batch = collator(given)
        return {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])}

    with pytest.raises(
        ConfigError, match=r"`position_ids` to be counted from each separator, got \d+ at token \d+ of row"
    ):
        trainer(counted).train()
    for given in (lambda at: at[:1], lambda at: at[0]):  # Transformers lays those of one row on all
        with pytest.raises(ConfigError, match=r"`position_ids` to be counted from each separator, got \d+ at token"):
            trainer(
                lambda batch, given=given: {**counted(batch), "position_ids": given(counted(batch)["position_ids"])}
            ).train()
    for given in (lambda at: at[None].expand(3, -1, -1), lambda at: at[:, :-1], lambda at: at[:2]):
        with pytest.raises(
            ConfigError, match=r"`position_ids` to be of shape \[24, 11\], or \[1, 11\] for all rows alike"
        ):
            trainer(
                lambda batch, given=given: {**apart(batch), "position_ids": given(apart(batch)["position_ids"])}
            ).train()
    done = trainer(apart)
    asked = []
    hook = done.model.register_forward_pre_hook(lambda _, __, given: asked.append(given["use_cache"]), with_kwargs=True)
    done.train()
    told = done.evaluate(ROWS[:4])["eval_loss"]
    assert set(asked) == {False}  # with a cache Transformers would let documents see one another
    hook.remove()
    done.model.config.use_cache = False
    # A plain trainer keeps documents apart where no mask stands beside their positions
    plain = transformers.Trainer(
        done.model, arguments(tmp_path), eval_dataset=ROWS[:4],
        data_collator=lambda given: {key: value for key, value in apart(given).items() if key != "attention_mask"},
    )  # fmt: skip
    assert told == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)
    mine = LanguageModel(model(9), separator=0)
    learner, step = Learner(mine, TASK), Step(LLMKD().objective(TASK), TASK, StoredKnowledge(book.path))
    batch = Replay(data, VIEWS).batch([(row, 0) for row in range(len(ROWS))])
    assert done.state.log_history[0]["loss"] == pytest.approx(
        float(step.loss(learner, batch, Clock()).loss.detach()), rel=1e-4
    )


def test_a_student_whose_documents_see_one_another_is_refused_where_the_teachers_did_not(tmp_path):
    data, teacher = tokens_of(ROWS, vocabulary=V), Teacher(LanguageModel(model(1, 32), separator=0))
    book = make(tmp_path / "b", teacher, data, VIEWS, task=TASK)
    shape = {
        "model_type": "xglm", "num_layers": 1, "attention_heads": 2, "d_model": 32, "ffn_dim": 32,
        "max_position_embeddings": 32,
    }  # fmt: skip
    student = create_causal_lm(shape, vocabulary=V).model
    with pytest.raises(ConfigError, match=r"keeps documents apart by position_ids, got 'XGLMForCausalLM' .*at token 0"):
        BookTrainer(student, arguments(tmp_path), book=book.path, train_dataset=ROWS)


def test_positions_of_one_row_stand_for_all(book, tmp_path):
    def one(given):
        batch = collator(given)
        return {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1])[None]}

    student = model(9)
    BookTrainer(student, arguments(tmp_path), book=book.path, train_dataset=ROWS, data_collator=one).train()
    torch.testing.assert_close(flat(student), flat(trained(book, tmp_path / "plain")[0]))


def test_positions_are_proven_of_the_first_batch_and_then_of_a_share(book, tmp_path):
    def trainer(wrong, share):
        batches = []

        def collate(given):
            batch, width = collator(given), max(len(row["input_ids"]) for row in given)
            batches.append(torch.arange(width).expand(len(given), -1))
            return {**batch, "position_ids": batches[-1].flip(1) if len(batches) - 1 == wrong else batches[-1]}

        options = arguments(tmp_path, per_device_train_batch_size=12)
        return BookTrainer(
            model(9), options, book=book.path, train_dataset=ROWS, data_collator=collate, probe_share=share
        )  # fmt: skip

    for wrong, share in ((0, 0.0), (1, 1.0)):
        with pytest.raises(ConfigError, match="counted on through each row"):
            trainer(wrong, share).train()
    trainer(1, 0.0).train()


def test_documents_that_the_teacher_saw_together_are_not_kept_apart(book, tmp_path):
    def apart(given):
        batch = collator(given)
        return {**batch, "position_ids": positions_within(batch["input_ids"], 0)}

    trainer = BookTrainer(model(9), arguments(tmp_path), book=book.path, train_dataset=ROWS, data_collator=apart)
    with pytest.raises(
        ConfigError, match=r"counted on through each row, got 0 .*documents together\)\. Let the collator"
    ):
        trainer.train()


def apart(given):
    batch = collator(given)
    return {**batch, "position_ids": positions_within(batch["input_ids"], 0)}


def changed(**more):
    """A collator that gives some entries otherwise, each made of the batch."""
    return lambda given: apart(given) | {name: make_it(apart(given)) for name, make_it in more.items()}


def turned(given):
    return {name: value.flip(1) for name, value in apart(given).items()}


def test_evaluation_shows_documents_as_training_does(book, tmp_path):
    """What would let documents see one another, or keep them apart where the teacher did not, is refused there too."""
    teacher = Teacher(LanguageModel(model(1, 32), separator=0))
    kept = make(tmp_path / "b", teacher, tokens_of(ROWS, vocabulary=V), VIEWS, task=TASK)

    def trainer(collate, of=kept):
        return BookTrainer(
            model(9), arguments(tmp_path), book=of.path, train_dataset=ROWS, eval_dataset=ROWS[:8], data_collator=collate
        )  # fmt: skip

    counted = changed(position_ids=lambda batch: torch.arange(batch["input_ids"].shape[1])[None])
    for collate, of, message in (
        (collator, kept, r"`position_ids` to be in the batch, got 'none' .*documents apart at token 0"),
        (
            counted,
            kept,
            r"`position_ids` to be counted from each separator, got \d+ at token \d+ of row \d of the batch",
        ),
        (turned, kept, r"`padding` to be at the end of each row, got 'elsewhere' .*padding_side"),
        (apart, book, r"`position_ids` to be counted on through each row, got 0 .*Let the collator leave them out"),
    ):
        with pytest.raises(ConfigError, match=message):
            trainer(collate, of).evaluate()
        unlabelled = trainer(lambda given, collate=collate: collate(given) | {"labels": None}, of)
        with pytest.raises(ConfigError, match=message):
            unlabelled.predict(ROWS[:8])
    # Beside positions of documents, a mask changes nothing; nor do positions of padding, which nobody sees.
    padded = changed(position_ids=lambda batch: batch["position_ids"] * batch["attention_mask"])
    without = changed(attention_mask=lambda batch: None)
    losses = [trainer(collate).evaluate()["eval_loss"] for collate in (apart, padded, without)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    said = [
        trainer(lambda given, collate=collate: collate(given) | {"labels": None}).predict(ROWS[:8]).predictions
        for collate in (apart, without)
    ]
    np.testing.assert_allclose(*said, rtol=1e-5, atol=1e-6)
