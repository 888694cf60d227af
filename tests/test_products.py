# SPDX-License-Identifier: MIT
"""The products of Newton-Schulz, in every namespace; ``test_triton`` runs this file interpreted."""

import pytest
import torch

from emanest import backends
from emanest.backends.products import transposed
from helpers import bits, memory, moved

SIZES = [(2, 65, 70), (2, 1, 9), (1, 3, 100), (1, 70, 33)]
EMPTY = [(0, 3, 4), (2, 0, 4), (2, 3, 0)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.mT.contiguous().mT,
    "strided": lambda t: t.repeat_interleave(2, 2)[:, :, ::2],
    "unaligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
}

each_kind = pytest.mark.parametrize(
    ("size", "dtype", "layout"),
    [
        *((size, dtype, "contiguous") for size in SIZES for dtype in DTYPES),
        # one that has tiles and rests either way
        *((SIZES[0], torch.float32, name) for name in [*LAYOUTS][1:]),
    ],
    ids=str,
)

# Triton is among them where it interprets
NAMES = [name for name in backends.BACKENDS if backends.find(name, "cpu")[0]]


class OnGpu:
    """Triton's products of CPU tensors, which go to a GPU as they lie and come back."""

    device = "cuda"

    def __getattr__(self, name):
        function = getattr(backends.pick(self.device, "triton").products(self.device), name)

        def call(*args, out=None):
            there = [moved(t, self.device) if isinstance(t, torch.Tensor) else t for t in args]
            if out is None:
                found = function(*there)
            else:
                # it may be an operand, or none of them
                among = [t for here, t in zip(args, there, strict=True) if here is out]
                to = among[0] if among else moved(out, self.device)
                assert function(*there, out=to) is to
                memory(out).copy_(memory(to))
                found = out
            # neither the operands nor what lies between them is written
            for here, t in zip(args, there, strict=True):
                if isinstance(t, torch.Tensor):
                    assert bits(memory(t).cpu()) == bits(memory(here))
            return moved(found, "cpu") if out is None else found

        return call

    def scale(self, u, factors, out):
        there = [None if t is None else moved(t, self.device) for t in (u, factors, out)]
        backends.pick(self.device, "triton").products(self.device).scale(*there)
        memory(out).copy_(memory(there[2]))


@pytest.fixture(params=[*NAMES, pytest.param("a GPU", marks=pytest.mark.gpu)])
def products(request):
    if request.param == "a GPU":
        return OnGpu()
    return backends.pick("cpu", request.param).products("cpu")


