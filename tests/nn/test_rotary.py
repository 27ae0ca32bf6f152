"""RoPE against complex numbers, and its stretches against their formulas."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.nn import rotary_frequencies, rotate, scale_linear, scale_llama3
from tests.tiny import check_close, check_same

RNG = np.random.default_rng(0)


def by_complex_numbers(x, positions, frequencies):
    half = len(frequencies)
    z = x[..., :half].astype(np.complex128) + 1j * x[..., half : 2 * half]
    z = z * np.exp(1j * positions[:, :, None, None] * frequencies.astype(np.float64))
    return np.concatenate([z.real, z.imag, x[..., 2 * half :]], -1)


def test_frequencies():
    check_close(rotary_frequencies(8, 500.0), [500.0 ** (-2 * i / 8) for i in range(4)])
    assert rotary_frequencies(8, 500.0).dtype == np.float32


@pytest.mark.parametrize("dim", [8, 4, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_rotation_is_multiplication_by_a_complex_number(dim, batch):
    x = RNG.normal(size=(3, 5, 2, 8)).astype(np.float32)
    positions = RNG.integers(0, 60, (batch, 5)).astype(np.int32)
    frequencies = rotary_frequencies(dim, 100.0)
    got = rotate(jnp.asarray(x), jnp.asarray(positions), jnp.asarray(frequencies))
    check_close(got, by_complex_numbers(x, np.broadcast_to(positions, (3, 5)), frequencies))
    check_same(got[..., dim:], x[..., dim:])


def test_adjacent_pairs_are_the_same_rotation_in_another_order():
    x = RNG.normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions, frequencies = np.arange(5, dtype=np.int32)[None], rotary_frequencies(6, 100.0)
    halves = np.concatenate([x[..., 0:6:2], x[..., 1:6:2], x[..., 6:]], -1)
    want = by_complex_numbers(halves, np.broadcast_to(positions, (2, 5)), frequencies)
    got = rotate(jnp.asarray(x), jnp.asarray(positions), jnp.asarray(frequencies), adjacent_pairs=True)
    check_close(got[..., 0:6:2], want[..., :3])
    check_close(got[..., 1:6:2], want[..., 3:6])
    check_same(got[..., 6:], x[..., 6:])


def test_scores_depend_on_distance_only():
    q, k = (jnp.asarray(RNG.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))
    f = jnp.asarray(rotary_frequencies(8, 100.0))
    score = lambda i, j: jnp.vdot(rotate(q, jnp.full((1, 1), i), f), rotate(k, jnp.full((1, 1), j), f))
    check_close(score(7, 3), score(14, 10), 1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-2


def test_rotation_keeps_the_dtype():
    x = jnp.ones((1, 2, 1, 4), jnp.bfloat16)
    got = rotate(x, jnp.array([[0, 900]]), jnp.asarray(rotary_frequencies(4, 10000.0)))
    assert got.dtype == jnp.bfloat16
    angle = 900 * rotary_frequencies(4, 10000.0).astype(np.float64)
    check_close(got[0, 1, 0], np.concatenate([np.cos(angle) - np.sin(angle), np.cos(angle) + np.sin(angle)]), 1e-2)


def test_linear_scaling_divides_every_angle():
    check_close(scale_linear(rotary_frequencies(8, 100.0), factor=4.0), rotary_frequencies(8, 100.0) / 4)


def test_llama3_scaling_by_hand():
    """The rule as its authors write it, one frequency at a time: long, short and in between."""
    f = rotary_frequencies(64, 500000.0)
    factor, low, high, old = 8.0, 1.0, 4.0, 8192
    want, kinds = [], set()
    for value in f.astype(np.float64):
        wavelength = 2 * math.pi / value
        if wavelength < old / high:
            kinds.add("short")
            want.append(value)
        elif wavelength > old / low:
            kinds.add("long")
            want.append(value / factor)
        else:
            kinds.add("between")
            smooth = (old / wavelength - low) / (high - low)
            want.append((1 - smooth) * value / factor + smooth * value)
    assert kinds == {"short", "long", "between"}
    got = scale_llama3(f, factor=factor, low_freq_factor=low, high_freq_factor=high, original_n_ctx=old)
    np.testing.assert_allclose(got, want, rtol=1e-6)
