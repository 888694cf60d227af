# SPDX-License-Identifier: MIT
"""Coefficient sets of Newton-Schulz iterations, and where each comes from.

A step maps every singular value s to ``a s + b s**3 + c s**5``; ``tests/test_coefficients.py`` has
the range in which each set leaves them.
"""

from typing import Any, Literal, NamedTuple

from ..values import choice, count, items, real


class Coefficients(NamedTuple):
    """Polynomials, one for each step; the last one is repeated.

    Attributes:
        rows: (a, b, c) for each step.
        source: where they come from.
        safety: all but the last of the rows are those of s / safety: values up to ``safety``, which
            rounding produces, are then as safe as 1.
        margin: the norm is multiplied by it.
    """

    rows: tuple[tuple[float, float, float], ...]
    source: str
    safety: float = 1.0
    margin: float = 1.0

    def steps(self, count: int) -> list[tuple[float, float, float]]:
        """The polynomials of ``count`` steps."""
        f, (*first, last) = self.safety, self.rows
        safe = [(a / f, b / f**3, c / f**5) for a, b, c in first]
        return [safe[i] if i < len(safe) else last for i in range(count)]


# the rows of the table below, for annotations
CoefficientsName = Literal[
    "keller",
    "you",
    "polar_express",
    "polar_express_cushioned",
    "cans",
    "cubic",
    "simple",
    "quintic",
]

COEFFICIENTS: dict[str, Coefficients] = {
    "keller": Coefficients(
        ((3.4445, -4.7750, 2.0315),), "Jordan et al. 2024; the default of torch.optim.Muon"
    ),
    "you": Coefficients(
        (
            (4.0848, -6.8946, 2.9270),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        ),
        "You Jiacheng 2024, in dion and HeavyBall",
    ),
    "polar_express": Coefficients(
        (
            (8.28721201814563, -23.595886519098837, 17.300387312530933),
            (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
            (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
            (3.3184196573706015, -2.488488024314874, 0.51004894012372),
            (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
            (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
            (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
            (1.875, -1.25, 0.375),
        ),
        "Amsel et al., arXiv:2505.16932, with the paper's safety factor",
        safety=1.01,
    ),
    "polar_express_cushioned": Coefficients(
        (
            (8.156554524902461, -22.48329292557795, 15.878769915207462),
            (4.042929935166739, -2.808917465908714, 0.5000178451051316),
            (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
            (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
            (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        ),
        "the same with cushion 2 and safety 2e-2, in dion and modded-nanogpt",
        margin=1.02,
    ),
    "cans": Coefficients(
        (
            (8.4703, -25.1081, 18.6293),
            (4.1828, -3.1087, 0.5806),
            (3.9619, -2.9541, 0.5630),
            (3.2866, -2.4647, 0.5074),
            (2.2737, -1.6447, 0.4162),
        ),
        "Grishina et al., arXiv:2506.10935",
    ),
    "cubic": Coefficients(
        (
            (3.3656576, -3.3420992, 0.0),
            (2.5744352, -1.4957376, 0.0),
            (2.5368962, -1.4312570, 0.0),
            (2.4418906, -1.2764040, 0.0),
            (2.2230472, -0.9630650, 0.0),
        ),
        "arXiv:2606.00371; no fifth power, so one product less per step",
    ),
    "simple": Coefficients(((2.0, -1.5, 0.5),), "used with 12 steps by Aurora"),
    "quintic": Coefficients(((1.875, -1.25, 0.375),), "the classical one, slow and exact at 1"),
}


def polynomials(coefficients, steps):
    """The (a, b, c) of each step.

    Args:
        coefficients: a name in ``COEFFICIENTS``, (a, b, c), or a sequence of such (an array of
            shape (n, 3), say), of which the last is repeated.
        steps: how many, at least 1.

    Returns:
        A list of ``steps`` triples, and the factor of the norm.
    """
    found: Any = check_coefficients("coefficients", coefficients)
    if isinstance(found, str):
        row = COEFFICIENTS[found]
    else:
        row = Coefficients(found if isinstance(found[0], tuple) else (found,), "the caller")
    return row.steps(count("steps", steps)), row.margin


def check_coefficients(name, value):
    """Return coefficients as a name, a triple of floats, or a tuple of triples.

    Sequences of any kind hold them.

    Raises:
        TypeError, ValueError: anything else; the message names ``name``.
    """
    if isinstance(value, str):
        return choice(name, value, COEFFICIENTS)
    given = items(value)
    if not given:
        raise TypeError(
            f"{name} must be one of {sorted(COEFFICIENTS)}, (a, b, c), or a list of such triples; "
            f"got {value!r}"
        )
    triples = [items(each) for each in given]
    if None in triples:
        return _triple(name, given)
    return tuple(_triple(f"{name}[{i}]", each) for i, each in enumerate(triples))


def _triple(name, given):
    if len(given) != 3:
        raise ValueError(f"{name} must have three numbers (a, b, c), got {given!r}")
    return tuple(real(f"{name}[{i}]", each) for i, each in enumerate(given))
