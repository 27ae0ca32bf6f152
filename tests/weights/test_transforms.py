import numpy as np
import pytest

from jaxinterp.weights import _transforms
from jaxinterp.weights._transforms import Transform

H, K, D, E, F = 6, 3, 7, 4, 5
SHAPES = {
    "same": [(D, F)],
    "transposed": [(D, F)],
    "flat_heads": [(H, E, D)],
    "heads_from_rows": [(H, D, E)],
    "heads_from_columns": [(H, E, D)],
    "fused_heads": [(H, D, E), (K, D, E), (K, D, E)],
    "fused_head_biases": [(H, E), (K, E), (K, E)],
    "stacked_heads": [(H, D, E), (K, D, E), (K, D, E)],
    "grouped_heads": [(H, D, E)] * 3,
    "grouped_head_biases": [(H, E)] * 3,
    "stacked_columns": [(D, F), (D, F)],
}
ALL = {value.name: value for value in vars(_transforms).values() if isinstance(value, Transform)}


def test_every_transform_is_tested():
    assert set(SHAPES) == set(ALL)
    assert all(getattr(_transforms, name) is value for name, value in ALL.items())


@pytest.mark.parametrize("name", SHAPES)
def test_there_and_back_in_both_directions(name):
    transform, shapes = ALL[name], SHAPES[name]
    rng = np.random.default_rng(0)
    params = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    tensor = transform.save(params)
    assert tensor.shape == transform.file_shape(shapes)
    back = transform.load(tensor, shapes)
    assert all(np.array_equal(a, b) for a, b in zip(params, back, strict=True))
    other = rng.normal(size=tensor.shape).astype(np.float32)
    assert np.array_equal(transform.save(transform.load(other, shapes)), other)


def test_they_mean_what_a_linear_layer_computes():
    rng = np.random.default_rng(1)
    x, z = rng.normal(size=D), rng.normal(size=(H, E))
    rows, columns = rng.normal(size=(H * E, D)), rng.normal(size=(D, H * E))
    W_Q = ALL["heads_from_rows"].load(rows, [(H, D, E)])[0]
    assert np.allclose(np.einsum("d,hde->he", x, W_Q).reshape(-1), rows @ x)
    W_O = ALL["heads_from_columns"].load(columns, [(H, E, D)])[0]
    assert np.allclose(np.einsum("he,hed->d", z, W_O), columns @ z.reshape(-1))
    W_O = ALL["flat_heads"].load(columns.T, [(H, E, D)])[0]
    assert np.allclose(np.einsum("he,hed->d", z, W_O), columns @ z.reshape(-1))
    fused = rng.normal(size=(D, 3 * H * E))
    q, k, v = (np.einsum("d,hde->he", x, w).reshape(-1) for w in ALL["fused_heads"].load(fused, [(H, D, E)] * 3))
    assert np.allclose(np.concatenate([q, k, v]), x @ fused)
    stacked = rng.normal(size=(3 * H * E, D))
    q, k, v = (np.einsum("d,hde->he", x, w).reshape(-1) for w in ALL["stacked_heads"].load(stacked, [(H, D, E)] * 3))
    assert np.allclose(np.concatenate([q, k, v]), stacked @ x)
    parts = np.stack([np.einsum("d,hde->he", x, w) for w in ALL["grouped_heads"].load(stacked, [(H, D, E)] * 3)], 1)
    assert np.allclose(parts.reshape(-1), stacked @ x)
    bias = rng.normal(size=3 * H * E)
    assert np.allclose(np.stack(ALL["grouped_head_biases"].load(bias, [(H, E)] * 3), 1).reshape(-1), bias)
    both = rng.normal(size=(2 * F, D))
    gate, up = ALL["stacked_columns"].load(both, [(D, F)] * 2)
    assert np.allclose(np.concatenate([x @ gate, x @ up]), both @ x)
