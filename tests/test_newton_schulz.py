# SPDX-License-Identifier: MIT
"""Newton-Schulz against polynomials of singular values in float64."""

import functools
import itertools
from types import SimpleNamespace

import pytest
import torch

from emanest import backends, orthogonalize
from emanest.backends import products
from emanest.matrix.coefficients import COEFFICIENTS, polynomials
from emanest.matrix.forms import FORMS, RESTART, apply, cheapest, flops
from emanest.matrix.newton_schulz import iterate, orthogonal
from emanest.matrix.norms import NORMS, inverses

BACKENDS = [name for name in ("cpp", "eager") if backends.find(name, "cpu")[0]]
SHAPES = [(40, 40), (24, 96), (96, 24)]
# of the dtype of the iteration on Gaussian matrices: rounding grows with the slopes of the
# polynomials, some 500 to 1000 units
BOUNDS = {torch.float64: 1e-10, torch.float32: 5e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_form = pytest.mark.parametrize("form", FORMS)
# Gram in bfloat16 is refused
each_pair = pytest.mark.parametrize(
    ("form", "dtype"),
    [(f, d) for f in FORMS for d in BOUNDS if f != "gram" or d in RESTART],
    ids=str,
)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def gaussian(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def decaying(rows, columns):
    """Columns whose scales fall to a thousandth."""
    return gaussian(rows, columns) * torch.logspace(0, -3, columns, dtype=torch.float64)


def exact(g, steps=5, coefficients="keller", norm=2, eps=0.0):
    """U p(S) V^T, p the polynomials one after another, of the matrix over its Schatten norm."""
    u, s, v = torch.linalg.svd(g.double(), full_matrices=False)
    rows, margin = polynomials(coefficients, steps)
    s = s / (torch.linalg.vector_norm(s, norm, dim=-1, keepdim=True).clamp(min=eps) * margin)
    for a, b, c in rows:
        s = a * s + b * s**3 + c * s**5
    return u * s[..., None, :] @ v


def error(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


# ---- results ------------------------------------------------------------------------------------


@each_backend
@each_form
@each_shape
@pytest.mark.parametrize("coefficients", COEFFICIENTS)
def test_the_result_is_the_polynomial_of_the_singular_values(backend, form, shape, coefficients):
    for steps in (1, 2, 5, 6, 12):
        g = gaussian(*shape)
        found = orthogonalize(g, steps, coefficients, form=form, backend=backend)
        assert error(found, exact(g, steps, coefficients)) <= BOUNDS[torch.float64], steps


@each_backend
@each_pair
def test_every_dtype_is_as_exact_as_its_digits(backend, form, dtype):
    given = torch.promote_types(dtype, torch.float32)
    for g in (gaussian(48, 96, dtype=given), gaussian(96, 48, dtype=given)):
        found = orthogonalize(g, form=form, dtype=dtype, backend=backend)
        assert error(found, exact(g)) <= BOUNDS[dtype]


@each_backend
@each_form
def test_columns_of_unlike_scales_cost_no_digits_in_float32(backend, form):
    for g in (decaying(64, 256).float(), decaying(256, 64).float()):
        found = orthogonalize(g, form=form, dtype="float32", backend=backend)
        assert error(found, exact(g)) <= 1e-4
        # what bfloat16 makes of them
        assert error(orthogonalize(g, dtype="bfloat16", form="standard"), exact(g)) >= 1e-3


@each_backend
@pytest.mark.parametrize("coefficients", ["keller", "you"])
def test_gram_in_float16_restarts_in_time(backend, coefficients):
    g = gaussian(64, 256, dtype=torch.float32)
    found = orthogonalize(g, 5, coefficients, form="gram", dtype="float16", backend=backend)
    assert error(found, exact(g, 5, coefficients)) <= 1e-2


@each_backend
@each_pair
@pytest.mark.parametrize("coefficients", ["keller", "you", "polar_express"])
def test_singular_values_end_where_exact_ones_do(backend, form, dtype, coefficients):
    """Of matrices whose smallest is a hundredth of the norm."""
    u, v = torch.linalg.qr(gaussian(32, 32))[0], torch.linalg.qr(gaussian(96, 32))[0]
    s = torch.logspace(0, -1, 32, dtype=torch.float64)
    g = ((u * s) @ v.mT).to(torch.promote_types(dtype, torch.float32))
    assert torch.linalg.svdvals(g / g.norm()).min() >= 1e-2
    options = {"form": form, "dtype": dtype, "backend": backend}
    found = torch.linalg.svdvals(orthogonalize(g, 5, coefficients, **options).double())
    least, most = torch.linalg.svdvals(exact(g, 5, coefficients)).aminmax()
    slack = 2e-2 if dtype.itemsize == 2 else 1e-4
    assert found.min() >= least - slack
    assert found.max() <= most + slack


@each_backend
def test_the_result_is_orthogonal(backend):
    """Neither the matrix itself nor a multiple of it."""
    u, v = (torch.linalg.qr(gaussian(48, n))[0] for n in (48, 47))
    v = torch.linalg.qr(gaussian(80, 48))[0]
    g = (u * torch.logspace(0, -2, 48, dtype=torch.float64)) @ v.mT
    found = torch.linalg.svdvals(orthogonalize(g, 12, "simple", backend=backend))
    assert found.min() > 0.99
    assert found.max() < 1.01
    five = torch.linalg.svdvals(orthogonalize(g.float(), backend=backend).double())
    assert five.min() > 0.45
    assert five.max() < 1.21
    assert torch.linalg.svdvals(g / g.norm()).min() < 0.01


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_transposing_commutes(backend, dtype):
    """Tall matrices are read as they lie, by other routines of the BLAS: equal but for rounding."""
    for shape in ((3, 33, 70), (1, 257, 513)):
        g = gaussian(*shape, dtype=dtype)
        wide, tall, read = (
            orthogonalize(each, dtype=dtype, backend=backend)
            for each in (g, g.mT.contiguous(), g.mT)
        )
        bound = {torch.float64: 1e-11, torch.float32: 1e-5}[dtype]
        assert error(tall.mT, wide.double()) <= bound
        assert error(read, tall.double()) <= bound


@each_backend
@pytest.mark.parametrize("shape", [(3, 33, 70), (2, 257, 513), (4, 20, 20), (2, 3, 5, 9)], ids=str)
def test_batched_equals_looped_bitwise(backend, shape):
    g = gaussian(*shape, dtype=torch.float32)
    whole = orthogonalize(g, backend=backend)
    for index in itertools.product(*map(range, shape[:-2])):
        assert torch.equal(orthogonalize(g[index].clone(), backend=backend), whole[index])


@each_backend
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 7), (7, 1), (3, 1000), (1000, 3), (257, 513)], ids=str
)
def test_odd_sizes(backend, shape):
    g = gaussian(*shape, dtype=torch.float32)
    found = orthogonalize(g, dtype="float32", backend=backend)
    assert found.shape == shape
    assert error(found, exact(g)) <= 1e-4


