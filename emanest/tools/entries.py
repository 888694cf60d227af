# SPDX-License-Identifier: MIT
"""Rules and entries that ``split_params`` puts into groups: checks, and what no base reads."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..optimizers import OPTIMIZERS, Muon
from ..options import CHECKS
from ..values import choice, meant, warn
from .parameters import ADAMW, MUON

# entries of groups that are read whatever the base is, and those that schedulers keep there
_SHARED = (*CHECKS, "base", "backend", "lookahead")
_KEPT = (
    *("param_names", "initial_lr", "max_lr", "min_lr", "base_lr"),
    *("base_momentum", "max_momentum", "swa_lr"),
)


class Rule(NamedTuple):
    """Entries for the parameters in whose names an expression is found."""

    text: str
    expression: re.Pattern[str]
    entries: dict[str, Any]

    def finds(self, names):
        """Whether it finds a parameter, by all names that it goes by."""
        return any(map(self.expression.search, names))


def compiled(rules: Mapping[str, Any] | None) -> list[Rule]:
    """The rules of ``split_params``, checked."""
    if rules is not None and not isinstance(rules, Mapping):
        raise TypeError(
            "rules must be a dict of regular expressions and what they lead to, such as "
            f"{{'router': 'adamw', 'qkv': {{'split': 3}}}}, got {rules!r} ({type(rules).__name__})"
        )
    return [Rule(text, _expression(text), _led_to(text, to)) for text, to in (rules or {}).items()]


def _expression(text):
    try:
        return re.compile(text)
    except (re.error, TypeError) as error:
        raise ValueError(f"rule {text!r} is no regular expression: {error}") from None


def _led_to(text, to):
    if isinstance(to, str):
        return {"base": choice(f"what rule {text!r} leads to", to, _bases())}
    if not isinstance(to, Mapping):
        names = ", ".join(map(repr, _bases()))
        raise TypeError(f"rule {text!r} must lead to {names} or a dict, got {to!r}")
    choice(f"the base of rule {text!r}", to.get("base", MUON), _bases())
    return dict(to)


def given(name: str, entries: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of the entries that an argument has for groups, checked."""
    if entries is not None and not isinstance(entries, Mapping):
        raise TypeError(
            f"{name} must be a dict of entries of groups, such as {{'weight_decay': 0}}, got "
            f"{entries!r} ({type(entries).__name__})"
        )
    entries = dict(entries or {})
    if "base" in entries:
        choice(f"the base in {name}", entries["base"], _bases())
    return entries


def refuse_vector(rule: Rule, base: str, found: Any, every: Iterable[Any]) -> None:
    """Raise ValueError if a rule names a base of matrices for what is none.

    Args:
        rule: the rule, which found it.
        base: where it goes.
        found: the parameter, as ``Found``.
        every: all parameters, likewise.
    """
    p = found.p
    # of what FSDP1 has flattened the optimizer says what to do
    flattened = getattr(p, "_fsdp_flattened", False)
    if base == ADAMW or "base" not in rule.entries or flattened or _is_matrix(p):
        return
    dtype = f" and dtype {p.dtype}" if p.is_complex() else ""
    raise ValueError(
        f"rule {rule.text!r} sends {found.names[0]!r}, of shape {tuple(p.shape)}{dtype}, to "
        f"{base!r}, which steps real matrices: let it find those alone"
        f"{_narrower(rule.text, every)}, or put a rule before it that leads this to 'adamw'"
    )


def _is_matrix(p):
    return p.dim() > 1 and not p.is_complex()


def _narrower(text, every):
    """An example of an expression that finds matrices alone; empty if it would not."""
    example = f"(?:{text}).*weight" if "|" in text else f"{text}.*weight"
    try:
        expression = re.compile(example)
    except re.error:
        # flags must come first
        return ""
    hit = [found.p for found in every if any(map(expression.search, found.names))]
    return f", such as {example!r}" if hit and all(map(_is_matrix, hit)) else ""


def warn_of_unread(name: str, entries: Mapping[str, Any], bases: Iterable[str]) -> None:
    """Warn of entries that no base of the groups they go to has an option for.

    They stay in the groups: a scheduler of the user's may read them.

    Args:
        name: what the message calls the argument or the rule that has them.
        entries: the entries.
        bases: of the groups; ``MUON`` is the own base, not known yet, of an optimizer of matrices.
    """
    bases = sorted(bases)
    known = [*dict.fromkeys(option for base in bases for option in _options(base))]
    for key in entries:
        ours = isinstance(key, str) and key.startswith("lookahead_")
        if not ours and key not in (*known, *_SHARED, *_KEPT):
            of = " or ".join(map(repr, bases))
            hint = _nearest(key, (*known, *_SHARED)) or f"; there are {', '.join(known)}"
            warn(f"{name} has {key!r}, which is no option of {of}, and is not read there{hint}")


def _options(base):
    """Options of a base; for the own one of an optimizer those of all bases of matrices."""
    bases = _bases()
    others = [each for each in bases if each != ADAMW] if base == MUON else [base]
    return [option for each in others for option in bases[each].options]


def _bases():
    """Name -> base, of all optimizers of matrices, those included that users have added."""
    bases = dict(Muon.bases)
    for optimizer in OPTIMIZERS.values():
        own = getattr(optimizer, "bases", {})
        if ADAMW in [*own][1:]:
            bases.update(own)
    return bases


def _nearest(key, options):
    """A question for an option that is spelled alike, or for which, or of which, it is short."""
    if not isinstance(key, str):
        return ""
    key = key.lower()
    short = [o for o in options if key in _initials(o) or o in _initials(key)]
    return f"; did you mean {short[0]!r}?" if short else meant(key, options)


def _initials(name):
    """The first letters of the words of a name; nothing of a single word."""
    words = [word for word in re.split(r"[_\W]+", name) if word]
    return ["".join(word[0] for word in words)] if len(words) > 1 else []
