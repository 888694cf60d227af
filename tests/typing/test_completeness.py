"""Everything public has annotations."""

import checkers
import pytest

import emanest

# documented beside emanest.__all__: modules, and names in modules
MODULES = [
    "emanest.schedules",
    "emanest.tools.comparing",
    "emanest.tools.comparison",
    "emanest.tools.statistics",
    "emanest.tools.analysis",
]
NAMES = [
    "emanest.doctor.report",
    "emanest.integrations.lightning.EvalAtIterate",
    "emanest.integrations.transformers.EvalAtIterate",
    "emanest.matrix.coefficients.COEFFICIENTS",
    "emanest.matrix.coefficients.Coefficients",
    "emanest.methods.method.Method",
    "emanest.methods.method.MethodLike",
    "emanest.methods.method.Plan",
    "emanest.methods.method.StepInfo",
]


def public():
    """Full names of what is public; what is in them is, too."""
    found = {name: getattr(emanest, name) for name in emanest.__all__}
    own = [f"{v.__module__}.{v.__qualname__}" for v in found.values() if hasattr(v, "__module__")]
    return [*own, *MODULES, *NAMES]


@pytest.fixture(scope="module")
def report():
    return checkers.completeness()


@pytest.mark.parametrize("name", public())
def test_what_is_public_is_annotated(report, name):
    found = [
        each
        for each in report["symbols"]
        if each["isExported"] and f"{each['name']}.".startswith(f"{name}.")
    ]
    assert found or name in NAMES, "pyright does not know it"
    unknown = [each["name"] for each in found if not each["isTypeKnown"]]
    assert unknown == []
