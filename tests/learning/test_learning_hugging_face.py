"""A `transformers.Trainer` on a book: the loss of our own step, however batches are divided; and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from tests.learning.hugging_face import (  # noqa: E402
    EXPERTS,
    ROWS,
    TASK,
    VIEWS,
    V,
    arguments,
    book_at,
    collator,
    flat,
    model,
    rows,
    trained,
)

from bookkd.book import Dense, Sampled  # noqa: E402
from bookkd.core.errors import BookMismatchError, ConfigError, DataError, ViewMismatchError  # noqa: E402
from bookkd.core.schedules import Clock  # noqa: E402
from bookkd.knowledge import StoredKnowledge, Teacher  # noqa: E402
from bookkd.learning import learn  # noqa: E402
from bookkd.learning.hugging_face import BookTrainer, tokens_of  # noqa: E402
from bookkd.learning.learner import Learner  # noqa: E402
from bookkd.learning.step import Step  # noqa: E402
from bookkd.making import make  # noqa: E402
from bookkd.methods import LLMKD  # noqa: E402
from bookkd.views import Replay  # noqa: E402
from bookkd.zoo import LanguageModel, create_causal_lm  # noqa: E402


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    return book_at(tmp_path_factory.mktemp("hugging-face") / "book")


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


def test_a_network_of_ours_is_refused_with_what_to_pass(book, tmp_path):
    with pytest.raises(
        ConfigError, match=r"`model` to be one of Transformers, got a LanguageModel .* Pass its \.model"
    ):
        BookTrainer(LanguageModel(model(9)), arguments(tmp_path), book=book.path, train_dataset=ROWS)


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


def test_a_part_of_the_rows_in_another_order_is_found_by_their_numbers(book, tmp_path):
    places = [7, 3, 20, 11]
    some, said = [ROWS[place] for place in places], []

    class Spy(StoredKnowledge):
        def targets(self, batch, fields=None):
            said.append(batch["sample"].tolist())
            return super().targets(batch, fields)

    trainer = BookTrainer(
        model(9), arguments(tmp_path, per_device_train_batch_size=4), book=Spy(book.path), train_dataset=some, rows=places,
        data_collator=collator, probe_share=1.0,
    )  # fmt: skip
    trainer.train()
    assert sorted(said[0]) == sorted(places)


def test_rows_that_are_padded_already_are_cut_by_their_mask(book, tmp_path):
    """`padding="max_length"`: the book is of the tokens alone, and the run is that of the rows without padding."""

    def padded(row):
        ids, labels, more = row["input_ids"], row["labels"], 14 - len(row["input_ids"])
        mask = [1] * len(ids) + [0] * more
        return {"input_ids": ids + [0] * more, "labels": labels + [-100] * more, "attention_mask": mask}

    long = [padded(row) for row in ROWS]
    mine, theirs = tokens_of(long, vocabulary=V), tokens_of(ROWS, vocabulary=V)
    assert np.array_equal(mine.ends, theirs.ends)
    assert np.array_equal(mine.tokens, theirs.tokens)
    assert np.array_equal(mine.learnt, theirs.learnt)

    def stack(given):
        return {key: torch.tensor([row[key] for row in given]) for key in ("input_ids", "labels", "attention_mask")}

    student = model(9)
    trainer = BookTrainer(
        student, arguments(tmp_path / "a"), book=book.path, train_dataset=long, data_collator=stack, probe_share=1.0
    )
    trainer.train()
    plain, _ = trained(book, tmp_path / "b")
    torch.testing.assert_close(flat(student), flat(plain), rtol=1e-5, atol=1e-6)
    left = [{key: value[::-1] for key, value in row.items()} for row in long]
    with pytest.raises(DataError, match=r"in front of tokens \(tokens, sample 0\)\. Set the tokenizer.s padding_side"):
        tokens_of(left, vocabulary=V)


def test_rows_that_a_collator_cuts_or_lays_end_to_end_are_refused_in_words(book, tmp_path):
    def cut(given):
        return {name: value[:, :5] for name, value in collator(given).items()}

    def flattened(given):
        ids = [token for row in given for token in row["input_ids"]]
        return {"input_ids": torch.tensor([ids]), "labels": torch.tensor([ids])}

    for collate, error, message in (
        (
            cut,
            BookMismatchError,
            r"`positions` to be \d+, as the book has, got 4 .*sample \d+\)\. Was it padded, or cut",
        ),
        (flattened, ConfigError, r"one row for each of 24, got 1 \(collator\)\. Leave padding_free"),
    ):
        trainer = BookTrainer(
            model(0), arguments(tmp_path), book=book.path, train_dataset=ROWS, data_collator=collate, probe_share=0
        )
        with pytest.raises(error, match=message):
            trainer.train()


def test_a_column_of_the_users_that_is_called_sample_stays_theirs(book, tmp_path):
    named = [{**row, "sample": f"text {place}"} for place, row in enumerate(ROWS)]
    seen = []

    def collate(given):
        seen.extend(row["sample"] for row in given)
        return collator(given)

    trainer = BookTrainer(
        model(0), arguments(tmp_path, remove_unused_columns=False), book=book.path, train_dataset=named,
        data_collator=collate, eval_dataset=named[:3],
    )  # fmt: skip
    trainer.train()
    trainer.evaluate()
    assert set(seen) == {f"text {place}" for place in range(24)}


def refusing():
    """A model that takes no count of tokens, whose loss a trainer would divide by the batches of a step."""

    class Refusing(type(model(0))):
        accepts_loss_kwargs = False

    student = Refusing(model(9).config)
    student.load_state_dict(model(9).state_dict())
    return student


def test_the_step_of_a_model_that_takes_no_count_is_not_divided_again(book, tmp_path):
    found = []
    for size, accumulate in ((24, 1), (6, 4)):
        student, options = refusing(), {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulate}
        BookTrainer(
            student, arguments(tmp_path, **options), book=book.path, train_dataset=ROWS, data_collator=collator
        ).train()
        found.append(flat(student) - flat(model(9)))
    assert found[0].abs().max() > 1e-4
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("takes", ["no keywords", "says no"])
def test_evaluation_is_that_of_a_trainer_whatever_a_model_takes(book, tmp_path, takes):
    class Plain(type(model(0))):
        if takes == "says no":
            accepts_loss_kwargs = False
        else:

            def forward(self, input_ids=None, attention_mask=None, labels=None):
                return super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels)

    student = Plain(model(3).config)
    student.load_state_dict(model(3).state_dict())
    options = {"eval_dataset": ROWS[:6], "data_collator": collator}
    plain = transformers.Trainer(student, arguments(tmp_path), train_dataset=ROWS, **options)
    mine = BookTrainer(student, arguments(tmp_path), train_dataset=ROWS, book=book.path, **options)
    assert mine.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)


def test_labels_that_a_collator_has_shifted_are_refused(book, tmp_path):
    def shifted(given):
        batch = collator(given)
        return {**batch, "labels": batch["labels"].roll(-1, 1)}

    trainer = BookTrainer(model(0), arguments(tmp_path), book=book.path, train_dataset=ROWS, data_collator=shifted)
    with pytest.raises(ConfigError, match=r"`labels` to be the tokens themselves, or -100.*leave labels unshifted"):
        trainer.train()


def test_the_loss_of_experts_is_added(book, tmp_path):
    """The gradient of a Trainer's own, whatever the loss beside it."""

    def step(trainer, weight, **options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            student = create_causal_lm({**EXPERTS, "router_aux_loss_coef": weight}, vocabulary=V).model
        trainer(student, arguments(tmp_path), train_dataset=ROWS, data_collator=collator, **options).train()
        return flat(student)

    mine = step(BookTrainer, 1e3, book=book.path) - step(BookTrainer, 0.0, book=book.path)
    theirs = step(transformers.Trainer, 1e3) - step(transformers.Trainer, 0.0)
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)
    unknown = BookTrainer(model(0), arguments(tmp_path), book=book.path, train_dataset=ROWS)
    with pytest.raises(ConfigError, match="`router_aux_loss_coef` to be in the config, got None"):
        unknown._of_experts(SimpleNamespace(aux_loss=torch.ones(())))


