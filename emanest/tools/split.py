# SPDX-License-Identifier: MIT
"""Which parameters of a model Muon should step, and which AdamW."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from ..values import choice, warn
from .entries import compiled, given, refuse_vector, warn_of_unread
from .listing import Row, show
from .parameters import ADAMW, MUON, classified


def split_params(
    model: nn.Module,
    rules: Mapping[str, str | Mapping[str, Any]] | None = None,
    *,
    muon: Mapping[str, Any] | None = None,
    adamw: Mapping[str, Any] | None = None,
    vectors: Mapping[str, Any] | None = None,
    verbose: bool | Literal["all"] = True,
) -> list[dict[str, Any]]:
    r"""Split a model's parameters into groups for one optimizer: ``Muon(split_params(model))``.

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

    A parameter is what it is in the modules that hold it, whatever the model's own
    ``named_parameters`` calls it; what that leaves out is nobody's. One that no module holds is
    told by its name and its shape, as one that a module of a user's own holds.

    Entries that no base of their groups has an option for stay there, for schedulers of one's own;
    a warning names them. Another says if nothing is left for an optimizer of matrices, unless a
    rule with a base may have decided that.

    Args:
        model: an ``nn.Module``, wrapped or not.
        rules: regular expression -> ``"muon"`` (the optimizer's own base), ``"adamw"``, another
            base by its name, or a dict of group entries, such as ``{"split": 3}`` or ``{"base":
            "adamw", "lr": 3e-3}``. Expressions are searched in the names of
            ``model.named_parameters()``, in all of them if there are several; the first that is
            found counts. A rule acts on all that it finds: ``"linear2"`` is the bias as well,
            ``r"linear2\.weight"`` the matrix alone. Where a parameter goes changes only if its rule
            is, or has, a base; vectors cannot be sent to one of matrices. One of three dimensions
            that the table leaves to AdamW is sent to Muon by ``{"base": "muon", "stack": True}``,
            or ``False`` for one kernel. Frozen ones stay out.
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
        TypeError: not a module; rules, or entries, that are no dict; a rule that leads to neither a
            name nor a dict.
        ValueError: no parameter requires a gradient, one is not initialised yet, ``adamw`` or
            ``vectors`` name another base, a base is unknown, ``verbose`` is something else, or a
            rule sends a vector to a base of matrices, finds none that an earlier one has left, or
            is no regular expression.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    choice("verbose", verbose, (True, False, "all"))
    arguments = {
        name: given(name, entries)
        for name, entries in (("muon", muon), ("adamw", adamw), ("vectors", vectors))
    }
    common = {MUON: arguments["muon"], ADAMW: {"base": ADAMW, **arguments["adamw"]}}
    thin = {"base": ADAMW, **arguments["vectors"]}
    for name, entries in (("adamw", common[ADAMW]), ("vectors", thin)):
        if entries["base"] != ADAMW:
            raise ValueError(
                f"{name} has entries of AdamW's groups, got base {entries['base']!r}: name it in "
                "muon, or in a rule"
            )
    ordered, every = compiled(rules), [*classified(model)]
    rows, groups, used = [], {}, {}
    for found in every:
        p, name, reason, to = found.p, found.names[0], found.reason, found.to
        if to is None:
            rows.append(Row(name, tuple(p.shape), "-", reason))
            continue
        rule = next((rule for rule in ordered if rule.finds(found.names)), None)
        if rule is not None:
            reason, to = f"rule {rule.text!r}", _changed(to, rule.entries)
        kind = _kind(to["base"])
        # of three dimensions only the table, or a rule, knows what they are
        flat = {"stack": False} if kind == MUON and p.dim() != 3 else {}
        its = thin if kind == ADAMW and found.vector else {}
        own = {k: v for k, v in to.items() if (k, v) != ("base", MUON)}
        entries = {**flat, **common[kind], **its, **own}
        base = entries.get("base", MUON)
        if rule is not None:
            refuse_vector(rule, base, found, every)
            used.setdefault(rule.text, set()).add(base)
        alike = sorted(((k, _comparable(v)) for k, v in entries.items()), key=repr)
        key = kind != MUON, tuple(alike)
        groups.setdefault(key, {**entries, "params": []})["params"].append((name, p))
        rows.append(Row(name, tuple(p.shape), base, reason))
    unused = [rule.text for rule in ordered if rule.text not in used]
    if unused:
        raise ValueError(
            f"rules {unused} find no parameter that requires a gradient and that no earlier rule "
            "has taken"
        )
    if not groups:
        raise ValueError("no parameter of the model requires a gradient")
    bases = {"muon": common[MUON].get("base", MUON), "adamw": ADAMW, "vectors": ADAMW}
    for name, base in bases.items():
        warn_of_unread(name, arguments[name], [base])
    for rule in ordered:
        warn_of_unread(f"rule {rule.text!r}", rule.entries, used[rule.text])
    if all(of_adamw for of_adamw, _ in groups) and not any("base" in r.entries for r in ordered):
        warn(
            "no parameter of the model goes to an optimizer of matrices: AdamW steps them all, and "
            "lr and other options for matrices have no effect"
        )
    if verbose:
        show(model, rows, verbose == "all")
    # a stable sort: Muon's first, each in the order of the model
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])]


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