def randn(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def operands(size, dtype, layout="contiguous"):
    """X and symmetric matrices that commute: A, and C = I + A."""
    batch, n, _ = size
    place = LAYOUTS[layout]
    root = randn(batch, n, n)
    a = ((root + root.mT) / max(1, n)).to(dtype)
    c = (torch.eye(n, dtype=torch.float64) + a.double()).to(dtype)
    return place(randn(*size, dtype=dtype)), place(a), place(c)


def in_place(p, x, a, c):
    own = c.clone()
    found = p.sym_mm(x, own, 0.5, 2.0, out=own)
    assert found is own
    return found


# name -> (call, the same in float64, what the result is: symmetric, laid out like X, or by rows)
CALLS = {
    "mm": (lambda p, x, a, c: p.mm(x.mT, a), lambda x, a, c: x.mT @ a, "by rows"),
    "sym_mm": (lambda p, x, a, c: p.sym_mm(x), lambda x, a, c: x @ x.mT, "symmetric"),
    "sym_mm, an addend": (
        lambda p, x, a, c: p.sym_mm(x, c, 0.5, 2.0),
        lambda x, a, c: 0.5 * c + 2 * x @ x.mT,
        "symmetric",
    ),
    "in place": (in_place, lambda x, a, c: 0.5 * c + 2 * x @ x.mT, "symmetric"),
    "sym_baddbmm": (
        lambda p, x, a, c: p.sym_baddbmm(c, a, a, 0.5, 2.0),
        lambda x, a, c: 0.5 * c + 2 * a @ a,
        "symmetric",
    ),
    "without an addend": (
        lambda p, x, a, c: p.sym_baddbmm(c, a, a, 0.0, 2.0),
        lambda x, a, c: 2 * a @ a,
        "symmetric",
    ),
    "mm_add": (
        lambda p, x, a, c: p.mm_add(x, a, 0.5, 2.0),
        lambda x, a, c: 0.5 * x + 2 * a @ x,
        "like x",
    ),
    "mm_add, no x": (lambda p, x, a, c: p.mm_add(x, a, 0.0, 1.0), lambda x, a, c: a @ x, "like x"),
}
each_call = pytest.mark.parametrize("name", CALLS)


@each_kind
@pytest.mark.parametrize(("name", "over"), [("norms", (1, 2)), ("row_norms", 2)])
def test_norms_are_those_of_float64(products, name, over, size, dtype, layout):
    x = LAYOUTS[layout](randn(*size, dtype=dtype))
    # far beyond the squares that float32, let alone float16, can hold
    x *= torch.finfo(dtype).max / 8 if dtype != torch.float64 else 1.0
    found, expected = getattr(products, name)(x), x.double().square().sum(over).sqrt()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


@each_kind
@pytest.mark.parametrize(("narrow", "of_rows"), [(True, False), (False, False), (True, True)])
def test_each_matrix_has_its_factors_and_is_rounded_once(
    products, size, dtype, layout, narrow, of_rows
):
    # torch itself goes from float64 to float16 by way of float32
    wide = torch.promote_types(dtype, torch.float32)
    to = {torch.float64: torch.float32, torch.float32: torch.float16}[wide] if narrow else wide
    u = LAYOUTS[layout](randn(*size, dtype=dtype))
    factors = torch.tensor([0.3, 1.7])[: len(u)].to(wide)
    factors = factors[:, None] / torch.arange(1, size[1] + 1) if of_rows else factors
    # in the midst of other memory, which stays as it is
    _, n, m = size
    whole = torch.full((len(u), n + 3, m + 5), 7.0, dtype=to)
    products.scale(u, factors, whole[:, :n, :m])
    expected = (u.to(wide) * (factors[..., None] if of_rows else factors[:, None, None])).to(to)
    assert torch.equal(whole[:, :n, :m], expected)
    assert (whole[:, n:] == 7).all()
    assert (whole[:, :n, m:] == 7).all()


def test_factors_can_be_applied_in_place(products):
    x, factors = randn(2, 65, 70).float(), torch.tensor([0.5, 2.0])
    expected = x * factors[:, None, None]
    products.scale(x, factors, x)
    assert torch.equal(x, expected)


@each_call
@each_kind
def test_products_are_those_of_float64(products, name, dtype, layout, size):
    call, reference, kind = CALLS[name]
    given = operands(size, dtype, layout)
    before = [t.clone() for t in given]
    found = call(products, *given)
    expected = reference(*(t.double() for t in given))
    assert found.dtype == dtype
    assert found.shape == expected.shape
    # a result is rounded once; sums of up to 100 terms are in float32 or wider
    unit = max(torch.finfo(dtype).eps, 1e-15)
    error = (found.double() - expected).norm() / expected.norm()
    assert error <= (2 * unit if dtype.itemsize == 2 else 8 * unit)
    assert all(map(torch.equal, given, before))
    if kind == "symmetric":
        assert torch.equal(found, found.mT)
    elif layout != "strided" or kind == "by rows":
        assert transposed(found) == (kind == "like x" and transposed(given[0]))


# dtypes of operands and of a result: of an update in float32 that is orthogonalised in 16 bits, say
OTHERS = [
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float32, torch.float64),
]


