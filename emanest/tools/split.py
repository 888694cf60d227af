# SPDX-License-Identifier: MIT
"""Which parameters of a model Muon should step, and which AdamW."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from ..optimizers import Muon
from ..values import choice
from .listing import Row, show
from .parameters import ADAMW, MUON, classified


def split_params(
    model: nn.Module,
    rules: Mapping[str, str | dict[str, Any]] | None = None,
    *,
    muon: Mapping[str, Any] | None = None,
    adamw: Mapping[str, Any] | None = None,
    vectors: Mapping[str, Any] | None = None,
    verbose: bool | Literal["all"] = True,
) -> list[dict[str, Any]]:
    """Split a model's parameters into groups for one optimizer: ``Muon(split_params(model))``.

    Hidden matrices, convolution kernels and experts go to Muon (or NorMuon, Aurora, SOAP: whatever
    the optimizer's own base is, or ``muon`` or a rule says), in groups with ``"stack": False``,
    experts with ``"stack": True``; embeddings, output layers, tied weights, vectors and scalars to
    AdamW, in a group with ``"base": "adamw"``. A table says what goes where, and why:

        frozen          requires no gradient: left out
        tied            one parameter that several modules, or several attributes, hold; one of a
                        shared module, which has several names, is what it is in that module
        vector          fewer than two dimensions, or a single row or column
        complex         Muon takes real matrices
        embedding       of ``nn.Embedding`` or ``nn.EmbeddingBag``; of another class that is called
                        an embedding; or a parameter of no layer of torch's with a word like emb,
                        pos, token, wte, wpe or cls in its own name
        bias            a parameter with a word like bias in its own name
        per element     of ``nn.LayerNorm`` or ``nn.RMSNorm``; or, of no layer of torch's, called as
                        in Mamba, S4 or RWKV: A_log, log_A_real, A_imag, log_dt, dt_bias,
                        time_decay, time_first, time_mix_k and alike
        output layer    an ``nn.Linear`` called lm_head, head, heads.N, classifier, unembed or
                        output_projection; in the model itself also value_head, head_dist or alike,
                        logits, and, if no linear layer comes after it, fc, fc_out, out, output or
                        out_proj; the last convolution, to at most 4 channels, if called conv_out,
                        out or alike. The last layer of an ``nn.Sequential`` has its name, too;
                        ``out_proj`` of ``nn.MultiheadAttention`` is never one
        input layer     a convolution over at most 4 channels
        depthwise       a convolution whose filters have one channel
        wide, output?   a guess: an ``nn.Linear`` that is as wide as an embedding is long, in no
                        block. A block is a member of an ``nn.ModuleList``, or a module of a class
                        that occurs more than once
        last, output?   a guess: the model's last ``nn.Linear``, as they are defined, in no block;
                        or its last layer, if that is a convolution to at most 4 channels
        kernel          any other convolution: Muon
        experts         three dimensions, of no layer of torch's: two or more matrices whose smaller
                        side is at least 16: Muon, each by itself
        experts, fused? experts that may be two or three fused matrices by their name, such as
                        gate_up_proj: Muon, each as one matrix
        tensor          any other with three or more dimensions
        low rank        of a module or dict called lora_A, lora_B or alike: Muon
        transposed      of a class called Conv1D, as in Transformers, (inputs, outputs): Muon, which
                        takes inputs for rows; what is fused along columns stays one matrix
        fused           matrices one below the other: Muon, by ``split``, which is printed.
                        ``in_proj_weight`` of ``nn.MultiheadAttention``; weights of ``nn.LSTM`` (4)
                        and ``nn.GRU`` (3), and of their cells; an ``nn.Linear`` called qkv, Wqkv,
                        to_qkv, qkv_proj, in_proj_qkv or c_attn with as many rows as the module
                        around it, or its ``config``, says by numbers of heads, heads of keys, and
                        their size, which may be left out; where there are no such numbers, with
                        three rows for each column; one called gate_up, gate_up_proj, w12, w13, w1w3
                        or w1_w3 with an even number of rows
        matrix, fused?  one that may be fused by its name, such as query_key_value, wqkv, kv_proj,
                        in_proj or Wi: Muon, as one matrix; ``{"split": ...}`` takes it apart.
        matrix, router? called router, gate, gating, switch or wg, with fewer rows than columns:
                        Muon, as Moonlight and torchtitan have it; others send it to AdamW by a rule
        matrix          any other: Muon

    What a parametrization of torch's (weight normalisation, say) makes a parameter of goes where
    that would go.

    Args:
        model: an ``nn.Module``, wrapped or not.
        rules: regular expression -> ``"muon"`` (the optimizer's own base), ``"adamw"``, another
            base by its name, or a dict of group entries, such as ``{"split": 3}`` or ``{"base":
            "adamw", "lr": 3e-3}``. Expressions are searched in the names of
            ``model.named_parameters()``, all of them for a tied parameter; the first that is found
            counts. Where a parameter goes changes only if its rule is, or has, a base. One of three
            dimensions that the table leaves to AdamW is sent to Muon by ``{"base": "muon", "stack":
            True}``, or ``False`` for one kernel. Frozen ones stay out.
        muon, adamw: entries for all groups of a kind, such as ``{"lr": 3e-4}``, for matrices also
            ``{"base": "soap"}``; those of a rule come first. AdamW has its own defaults, not Muon's
            arguments.
        vectors: entries for those that AdamW steps and that are vectors, biases or per element,
            such as ``{"weight_decay": 0}``; they come before those of ``adamw``, after a rule's.
        verbose: print the table, in the first process alone; names that differ in numbers alone,
            and are treated alike, are one line. A table is printed once for a model, until it
            changes. ``"all"``: a line for each parameter, at every call.

    Returns:
        A list of groups of (name, parameter) pairs, those of Muon first; none is empty.

    Raises:
        TypeError: not a module; a rule that is neither a name nor a dict; other entries than dicts.
        ValueError: no parameter requires a gradient, one is not initialised yet, ``adamw`` or
            ``vectors`` name another base, ``verbose`` is something else, or a rule finds
            none that an earlier one has left, or is no regular expression.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    choice("verbose", verbose, (True, False, "all"))
    common = {MUON: _given("muon", muon), ADAMW: {"base": ADAMW, **_given("adamw", adamw)}}
    thin = {"base": ADAMW, **_given("vectors", vectors)}
    for name, entries in (("adamw", common[ADAMW]), ("vectors", thin)):
        if entries["base"] != ADAMW:
            raise ValueError(
                f"{name} has entries of AdamW's groups, got base {entries['base']!r}: name it in "
                "muon, or in a rule"
            )
    compiled = [(_compiled(text), text, _entries(text, to)) for text, to in (rules or {}).items()]
    rows, groups, used = [], {}, set()
    for names, p, reason, to, vector in classified(model):
        name = names[0]
        if to is None:
            rows.append(Row(name, tuple(p.shape), "-", reason))
            continue
        for expression, text, entries in compiled:
            if any(map(expression.search, names)):
                reason, to = f"rule {text!r}", _changed(to, entries)
                used.add(text)
                break
        kind = _kind(to["base"])
        # of three dimensions only the table, or a rule, knows what they are
        flat = {"stack": False} if kind == MUON and p.dim() != 3 else {}
        its = thin if kind == ADAMW and vector else {}
        own = {k: v for k, v in to.items() if (k, v) != ("base", MUON)}
        entries = {**flat, **common[kind], **its, **own}
        key = kind != MUON, tuple(sorted((k, _comparable(v)) for k, v in entries.items()))
        groups.setdefault(key, {**entries, "params": []})["params"].append((name, p))
        rows.append(Row(name, tuple(p.shape), entries.get("base", MUON), reason))
    unused = [text for _, text, _ in compiled if text not in used]
    if unused:
        raise ValueError(
            f"rules {unused} find no parameter that requires a gradient and that no earlier rule "
            "has taken"
        )
    if not groups:
        raise ValueError("no parameter of the model requires a gradient")
    if verbose:
        show(model, rows, verbose == "all")
    # a stable sort: Muon's first, each in the order of the model
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]


def _given(name, entries):
    if entries is not None and not isinstance(entries, Mapping):
        raise TypeError(
            f"{name} must be a dict of entries of groups, such as {{'weight_decay': 0}}, got "
            f"{entries!r} ({type(entries).__name__})"
        )
    return dict(entries or {})


def _compiled(text):
    try:
        return re.compile(text)
    except (re.error, TypeError) as error:
        raise ValueError(f"rule {text!r} is no regular expression: {error}") from None


def _entries(text, to):
    entries = to if isinstance(to, dict) else {"base": to}
    # a list: what cannot be hashed is none of them
    if entries.get("base", MUON) not in [*Muon.bases]:
        raise TypeError(
            f"rule {text!r} must lead to {', '.join(map(repr, Muon.bases))} or a dict, got {to!r}"
        )
    return entries


def _kind(base):
    """Whose parameters a base steps: matrices, or what AdamW does."""
    return ADAMW if base == ADAMW else MUON


def _changed(automatic, entries):
    """The entries of the table with those of a rule; none is left that belongs to another base."""
    same = _kind(entries.get("base", automatic["base"])) == _kind(automatic["base"])
    return {**(automatic if same else {}), **entries}


def _comparable(value):
    # tensors that print alike may differ
    return str(id(value)) if isinstance(value, torch.Tensor) else repr(value)
