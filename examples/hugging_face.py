# SPDX-License-Identifier: MIT
"""Hugging Face's Trainer with Muon by name: a small Llama reads a module of Python's own.

    pip install 'emanest[hf]'
    python examples/hugging_face.py --optimizer muon+ema_nesterov --lr 0.02 --steps 300

It evaluates, saves and ends at x, and prints the loss on text that it has not seen. Text comes as
bytes, so there is no tokenizer to download.
"""

import argparse
import inspect

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from emanest.integrations.transformers import EvalAtIterate, factory


def rows(text, length):
    """What the Trainer takes for a dataset: rows of bytes, each its own target."""
    tokens = torch.tensor(list(text.encode()))
    tokens = tokens[: len(tokens) // length * length].view(-1, length)
    return [{"input_ids": row, "labels": row} for row in tokens]


def make_model(width, layers):
    # queries, keys and values are matrices of their own here. GPT-2 fuses them side by side, and
    # keeps weights the other way round: Muon would take all three for one matrix
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
        )
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--optimizer", default="muon+ema_nesterov", help="as emanest.create has it")
    parser.add_argument("--lr", type=float, default=0.02, help="of matrices; AdamW's is a tenth")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--folder", default="build/hugging_face")
    given = parser.parse_args(arguments)
    set_seed(1)
    text = rows(inspect.getsource(argparse), length=64)
    # of a name without matrices the rate is that of all
    others = (
        {} if given.optimizer.startswith(("adamw", "sgd")) else {"adamw": {"lr": given.lr / 10}}
    )
    trainer = Trainer(
        make_model(given.width, given.layers),
        TrainingArguments(
            given.folder,
            max_steps=given.steps,
            per_device_train_batch_size=16,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            eval_strategy="steps",
            eval_steps=max(1, given.steps // 4),
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=text[: -len(text) // 10],
        eval_dataset=text[-len(text) // 10 :],
        optimizer_cls_and_kwargs=factory(given.optimizer, lr=given.lr, **others),
        # the lookahead's windows follow from the length of the run, which the Trainer knows
        callbacks=[EvalAtIterate(fit_windows=True)],
    )
    trainer.train()
    trainer.save_model(given.folder)
    return trainer.evaluate()["eval_loss"]


if __name__ == "__main__":
    print(f"loss of a byte: {main():.3f}")
