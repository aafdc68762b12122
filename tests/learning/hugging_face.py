"""Small language models, rows and trainers that tests of the doors of Transformers share."""

from __future__ import annotations

import numpy as np
import torch
import transformers

from bookkd.book import TopK
from bookkd.knowledge import Teacher
from bookkd.learning.hugging_face import BookTrainer, tokens_of
from bookkd.making import make
from bookkd.tasks import CausalLM
from bookkd.views import Views
from bookkd.zoo import LanguageModel, create_causal_lm

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


def book_at(path):
    """Make the book of all rows by a larger teacher."""
    teacher = Teacher(LanguageModel(model(1, 32)), name="teacher")
    return make(path, teacher, tokens_of(ROWS, vocabulary=V), VIEWS, task=TASK, codec=TopK(6, (1.0,)))
