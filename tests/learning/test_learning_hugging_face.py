"""A `transformers.Trainer` on a book: the loss of our own step, however batches are divided; and what is refused."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from bookkd.book import Dense, Sampled, TopK  # noqa: E402
from bookkd.core.errors import BookMismatchError, ConfigError, DataError, ViewMismatchError  # noqa: E402
from bookkd.core.schedules import Clock  # noqa: E402
from bookkd.knowledge import StoredKnowledge, Teacher  # noqa: E402
from bookkd.learning import learn  # noqa: E402
from bookkd.learning.hugging_face import BookTrainer, tokens_of  # noqa: E402
from bookkd.learning.learner import Learner  # noqa: E402
from bookkd.learning.step import Step  # noqa: E402
from bookkd.making import make  # noqa: E402
from bookkd.methods import LLMKD, build_method  # noqa: E402
from bookkd.tasks import CausalLM  # noqa: E402
from bookkd.views import Replay, Views  # noqa: E402
from bookkd.zoo import LanguageModel, create_causal_lm, positions_within  # noqa: E402

V = 20
SHAPE = {"model_type": "gpt2", "n_head": 2, "n_positions": 32, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
EXPERTS = {
    "model_type": "mixtral", "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 16,
    "intermediate_size": 16, "num_local_experts": 4, "num_experts_per_tok": 1, "output_router_logits": True, "max_position_embeddings": 32,
}  # fmt: skip
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


def test_a_network_of_ours_is_refused_with_what_to_pass(book, tmp_path):
    with pytest.raises(ConfigError, match=r"`model` to be one of Transformers, got LanguageModel .* Pass its \.model"):
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
