# SPDX-License-Identifier: MIT
"""What annotations list is what is in the tables."""

import inspect
from typing import get_args

import pytest

from emanest import EMANesterov, backends, optimizers, schedules
from emanest.matrix import coefficients, forms, newton_schulz, norms, shapes
from emanest.optimizers import soap
from emanest.options import CHECKS, Nonfinite

TABLES = {
    "backend": (backends.BackendName, backends.BACKENDS),
    "init": (schedules.Init, schedules.INITS),
    "ns_coefficients": (coefficients.CoefficientsName, coefficients.COEFFICIENTS),
    "ns_form": (forms.FormName, forms.FORMS),
    "ns_norm": (norms.NormName, norms.NORMS),
    "adjust_lr_fn": (shapes.ScaleName, shapes.SCALES),
}
# of which there is no table: checks take them from the annotation
ALONE = {
    "nonfinite": (Nonfinite, CHECKS["nonfinite"]),
    "update_basis": (soap.Order, soap.When.__metadata__[0]),
    "ns_dtype": (newton_schulz.DtypeName, newton_schulz.check_dtype),
}
CONSTRUCTORS = [EMANesterov, optimizers.Wrap, *optimizers.OPTIMIZERS.values()]


@pytest.mark.parametrize("option", TABLES)
def test_an_annotation_lists_a_table(option):
    listed, table = TABLES[option]
    assert sorted(get_args(listed)) == sorted(table)


@pytest.mark.parametrize("option", ALONE)
def test_a_check_accepts_what_its_annotation_lists(option):
    listed, check = ALONE[option]
    assert [check(option, value) for value in get_args(listed)] == [*get_args(listed)]
    with pytest.raises(ValueError, match=f"{option} must be one of"):
        check(option, "never")


def listed_in(annotation):
    """All values of Literals in an annotation, however deep."""
    parts = get_args(annotation)
    return {p for p in parts if isinstance(p, str)}.union(*map(listed_in, parts))


@pytest.mark.parametrize("option", {**TABLES, **ALONE})
def test_constructors_have_these_annotations(option):
    listed, _ = {**TABLES, **ALONE}[option]
    given = [inspect.signature(each).parameters.get(option) for each in CONSTRUCTORS]
    found = [listed_in(each.annotation) for each in given if each is not None]
    assert found
    assert found == [set(get_args(listed))] * len(found)