@pytest.mark.parametrize(("dtype", "out_dtype"), OTHERS, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("size", [SIZES[0], EMPTY[0]], ids=str)
def test_a_product_may_have_another_dtype(products, size, beta, layout, dtype, out_dtype):
    x, a, _ = operands(size, dtype, layout)
    found = products.mm_add(x, a, beta, 2.0, out_dtype)
    plain = products.mm_add(x, a, beta, 2.0)
    assert (found.dtype, found.shape) == (out_dtype, plain.shape)
    assert transposed(found) == transposed(plain)
    # rounded once, or first to the operands' dtype
    expected = beta * x.double() + 2 * a.double() @ x.double()
    unit = max(torch.finfo(each).eps for each in (dtype, out_dtype))
    assert (found.double() - expected).norm() <= 4 * unit * expected.norm()
    if torch.finfo(out_dtype).eps < torch.finfo(dtype).eps:
        assert torch.equal(found.to(dtype), plain)


@each_call
@pytest.mark.parametrize("size", EMPTY, ids=str)
def test_empty_products_are_empty_or_zero(products, name, size):
    call, reference, _ = CALLS[name]
    given = operands(size, torch.float32)
    torch.testing.assert_close(call(products, *given), reference(*given))


@each_call
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_batched_equals_looped_bitwise(products, name, dtype):
    call, given = CALLS[name][0], operands((2, 65, 70), dtype)
    whole = call(products, *given)
    for i in range(2):
        alone = call(products, *(t[i : i + 1].clone() for t in given))
        assert torch.equal(alone[0], whole[i])


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_norms_and_factors_of_rows_are_as_if_alone_bitwise(products, layout):
    x = LAYOUTS[layout](randn(3, 70, 301))
    norms, out = products.row_norms(x), torch.empty_like(x)
    products.scale(x, 1 / norms, out)
    for matrix, its, scaled in zip(x.split(1), norms, out, strict=True):
        assert torch.equal(products.row_norms(matrix)[0], its)
        assert torch.equal(scaled, matrix[0] * (1 / its)[:, None])


# (batch, n, m) that have larger tiles on a GPU than one of their matrices has
LARGER = [(48, 768, 768), (8, 2048, 512)]


@pytest.mark.gpu
@each_call
@pytest.mark.parametrize("size", LARGER, ids=str)
def test_larger_tiles_change_no_bit(name, size):
    call, given = CALLS[name][0], [t.cuda() for t in operands(size, torch.float16)]
    namespace = backends.pick("cuda", "triton").products("cuda")
    whole = call(namespace, *given)
    for i in (0, size[0] - 1):
        alone = call(namespace, *(t[i : i + 1].clone() for t in given))
        assert torch.equal(alone[0], whole[i])


@pytest.mark.gpu
@pytest.mark.parametrize("choice", ["triton", "eager"])
@pytest.mark.parametrize("size", LARGER, ids=str)
def test_larger_batches_change_no_bit_of_a_norm(size, choice):
    x, products = randn(*size).cuda(), backends.pick("cuda", choice).products("cuda")
    for norms in (products.norms, products.row_norms):
        assert torch.equal(norms(x), torch.cat([norms(m.clone()) for m in x.split(1)]))


# the interpreter's, of NumPy
@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_own_matrix(products, bad):
    clean, spoiled = (operands((3, 33, 40), torch.float32) for _ in range(2))
    for t in spoiled:
        t[1, -1, -1] = bad
    for call, _, _ in CALLS.values():
        a, b = call(products, *clean), call(products, *spoiled)
        assert torch.equal(a[::2], b[::2])
        assert not b[1].isfinite().all()


def test_an_addend_that_does_not_count_is_not_read(products):
    _, a, c = operands((2, 33, 40), torch.float32)
    nan = torch.full_like(c, torch.nan)
    assert torch.equal(
        products.sym_baddbmm(nan, a, a, 0.0, 1.0), products.sym_baddbmm(c, a, a, 0.0, 1.0)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_symmetric_product_is_written_into_any_layout(products, layout):
    x, a, c = operands((2, 65, 70), torch.float32)
    for wrong in (c[:, 1:], c.double()):
        with pytest.raises(
            ValueError, match=r"out must have shape \(2, 65, 65\), of torch.float32"
        ):
            products.sym_mm(x, out=wrong)
    for call in (
        lambda **out: products.sym_mm(x, c, 0.5, 2.0, **out),
        lambda **out: products.sym_baddbmm(c, a, a, 0.5, 2.0, **out),
    ):
        to = LAYOUTS[layout](torch.full_like(c, torch.nan))
        assert call(out=to) is to
        assert torch.equal(to, call())


# sizes and dtypes for which MKL and oneDNN choose otherwise where another number of threads is set;
# of layouts that are copied first one symmetric product and another will do
THREADED = [
    *(
        (name, (2, 301, 813), dtype, layout)
        for dtype in (torch.float64, torch.float32)
        for layout in LAYOUTS
        for name in (CALLS if layout in ("contiguous", "transposed") else ("sym_mm", "mm_add"))
    ),
    *((name, (2, 301, 813), torch.bfloat16, "contiguous") for name in CALLS),
    ("mm_add, no x", (2, 513, 257), torch.bfloat16, "transposed"),
    ("mm_add, no x", (2, 301, 813), torch.float16, "contiguous"),
    # large enough for higher tiles; and with a strip whose second piece begins in its diagonal
    ("mm", (1, 300, 8000), torch.bfloat16, "contiguous"),
    ("in place", (1, 800, 40), torch.float32, "contiguous"),
    ("sym_baddbmm", (1, 1024, 64), torch.float32, "contiguous"),
]


@pytest.mark.parametrize(("name", "size", "dtype", "layout"), THREADED, ids=str)
def test_threads_and_company_change_no_bit(name, size, dtype, layout):
    cpu = pytest.importorskip("emanest.backends.cpu_products", exc_type=ImportError).PRODUCTS
    # more than one tile, and a rest, either way
    given, threads = operands(size, dtype, layout), torch.get_num_threads()
    call, reference, kind = CALLS[name]
    found = []
    try:
        # of four, three are new at first, and torch sets these up as they work
        for count in (1, 4, 3, 2):
            torch.set_num_threads(count)
            found.append(call(cpu, *given))
        alone = torch.cat([call(cpu, *(t[i : i + 1] for t in given)) for i in range(size[0])])
    finally:
        torch.set_num_threads(threads)
    for other in (*found[1:], alone):
        assert torch.equal(found[0], other)
    expected = reference(*(t.double() for t in given))
    unit = torch.finfo(dtype).eps
    assert (found[0].double() - expected).norm() <= 16 * unit * expected.norm()
    if kind == "symmetric":
        assert torch.equal(found[0], found[0].mT)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "triton"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ["norms", "row_norms"])
def test_norms_depend_neither_on_threads_nor_on_the_batch(name, layout, which):
    norms = getattr(backends.pick("cpu", name).products("cpu"), which)
    x, threads, found = LAYOUTS[layout](randn(2, 300, 301)), torch.get_num_threads(), []
    try:
        for count in (1, 4, 2):
            torch.set_num_threads(count)
            found += norms(x), torch.cat([norms(m) for m in x.split(1)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(each, found[0]) for each in found)


def test_products_leave_the_number_of_threads_alone():
    """Of torch, and of the BLAS: a product of torch's has the bits that it had before."""
    cpu = pytest.importorskip("emanest.backends.cpu_products", exc_type=ImportError).PRODUCTS
    (x, a, _), threads = operands((1, 1024, 512), torch.float32), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        before = a[0] @ x[0]
        cpu.mm_add(x, a, 0.0, 1.0)
        assert torch.get_num_threads() == 2
        assert torch.equal(a[0] @ x[0], before)
    finally:
        torch.set_num_threads(threads)


def test_products_take_subnormal_numbers_for_zero_and_leave_the_mode_of_all_threads_alone():
    """Which the processor works on ten times as long; Gram matrices that come to I are full of."""
    cpu = pytest.importorskip("emanest.backends.cpu_products", exc_type=ImportError).PRODUCTS
    x, least = torch.full((1, 64, 64), 1e-20), torch.full((1 << 18,), 1e-38)
    before = torch.tensor([1e-38]) * 0.5 == 0
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    try:
        for mode in (True, False):
            torch.set_flush_denormal(mode)
            assert not cpu.sym_mm(x).any()
            assert ((least[:4] * 0.5) == 0).all() == mode
        assert (least * 0.5 > 0).all()
    finally:
        torch.set_flush_denormal(bool(before))
