# SPDX-License-Identifier: MIT
"""Runs of a small model under Hugging Face's Trainer."""

import pytest
import safetensors.torch
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import emanest
import runs
from emanest.integrations.transformers import EvalAtIterate
from helpers import content

STEPS = 6
each_lookahead = pytest.mark.parametrize("lookahead", runs.LOOKAHEADS)


def make_model():
    torch.manual_seed(1)
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 16}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True))


def tokens(count, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(16, (count, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def muon(model, **options):
    """What the Trainer calls an optimizer factory."""
    groups = emanest.split_params(model, verbose=False)
    return emanest.Muon(groups, **options)


def wrap(model, lr, lookahead):
    return emanest.Wrap(torch.optim.AdamW(model.parameters(), lr=lr), lookahead)


OPTIMIZERS = {"adamw": emanest.AdamW, "muon": lambda: muon, "wrap": lambda: wrap}

# when the Trainer evaluates and when it saves
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}
SAVED = {"save_strategy": "steps", "save_steps": 3}


def arguments(folder, **options):
    given = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "lr_scheduler_type": "cosine",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return given | options


def trainer(folder, lookahead, name="adamw", callbacks=(EvalAtIterate,), **options):
    given = {"lr": 0.05, "lookahead": runs.METHODS[lookahead]}
    return Trainer(
        make_model(),
        TrainingArguments(**arguments(folder, **options)),
        train_dataset=tokens(32, 2),
        eval_dataset=tokens(4, 3),
        optimizer_cls_and_kwargs=(OPTIMIZERS[name], given),
        callbacks=list(callbacks),
    )


def trained(*args, resume=None, **kwargs):
    run = trainer(*args, **kwargs)
    run.train(resume_from_checkpoint=resume and str(resume))
    return run


def training(run):
    """All that a run depends on, at y."""
    emanest.find(run).train()
    return content(emanest.find(run))


def model_weights(run):
    return runs.weights(run.model.state_dict())


def saved_weights(folder):
    found = safetensors.torch.load_file(folder / "model.safetensors")
    # tied to the embeddings, saved once
    return runs.weights({**found, "lm_head.weight": found["model.embed_tokens.weight"]})


def x_of(run):
    return runs.weights(emanest.iterate_state_dict(run.model, run))


class At(TrainerCallback):
    """Do something at an event, at given steps."""

    def __init__(self, event, *steps, do):
        def called(args, state, control, **kwargs):
            if state.global_step in steps:
                do(control)

        setattr(self, event, called)
