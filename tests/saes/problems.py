"""Small dictionaries of every architecture, planted data, and a stream of it."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.saes import AuxK, BatchTopK, Gated, JumpReLU, Matryoshka, ReLU, SAEConfig, TopK, Training

ARCHITECTURES = {
    "relu_2024": ReLU(l1_coefficient=0.3),
    "relu_2023": ReLU(l1_coefficient=0.3, unit_norm=True, bias="geometric_median"),
    "topk": TopK(k=3),
    "topk_multi": TopK(k=2, multi_k=6, auxiliary=None),
    "topk_scaled": TopK(k=3, error_scale="sum", unit_norm=False, norm_scaled=True, auxiliary=AuxK(k=5, error_scale="sum")),
    "batch_topk": BatchTopK(k=2),
    "batch_topk_scaled": BatchTopK(k=2, error_scale="sum", unit_norm=False, norm_scaled=True),
    "matryoshka": Matryoshka(k=2, widths=(8, 24)),
    "jump_relu": JumpReLU(l0_coefficient=0.1, bandwidth=0.7, threshold=0.2),
    "jump_relu_tanh": JumpReLU(
        l0_coefficient=0.1, bandwidth=0.7, threshold=0.2, penalty="tanh", through_input=True, unit_norm=False,
        preactivation_coefficient=0.05, parameter="threshold",
    ),
    "gated": Gated(l1_coefficient=0.2),
    "gated_weighted": Gated(l1_coefficient=0.2, unit_norm=False, frozen_decoder=False),
}  # fmt: skip
KINDS = {"sae": {}, "transcoder": dict(target="y", d_out=7), "skip": dict(target="y", d_out=7, skip=True)}
D, N, B = 10, 40, 16


def make_config(architecture, kind="sae", **changes):
    return SAEConfig(**{**dict(architecture=architecture, d_in=D, n_latents=N), **KINDS[kind], **changes})


def make_rows(width=D, n=B, seed=0):
    """Rows of very different lengths."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(n, width)) * np.exp(rng.normal(size=(n, 1))), jnp.float32)


def make_params(config, seed=1):
    """First parameters, moved at random so that nothing is zero, tied or of length 1."""
    params = config.architecture.init(jax.random.key(seed), config, make_rows(config.width_out, seed=5))
    rng = np.random.default_rng(seed)
    moved = lambda leaf: leaf + jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32)
    return {name: jnp.abs(moved(leaf)) if name == "threshold" else moved(leaf) for name, leaf in params.items()}


def make_training(config, dead=True, **changes):
    some = jnp.arange(config.n_latents) % 3 == 0 if dead else jnp.zeros(config.n_latents, bool)
    return Training(sparsity=jnp.float32(config.architecture.sparsity), dead=some, config=config, **changes)


def planted(n=32, width=16, active=2, seed=0):
    """Unit directions [n, width], and a function that draws rows made of a few of them."""
    directions = np.random.default_rng(seed).normal(size=(n, width))
    directions = jnp.asarray(directions / np.linalg.norm(directions, axis=1, keepdims=True), jnp.float32)

    def draw(key, rows):
        which, much = jax.random.split(key)
        on = jax.random.bernoulli(which, active / n, (rows, n))
        amounts = jnp.where(on, 0.5 + 0.5 * jax.random.exponential(much, (rows, n)), 0.0)
        return jnp.dot(amounts, directions, precision="highest")

    return directions, draw


class PlantedStream:
    """Rows drawn from planted directions; `last` batches, or endless."""

    def __init__(self, batch_size=64, last=None, spoil=None, site="x", width=16):
        self.directions, draw = planted(width=width)
        self.widths, self.batch_size, self.dtype = {site: width}, batch_size, jnp.float32
        self.description = {"kind": "planted", "batch_size": batch_size}
        self._draw = jax.jit(lambda i: draw(jax.random.fold_in(jax.random.key(3), i), batch_size))
        self._site, self._last, self._spoil, self.taken = site, last, spoil, 0

    def __next__(self):
        if self.taken == self._last:
            raise StopIteration
        rows = self._draw(self.taken)
        if self.taken == self._spoil:
            rows = rows.at[5, 0].set(jnp.nan)
        self.taken += 1
        return {self._site: rows}

    def documents(self):
        return np.arange(self.batch_size) + 100 * self.taken

    def state(self):
        return {"taken": self.taken}

    state_shapes = state

    def restore(self, state):
        self.taken = state["taken"]
