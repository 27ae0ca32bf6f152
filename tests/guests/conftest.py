"""Guests and, for each, the framework's own way to call it with one value seen or changed."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxinterp as ji

V, D, N = 11, 8, 2
TOKENS = jnp.array([[1, 2, 3, 4], [5, 6, 2, 1]])
SOURCE = jnp.array([[1, 7, 3, 4], [5, 6, 9, 1]])
SHAPES = {"embed": (2, 4, D), "attn.out": (N, 2, 4, D), "mlp.out": (N, 2, 4, D), "resid_post": (N, 2, 4, D)}


@dataclasses.dataclass(frozen=True)
class Case:
    """A guest, and the same computation without jaxinterp.

    Attributes:
        forward, params: the guest.
        call: `(tokens, changes) -> logits`, the framework's own call, where `changes[site, layer]` is a function that a value
            goes through.
        promotes: whether the framework's own code counts on JAX's usual promotion of dtypes.
    """

    forward: Callable[..., Any]
    params: Any
    call: Callable[..., Any]
    promotes: bool

    def logits(self, tokens, changes=None):
        if not self.promotes:
            return self.call(tokens, changes or {})
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return self.call(tokens, changes or {})

    def values(self, tokens, places):
        """Values at (site, layer), caught on their way through the framework's own call."""
        seen = {}

        def look(tokens):
            self.logits(tokens, {place: lambda x, place=place: seen.setdefault(place, x) for place in places})
            return [seen.pop(place) for place in places]

        return jax.jit(look)(tokens)


@functools.cache
def nnx_modules():
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.LayerNorm(D, rngs=rngs)
            self.attn = nnx.MultiHeadAttention(2, D, decode=False, rngs=rngs)
            self.mlp = nnx.Sequential(nnx.Linear(D, 12, rngs=rngs), nnx.gelu, nnx.Linear(12, D, rngs=rngs))

        def __call__(self, x, mask, change, layer, tap):
            tap = tap.at(layer=layer, n_layers=N)
            write = self.attn(self.norm(x), mask=mask)
            x = x + tap("attn.out", change("attn.out", layer, write))
            x = x + tap("mlp.out", change("mlp.out", layer, self.mlp(x)))
            return tap("resid_post", change("resid_post", layer, x))

    class Tapped(nnx.Module):
        """One line for each site; `change` is how the tests see values without them."""

        def __init__(self, rngs):
            self.embed = nnx.Embed(V, D, rngs=rngs)
            self.blocks = nnx.List([Block(rngs) for _ in range(N)])
            self.out = nnx.Linear(D, V, rngs=rngs)

        def __call__(self, tokens, *, change=lambda name, layer, x: x, tap=ji.IDENTITY):
            x = tap("embed", change("embed", None, self.embed(tokens)))
            mask = nnx.make_causal_mask(tokens)
            for i, block in enumerate(self.blocks):
                x = block(x, mask, change, i, tap)
            return self.out(x)

    class Plain(Tapped):
        """The same without taps."""

        def __call__(self, tokens, *, change=lambda name, layer, x: x):
            return super().__call__(tokens, change=change)

    return Tapped, Plain


NNX_PATHS = {
    "embed": "embed",
    "blocks.*.attn": "attn.out",
    "blocks.*.mlp.layers.2": "mlp.out",
    "blocks.*": "resid_post",
}


def nnx_case(index, paths):
    from flax import nnx

    module = nnx_modules()[index](nnx.Rngs(0))

    def call(tokens, changes):
        return module(tokens, change=lambda name, i, x: changes.get((name, i), lambda x: x)(x))

    return Case(*ji.guests.from_nnx(module, paths), call, False)


PENZAI_PATHS = {
    "EmbeddingLookup": "embed",
    "TransformerBlock.*.Attention": "attn.out",
    "TransformerBlock.*.TransformerFeedForward": "mlp.out",
    "TransformerBlock.*": "resid_post",
}


def llama(**changes):
    from penzai.models.transformer.variants import llamalike_common as llama

    config = llama.LlamalikeTransformerConfig(
        num_kv_heads=2, query_head_multiplier=2, embedding_dim=D, projection_dim=4, mlp_hidden_dim=12,
        num_decoder_blocks=N, vocab_size=V, mlp_variant="swiglu", tie_embedder_and_logits=False, **changes,
    )  # fmt: skip
    return llama.build_llamalike_transformer(config, init_base_rng=jax.random.key(0))


def neox():
    from penzai.models.transformer.variants import gpt_neox

    config = gpt_neox.GPTNeoXTransformerConfig(
        num_attention_heads=2, embedding_dim=D, projection_dim=4, mlp_hidden_dim=12, num_decoder_blocks=N, vocab_size=V,
        activation_fn="gelu_approx", rope_subset_size=2, rope_wavelength=1e4, layernorm_epsilon=1e-5,
        parameter_dtype=jnp.float32, activation_dtype=jnp.float32,
    )  # fmt: skip
    return gpt_neox.build_gpt_neox_transformer(config, init_base_rng=jax.random.key(0))


def penzai_case(model):
    from penzai import pz
    from penzai.models.transformer import model_parts

    kinds = {
        "embed": pz.nn.EmbeddingLookup, "attn.out": pz.nn.Attention, "mlp.out": model_parts.TransformerFeedForward,
        "resid_post": model_parts.TransformerBlock,
    }  # fmt: skip

    @pz.pytree_dataclass
    class Change(pz.nn.Layer):
        change: Callable[..., Any] = dataclasses.field(metadata={"pytree_node": False})

        def __call__(self, x, **side_inputs):
            return pz.nx.wrap(self.change(x.unwrap("batch", "seq", "embedding")), "batch", "seq", "embedding")

    def call(tokens, changes):
        changed = model
        for (site, layer), change in changes.items():
            chosen = pz.select(changed).at_instances_of(kinds[site]).pick_nth_selected(layer or 0)
            changed = chosen.insert_after(Change(change))
        return changed(pz.nx.wrap(tokens, "batch", "seq")).unwrap("batch", "seq", "vocabulary")

    return Case(*ji.guests.from_penzai(model, PENZAI_PATHS), call, True)


CASES = {
    "nnx by lines": lambda: nnx_case(0, {}),
    "nnx by paths": lambda: nnx_case(1, NNX_PATHS),
    "penzai llama": lambda: penzai_case(llama()),
    "penzai gpt-neox": lambda: penzai_case(neox()),
}
_made = functools.cache(lambda name: CASES[name]())


@pytest.fixture(params=CASES)
def any_case(request) -> Case:
    """Each guest in turn."""
    return _made(request.param)


@pytest.fixture(params=["nnx by lines", "nnx by paths", "penzai llama"])
def some_case(request) -> Case:
    """Without the second model of penzai."""
    return _made(request.param)


@pytest.fixture(params=["nnx by paths", "penzai llama"])
def case(request) -> Case:
    """One guest of each framework."""
    return _made(request.param)