def test_the_loss_of_experts_is_not_left_out_by_learn(book):
    student = create_causal_lm({**EXPERTS, "router_aux_loss_coef": 1.0}, vocabulary=V)
    with pytest.raises(ConfigError, match=r"`output_router_logits` to be False, got True .*BookTrainer, which adds"):
        learn(
            student,
            tokens_of(ROWS, vocabulary=V),
            VIEWS,
            task=TASK,
            knowledge=StoredKnowledge(book.path),
            method=LLMKD(),
        )


def test_masks_of_trl_without_labels_are_refused():
    with pytest.raises(
        DataError, match=r"`labels` to be given beside completion_mask, .*sample 0\)\. Give labels with -100"
    ):
        tokens_of([{"input_ids": [1, 2], "completion_mask": [0, 1]}], vocabulary=V)
    with pytest.raises(
        DataError, match=r"`input_ids` to be in each row, got columns text .*Make tokens of the texts first"
    ):
        tokens_of([{"text": "hello"}], vocabulary=V)


@pytest.mark.filterwarnings("ignore:Expected `logits` to be likelier")  # untrained, with tied embeddings
def test_draws_teach_what_all_probabilities_teach(tmp_path):
    """Of a teacher that is sure of something, the first step from draws points where that from every probability does."""
    speaker = model(1, 32)
    with torch.no_grad():
        speaker.transformer.wte.weight.mul_(20)
    teacher, data, steps = Teacher(LanguageModel(speaker)), tokens_of(ROWS, vocabulary=V), []
    for name, codec in (("whole", Dense("float32")), ("draws", Sampled(127))):
        book = make(tmp_path / name, teacher, data, VIEWS, task=TASK, codec=codec)
        steps.append(flat(trained(book, tmp_path / "run")[0]) - flat(model(9)))
    assert float(torch.cosine_similarity(*steps, dim=0)) > 0.95