@each_backend
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0)], ids=str)
def test_nothing_comes_of_nothing(backend, shape):
    assert orthogonalize(torch.empty(shape), backend=backend).shape == shape


@each_backend
@each_form
def test_autocast_changes_no_bit(backend, form):
    g = gaussian(48, 96, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = orthogonalize(g, form=form, backend=backend)
    assert torch.equal(found, orthogonalize(g, form=form, backend=backend))


@each_backend
def test_the_default_device_does_not_matter(backend):
    g = gaussian(5, 7, dtype=torch.float32)
    expected = orthogonalize(g, backend=backend)
    with torch.device("meta"):
        assert torch.equal(orthogonalize(g, backend=backend), expected)


# ---- norms --------------------------------------------------------------------------------------


@each_backend
def test_zero_stays_zero_among_others(backend):
    g = gaussian(3, 8, 12, dtype=torch.float32)
    g[1] = 0
    found = orthogonalize(g, backend=backend)
    assert found[1].eq(0).all()
    assert torch.equal(found[0], orthogonalize(g[0], backend=backend))
    assert torch.linalg.svdvals(found[2].double()).min() > 0.4


@each_backend
@pytest.mark.parametrize("exponent", [-99, -40, -1, 1, 40, 99])
def test_the_scale_does_not_matter(backend, exponent):
    """From 1e-30 to 1e30; a power of two changes no bit."""
    g = gaussian(24, 40, dtype=torch.float32)
    assert torch.equal(
        orthogonalize(g * 2.0**exponent, backend=backend), orthogonalize(g, backend=backend)
    )
    h = (g.double() * 10.0 ** (exponent / 3.3)).float()
    assert error(orthogonalize(h, dtype="float32", backend=backend), exact(h)) <= 1e-4


def test_eps_shrinks_what_is_smaller():
    g = gaussian(8, 12)
    g = g / g.norm()
    assert torch.equal(
        orthogonalize(g, 1, (1.0, 0.0, 0.0), eps=0.5), orthogonalize(g, 1, (1.0, 0.0, 0.0))
    )
    halved = orthogonalize(g, 1, (1.0, 0.0, 0.0), eps=2.0)
    torch.testing.assert_close(halved, g / 2, rtol=1e-14, atol=1e-16)


@each_backend
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_spoils_its_own_matrix_only(backend, bad):
    g = gaussian(3, 20, 30, dtype=torch.float32)
    clean = orthogonalize(g, backend=backend)
    g[1, 3, 4] = bad
    found = orthogonalize(g, backend=backend)
    assert torch.equal(found[::2], clean[::2])
    assert found[1].isnan().all()


def test_norms_beyond_the_range_of_their_inverse_are_bounded():
    for dtype, norm in ((torch.float32, 2e-40), (torch.float64, 2e-310)):
        norms = torch.tensor([norm, 0.0, torch.nan, 1.0], dtype=torch.float64)
        for margin in (1.0, 1.02):
            found = inverses(norms.clone(), 0.0, margin, dtype)
            assert found.dtype == dtype
            assert found.isfinite().tolist() == [True, True, False, True]
            assert found[3] == torch.tensor(1 / margin, dtype=torch.float64).to(dtype)


# ---- the Schatten-4 norm ------------------------------------------------------------------------

over_schatten4 = functools.partial(orthogonalize, norm="schatten4")


@each_backend
@each_form
@pytest.mark.parametrize("shape", [(20, 20), (2, 12, 40), (2, 40, 12)], ids=str)
def test_schatten4_divides_by_that_norm_or_eps(backend, form, shape):
    g = gaussian(*shape) * 1e3
    # the second lies between the two norms of each matrix
    for eps in (0.0, 1.6e4, 1e5):
        found = over_schatten4(g, 1, (1.0, 0.0, 0.0), eps=eps, form=form, backend=backend)
        expected = exact(g, 1, (1.0, 0.0, 0.0), norm=4, eps=eps)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    # X X^T of that is what the first step takes; and there is a factor of the norm
    found = over_schatten4(g, 5, "polar_express_cushioned", form=form, backend=backend)
    assert error(found, exact(g, 5, "polar_express_cushioned", norm=4)) <= BOUNDS[torch.float64]


@each_backend
@each_pair
def test_schatten4_in_any_dtype(backend, form, dtype):
    """Of any size: X X^T is in the range, since X comes to it over its Frobenius norm."""
    g = gaussian(3, 24, 96) * torch.tensor([1e-30, 1.0, 1e30])[:, None, None]
    given = g if dtype == torch.float64 else g.float()
    found = over_schatten4(given, form=form, dtype=dtype, backend=backend)
    for matrix, expected in zip(found, exact(g, norm=4), strict=True):
        assert error(matrix, expected) <= BOUNDS[dtype]
    # the bound is attained: of rank one
    (flat,) = over_schatten4(given[1:2, :1].expand(1, 24, 96), 1, (1.0, 0.0, 0.0), dtype=dtype)
    assert torch.linalg.matrix_norm(flat.double(), 2) <= 1 + 4 * torch.finfo(dtype).eps


@each_backend
@pytest.mark.parametrize("eps", [0.0, 1e-7])
@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_schatten4_leaves_zero_and_what_is_not_finite_alone(backend, eps, dtype):
    g = gaussian(4, 8, 12, dtype=dtype)
    clean = over_schatten4(g, eps=eps, backend=backend)
    g[1], g[2, 3, 4] = 0, torch.inf
    found = over_schatten4(g, eps=eps, backend=backend)
    assert torch.equal(found[::3], clean[::3])
    assert not found[1].any()
    assert found[2].isnan().all()


@each_backend
@each_pair
def test_schatten4_of_what_no_factor_brings_to_1_is_finite(backend, form, dtype):
    """In float16 X X^T of it is zero."""
    g = gaussian(1, 6, 6, dtype=torch.float32) * 1e-43
    found = over_schatten4(g, form=form, dtype=dtype, backend=backend)
    assert torch.linalg.matrix_norm(found.double(), 2) <= 1.3


def test_schatten4_is_nearer_to_the_largest_singular_value():
    """So small singular values come nearer to 1 in as many steps."""
    g = gaussian(64, 64)
    least = [torch.linalg.svdvals(orthogonalize(g, 2, norm=n)).min() for n in NORMS]
    assert [*NORMS] == ["frobenius", "schatten4"]
    assert least[1] > 2 * least[0]


# ---- padding ------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize(
    "shape", [(5, 9), (9, 5), (18, 17), (33, 70), (70, 33), (50, 3), (0, 5), (5, 0)], ids=str
)
def test_sides_may_be_padded(backend, shape, monkeypatch):
    """As for a GPU; where a batch has its own memory, and where it is overwritten."""
    g = gaussian(2, *shape)
    expected = orthogonalize(g, backend=backend)
    namespace = backends.pick("cpu", backend).products("cpu")
    monkeypatch.setitem(namespace.MULTIPLES, "cpu", 16)
    found, (rows, margin) = orthogonalize(g, backend=backend), polynomials("keller", 5)
    factors = inverses(torch.linalg.vector_norm(g, dim=(1, 2)), 0.0, margin, g.dtype)
    again = orthogonal(g.clone(), factors, rows, g.dtype, None, backend, g)
    for each in (found, again):
        assert each.is_contiguous()
        torch.testing.assert_close(each, expected, rtol=1e-10, atol=1e-10)


