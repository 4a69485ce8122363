"""Arithmetic for decoding: exact sums, and an exponential made of exactly rounded steps."""

import hashlib
import math
from decimal import Decimal, getcontext
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmriem.core.coding.exact import exponential, product


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounded(matrix, bits):
    """Exact entries of a matrix rounded, ties to even, to ``bits`` bits of its largest one."""
    values = [[Fraction(float(x)) for x in row] for row in matrix]
    largest = max(abs(x) for row in values for x in row)
    if not largest:
        return values
    exponent = math.frexp(float(largest))[1] - bits
    unit = Fraction(2) ** exponent
    return [[round(x / unit) * unit for x in row] for row in values]


def rational_product(left, right):
    bits = (52 - max(left.shape[1] - 1, 1).bit_length()) // 2
    left, right = rounded(left, bits), rounded(right, bits)
    return [[float(sum(a * b for a, b in zip(row, column))) for column in right] for row in left]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_product_equals_rational_arithmetic(data):
    m, n, d = (data.draw(st.integers(1, 4)) for _ in range(3))
    numbers = st.floats(-1e4, 1e4, width=32) | st.floats(-1, 1, width=32)

    def matrix(rows):
        rows = data.draw(st.lists(st.lists(numbers, min_size=d, max_size=d), min_size=rows, max_size=rows))
        return torch.tensor(rows, dtype=torch.float32)

    left, right = matrix(m), matrix(n)
    found = product(left, right)
    assert found.dtype == torch.float64 and found.tolist() == rational_product(left, right)


@pytest.mark.parametrize('scale', [1e-38, 1e-12, 1e6, 1e38])
@pytest.mark.parametrize('d', [1, 2, 3, 52, 129])
def test_product_of_any_scale_and_width(d, scale):
    left, right = randn(3, d), randn(2, d, seed=1) * scale
    found = product(left, right)
    assert found.tolist() == rational_product(left, right)
    exact = left.double() @ right.double().T
    bound = d * 2.0 ** -((52 - max(d - 1, 1).bit_length()) // 2) * left.abs().max() * right.abs().max()
    assert ((found - exact).abs() <= bound).all()


def test_extreme_entries_do_not_overflow_the_integers():
    """The largest sum there can be: every entry rounds up to the next power of two."""
    d = 200
    left = torch.full((2, d), math.nextafter(1.0, 0.0), dtype=torch.float64)
    assert product(left, left).tolist() == [[float(d)] * 2] * 2


@pytest.mark.parametrize(('m', 'n', 'd'), [(70, 90, 52), (300, 200, 131)])
def test_every_order_of_summation_gives_the_same_bits(m, n, d):
    left, right = randn(m, d), randn(n, d, seed=1)
    reference = product(left, right)
    for seed in range(5):
        order = torch.randperm(d, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(product(left[:, order], right[:, order]), reference)
    assert torch.equal(product(left.flip(0), right).flip(0), reference)


def test_every_number_of_threads_gives_the_same_bits():
    left, right = randn(500, 60), randn(400, 60, seed=1)
    arguments = randn(300, 300, seed=2) * 20
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append((product(left, right), exponential(arguments)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], other))


def test_product_with_zeros():
    assert product(torch.zeros(2, 3), randn(4, 3)).tolist() == [[0.0] * 4] * 2


# ---- exponential


def units_in_the_last_place(x):
    """Distance of ``exponential(x)`` from ``e**x``, in units of its last place."""
    getcontext().prec = 50
    found = float(exponential(torch.tensor(x, dtype=torch.float64)))
    return abs(Decimal(found) - Decimal(x).exp()) / Decimal(math.ulp(found))


@settings(max_examples=300, deadline=None)
@given(st.floats(-700, 700) | st.floats(-1, 1) | st.floats(-40, 40))
def test_exponential_is_within_two_units_in_the_last_place(x):
    assert units_in_the_last_place(x) <= 2


@pytest.mark.parametrize('n', [-1009, -60, -1, 0, 1, 60, 1009])
def test_exponential_where_the_argument_reduction_changes(n):
    for x in (n * math.log(2), (n + 0.5) * math.log(2)):
        for near in (math.nextafter(x, -math.inf), x, math.nextafter(x, math.inf)):
            if abs(near) <= 700:
                assert units_in_the_last_place(near) <= 2


def test_exponential_of_zero_is_one():
    assert exponential(torch.tensor([0.0, -0.0])).tolist() == [1.0, 1.0]


def test_bits_of_the_exponential_are_those_of_every_machine():
    """Golden: SHA-256 of ``exp`` of 10,001 float64 numbers from -700 to 700, little-endian."""
    x = (torch.arange(-5000, 5001, dtype=torch.float64) * 0.14).clamp(-700, 700)
    digest = hashlib.sha256(exponential(x).numpy().astype('<f8').tobytes()).hexdigest()
    assert digest == '9f7ead1b96e7149159f88115170f0e3f0a853d2a4e3949fa79cb25f1c6441d80'
