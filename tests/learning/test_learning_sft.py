"""TRL's own preparation of rows, and training from a book of them: every format, and what changes rows is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

from tests.learning.hugging_face import model  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

from bookkd.book import Dense, TopK  # noqa: E402
from bookkd.core.errors import BookMismatchError, ConfigError, ViewMismatchError  # noqa: E402
from bookkd.core.schedules import Clock  # noqa: E402
from bookkd.knowledge import StoredKnowledge, Teacher  # noqa: E402
from bookkd.learning.hugging_face import tokens_of  # noqa: E402
from bookkd.learning.learner import Learner  # noqa: E402
from bookkd.learning.sft import BookSFTTrainer, sft_rows  # noqa: E402
from bookkd.learning.step import Step  # noqa: E402
from bookkd.making import make  # noqa: E402
from bookkd.methods import LLMKD  # noqa: E402
from bookkd.tasks import CausalLM  # noqa: E402
from bookkd.views import Replay, Views  # noqa: E402
from bookkd.zoo import LanguageModel  # noqa: E402

# TRL and Transformers warn of each other: of options that the one sets and the other renames.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]

WORDS = ["<pad>", "<eos>", "<user>", "<assistant>", *"abcdefghijklmnop"]
V, VIEWS = len(WORDS), Views(None, n_views=1)
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}<user> {{ m.content }} {% else %}<assistant> "
    "{% generation %}{{ m.content }} <eos> {% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tokenizer(words=WORDS):
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")
    made.chat_template = TEMPLATE
    return made


def letters(count, seed):
    return " ".join("abcdefghijklmnop"[n] for n in np.random.default_rng(seed).integers(0, 16, count))


def turns(row, *roles):
    return [{"role": role, "content": letters(3 + row % 4, 10 * row + place)} for place, role in enumerate(roles)]


N = 10
FORMATS = {
    "text": [{"text": letters(3 + row, row) + " <eos>"} for row in range(N)],
    "prompt-completion": [
        {"prompt": letters(2 + row % 3, row) + " ", "completion": letters(3 + row % 5, 99 + row) + " <eos>"} for row in range(N)
    ],
    "messages": [{"messages": turns(row, "user", "assistant", "user", "assistant")} for row in range(N)],
    "conversational-prompt": [
        {"prompt": turns(row, "user"), "completion": turns(row + 50, "assistant")} for row in range(N)
    ],
}  # fmt: skip


def arguments(folder, **changes):
    options = {
        "output_dir": str(folder), "per_device_train_batch_size": 5, "max_steps": 2, "report_to": [], "use_cpu": True,
        "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "seed": 3, "bf16": False, "max_length": 24,
        "gradient_checkpointing": False, "lr_scheduler_type": "constant", "learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 0.0,
    }  # fmt: skip
    return trl.SFTConfig(**{**options, **changes})


def data(name):
    return datasets.Dataset.from_list(FORMATS[name])


def made(folder, name, codec=None, **changes):
    rows = sft_rows(data(name), arguments(folder, **changes), tokenizer())
    tokens = tokens_of(rows, vocabulary=V, tokenizer=tokenizer())
    teacher = Teacher(LanguageModel(model(1, 32, V)), name="teacher")
    return rows, tokens, make(folder / "book", teacher, tokens, VIEWS, task=CausalLM(V), codec=codec or TopK(6, (1.0,)))


def flat(student):
    return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_of_sft_learns_from_a_book(tmp_path, name):
    """Two steps of one epoch over ten rows: as our own step on the rows that TRL made, in the order that it took them."""
    more = {"assistant_only_loss": True} if name == "messages" else {}
    rows, tokens, book = made(tmp_path, name, Dense("float32"), **more)
    student, seen = model(9, outputs=V), []
    trainer = BookSFTTrainer(
        student, arguments(tmp_path, **more), train_dataset=data(name), processing_class=tokenizer(), book=book.path,
        probe_share=1.0,
    )  # fmt: skip
    plain = trainer.compute_loss
    trainer.compute_loss = lambda m, inputs, **options: (
        seen.append(inputs["bookkd_row"].numbers.tolist()),
        plain(m, inputs, **options),
    )[1]
    trainer.train()
    assert sorted(row for batch in seen for row in batch) == list(range(N))
    assert all(list(row["labels"]).count(-100) > 0 for row in rows) or name == "text"
    mine, task = model(9, outputs=V), CausalLM(V)
    learner, step = Learner(LanguageModel(mine), task), Step(LLMKD().objective(task), task, StoredKnowledge(book.path))
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    for samples, wanted in zip(seen, logged, strict=True):
        loss = step.loss(learner.train(), Replay(tokens, VIEWS).batch([(row, 0) for row in samples]), Clock()).loss
        loss.backward()
        assert wanted == pytest.approx(float(loss.detach()), rel=1e-3)
        with torch.no_grad():
            for parameter in mine.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
    torch.testing.assert_close(flat(student), flat(mine), rtol=1e-4, atol=1e-5)


def test_only_what_is_to_be_learnt_counts(tmp_path):
    """Completion and assistant masks are those of TRL."""
    rows, tokens, _ = made(tmp_path / "a", "prompt-completion")
    for row, given in enumerate(FORMATS["prompt-completion"]):
        hidden = len(given["prompt"].split())
        assert list(rows[row]["labels"][:hidden]) == [-100] * hidden
        assert tokens.first_learnt(row) == hidden
    whole, _, _ = made(tmp_path / "b", "prompt-completion", completion_only_loss=False)
    assert all(-100 not in row["labels"] for row in whole)
    talk, _, _ = made(tmp_path / "c", "messages", assistant_only_loss=True)
    kept = [WORDS[token] for token, label in zip(talk[0]["input_ids"], talk[0]["labels"], strict=True) if label != -100]
    answers = [turn["content"].split() for turn in FORMATS["messages"][0]["messages"] if turn["role"] == "assistant"]
    assert kept == [word for answer in answers for word in [*answer, "<eos>"]]


def test_rows_that_are_shuffled_or_cut_in_the_script_are_those_of_the_book(tmp_path):
    how = {"shuffle_dataset": True, "max_length": 6}
    rows, _, book = made(tmp_path, "text", **how)
    assert max(len(row["input_ids"]) for row in rows) == 6
    trainer = BookSFTTrainer(
        model(9, outputs=V), arguments(tmp_path, **how), train_dataset=data("text"), processing_class=tokenizer(), book=book.path,
        probe_share=1.0, eval_dataset=data("text"),
    )  # fmt: skip
    trainer.train()
    assert np.isfinite(trainer.evaluate()["eval_loss"])


def test_other_rows_are_refused_before_training(tmp_path):
    _, _, book = made(tmp_path, "text", max_length=8)

    def run(dataset, words=WORDS, **changes):
        BookSFTTrainer(
            model(9, outputs=V), arguments(tmp_path, **changes), train_dataset=dataset, processing_class=tokenizer(words), book=book.path
        )  # fmt: skip

    with pytest.raises(
        ViewMismatchError, match=r"Row 5 has 9 tokens, the book's 8: one of them was cut at another length"
    ):
        run(data("text"))
    with pytest.raises(BookMismatchError, match="`rows` to be 10"):
        run(data("text").select(range(9)), max_length=8)
    with pytest.raises(BookMismatchError, match="`tokenizer` to be"):
        run(data("text"), [*WORDS[:4], *WORDS[4:][::-1]], max_length=8)
    with pytest.raises(ViewMismatchError, match="sample 8"):
        run(data("text").select([*range(8), 9, 8]), max_length=8)  # both are cut to 8 tokens
    for option in ("packing", "padding_free"):
        with pytest.raises(
            ConfigError, match=rf"`{option}` to be False: a row of the book is one row of the data, got True"
        ):
            run(data("text"), **{option: True})
        with pytest.raises(ConfigError, match=option):
            sft_rows(data("text"), arguments(tmp_path, **{option: True}), tokenizer())
    with pytest.raises(ConfigError, match=r"`loss_type` to be left out, got 'dft'"):
        run(data("text"), loss_type="dft")