def test_rows_begin_at_multiples_of_what_they_are_padded_to():
    """Those of the smaller Gram matrix too; a tall matrix may stay as long as it is."""
    sides = {(5, 9): (16, 16), (2048, 5461): (2048, 5472), (5461, 2047): (5461, 2048)}
    sides |= {(18, 17): (32, 32), (32, 48): (32, 48), (1, 1): (16, 16)}
    for (m, n), larger in sides.items():
        memory = products.padded((2, m, n), torch.float16, torch.device("cpu"), 16)
        assert memory.shape == (2, *larger)
        assert not memory[:, m:].any()
        assert not memory[:, :, n:].any()


# ---- forms --------------------------------------------------------------------------------------


def test_gram_in_bfloat16_is_refused():
    with pytest.raises(ValueError, match="form='gram' loses all digits in bfloat16: take float16"):
        orthogonalize(gaussian(4, 8, dtype=torch.float32), form="gram", dtype=torch.bfloat16)


# ALGORITHMS 4.3: n x n x n products counted as 2, m = alpha n, 5 steps
FORMULAS = {
    ("standard", 1.0, torch.float32): lambda alpha: 5 * (4 * alpha + 2),
    ("standard", 0.5, torch.float32): lambda alpha: 5 * (3 * alpha + 1),
    ("gram", 1.0, torch.float16): lambda alpha: 8 * alpha + 28,
    ("gram", 0.5, torch.float16): lambda alpha: 6 * alpha + 14,
    ("gram", 0.5, torch.float32): lambda alpha: 3 * alpha + 17,
}


@pytest.mark.parametrize(("form", "share", "dtype"), FORMULAS)
@pytest.mark.parametrize("alpha", [1, 2, 4, 8])
def test_operations_are_those_of_the_formulas(form, share, dtype, alpha):
    rows, _ = polynomials("keller", 5)
    expected = FORMULAS[form, share, dtype](alpha) * 64**3
    assert flops(form, 64, 64 * alpha, rows, dtype, share) == expected


@each_form
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 12])
@pytest.mark.parametrize("coefficients", ["keller", "cubic"])
@pytest.mark.parametrize("dtype", RESTART, ids=str)
def test_operations_are_those_that_are_asked_for(form, steps, coefficients, dtype):
    asked = []

    def counted(name):
        def call(*args):
            result = getattr(products.PRODUCTS, name)(*args)
            _, n, k = result.shape
            inner = args[0].shape[2] if name == "sym_mm" else n
            asked.append(2 * n * k * inner * (0.25 if name.startswith("sym") else 1.0))
            return result

        return call

    namespace = SimpleNamespace(**{n: counted(n) for n in ("sym_mm", "sym_baddbmm", "mm_add")})
    rows, _ = polynomials(coefficients, steps)
    apply(form, gaussian(1, 8, 20, dtype=dtype) / 20, rows, namespace)
    assert sum(asked) == flops(form, 8, 20, rows, dtype, 0.25)


def test_the_cheaper_form_is_taken():
    rows, _ = polynomials("keller", 5)
    for share in (0.5, 0.64, 1.0):
        assert cheapest(64, 64, rows, torch.float16, share) == "standard"
        assert cheapest(64, 256, rows, torch.float16, share) == "gram"
        assert cheapest(64, 256, rows, torch.float32, share) == "gram"
        assert cheapest(64, 256, rows, torch.bfloat16, share) == "standard"
    assert cheapest(64, 256, rows[:1], torch.float32, 0.5) == "standard"


@each_backend
def test_the_iteration_does_not_write_its_operand(backend):
    x = gaussian(2, 8, 12, dtype=torch.float32) / 10
    before, (rows, _) = x.clone(), polynomials("keller", 5)
    for form in FORMS:
        iterate(x, rows, form, backend)
    assert torch.equal(x, before)


# ---- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_the_dtype_of_the_result_is_that_of_the_argument(dtype):
    g = gaussian(8, 12, dtype=dtype).requires_grad_()
    for working in (None, torch.promote_types(dtype, torch.float32)):
        found = orthogonalize(g, dtype=working)
        assert found.dtype == dtype
        assert not found.requires_grad
    assert error(found, exact(g.detach())) <= max(1e-4, 2 * torch.finfo(dtype).eps)


def test_any_strides_are_read_and_nothing_is_written():
    g = gaussian(12, 8, 30)[:, :, ::3].transpose(0, 1)
    before = g.clone()
    assert error(orthogonalize(g), exact(g)) <= 1e-10
    assert torch.equal(g, before)


@pytest.mark.parametrize(
    ("arguments", "error_", "message"),
    [
        ((torch.ones(3),), TypeError, r"g must be a floating tensor .* of shape .* got .*\(3,\)"),
        ((torch.ones(3, 4, dtype=torch.int64),), TypeError, "g must be a floating .*int64"),
        ((torch.ones(3, 4, dtype=torch.complex64),), TypeError, "g must be a floating .*complex64"),
        (
            (torch.ones(3, 4).to(torch.float8_e5m2),),
            TypeError,
            "g must be a floating .*float8_e5m2",
        ),
        (([[1.0]],), TypeError, "g must be a floating tensor .* got list"),
        ((torch.ones(3, 4), 0), ValueError, "steps must be at least 1, got 0"),
        ((torch.ones(3, 4), 2.0), TypeError, "steps must be an integer"),
        ((torch.ones(3, 4), 5, "x"), ValueError, "coefficients must be one of"),
    ],
)
def test_bad_arguments_are_named(arguments, error_, message):
    with pytest.raises(error_, match=message):
        orthogonalize(*arguments)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"form": "fast"}, "form must be one of .*'gram'.*got 'fast'"),
        ({"dtype": "float8"}, "dtype must be one of .*got 'float8'"),
        ({"eps": -1.0}, "eps must be a finite number at least 0"),
        ({"norm": "nuclear"}, "norm must be one of .*'schatten4'.*got 'nuclear'"),
        ({"backend": "cublas"}, "backend must be None or one of"),
    ],
)
def test_bad_options_are_named(option, message):
    for shape in ((3, 4), (0, 4)):
        with pytest.raises(ValueError, match=message):
            orthogonalize(torch.ones(shape), **option)
