"""A block of one's own, a mixture of experts in place of the MLP, in the exact sweep: `python examples/mixture_of_experts.py`.

`Model` takes the block as a field. As long as it keeps the contract (see `ji.Model`: rows mix through keys and values only;
`prefix` and `read` are honored; sites keep their meanings), sweeps recompute only what an edit reaches, `generate` has its
cache, and sites that are new here ("moe.gate") can be captured, edited and swept like any other.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

import jaxinterp as ji
from jaxinterp import models, nn, patching
from jaxinterp.tap import take_rows

N_EXPERTS, N_ACTIVE = 4, 2


def init(config, key):
    """The usual parameters, with experts [L, X, ...] and a router [L, D, X] in place of the MLP."""
    params = models.init(config, key)
    (block,) = params["blocks"]
    n, d, f = block.pop("mlp")["W_in"].shape
    shapes = {"W_router": (n, d, N_EXPERTS), "W_in": (n, N_EXPERTS, d, f), "W_out": (n, N_EXPERTS, f, d)}
    normal = lambda shape, key: jax.random.normal(key, shape) * config.initializer_range
    keys = jax.random.split(jax.random.fold_in(key, 1), len(shapes))
    block["moe"] = {name: normal(shape, k) for (name, shape), k in zip(shapes.items(), keys, strict=True)}
    return params


def mixture(params, x, *, precision, tap):
    """What the experts write, weighted by a softmax over the two that the router chooses. X: experts."""
    einsum = functools.partial(jnp.einsum, precision=precision)
    scores = tap("moe.scores", einsum("btd,dx->btx", x, params["W_router"]), "BTX")
    least = jax.lax.top_k(scores, N_ACTIVE)[0][..., -1:]
    gate = jax.nn.softmax(jnp.where(scores >= least, scores, -jnp.inf))
    gate = tap("moe.gate", gate, "BTX")  # no letter of the usual ones: X is the site's feature axis
    hidden = jax.nn.gelu(einsum("btd,xdf->btxf", x, params["W_in"]))
    return einsum("btxf,xfd->btd", hidden * gate[..., None], params["W_out"])


def block(config, params, data, x, *, positions, prefix=None, read=None, tap=ji.IDENTITY):
    """As `models.block`, with `mixture` where the MLP is."""
    kind = nn.AttentionKind(causal=True, scale=config.score_scale, norm=config.norm, precision=config.precision)
    x = tap("resid_pre", x)
    write, key_values = nn.attention(
        params["attn"], params["ln1"], tap("attn.in", x), kind=kind, positions=positions,
        frequencies=data.get("frequencies"), prefix=prefix, read=read, tap=tap,
    )  # fmt: skip
    if read is not None:
        x, tap = take_rows(x, read), tap.narrow(read)  # from here on only rows whose output is wanted
    x = tap("resid_mid", x + tap("attn.out", write))
    h = nn.normalize(params["ln2"], tap("mlp.in", x), norm=config.norm, site="mlp.norm_scale", tap=tap)
    write = mixture(params["moe"], h, precision=config.precision, tap=tap)
    return tap("resid_post", x + tap("mlp.out", write)), key_values


config = ji.TransformerConfig(
    n_layers=2, d_model=16, n_ctx=16, n_heads=2, d_head=8, d_vocab=20, d_mlp=24, initializer_range=0.3,
    positional_embedding_type="rotary", normalization_type="RMS",
)  # fmt: skip
model = dataclasses.replace(ji.Model(config=config), block_fn=block, init_fn=init)


def problem():
    """Parameters, and two pairs of prompts that differ in one token."""
    base = jnp.array([[1, 2, 3, 4, 5, 6], [7, 8, 9, 4, 5, 6]])
    metric = patching.logit_difference([10, 11], [12, 13], position=[5, 5])
    return model.init(jax.random.key(0)), dict(base=base, source=base.at[:, 2].set(14), metric=metric)


def main():
    """Sweeps what the mixtures write over layers and positions, then the experts."""
    params, prompts = problem()
    print(ji.sites(model.forward, params, prompts["base"]))
    print(patching.plan(model, params, site="mlp.out", over="layer,position", **prompts))
    effects = patching.sweep(model, params, site="mlp.out", over="layer,position", progress=False, **prompts)
    print("\nput the source's mlp.out in (1: all of the difference)\n", effects.normalized.round(2).values)
    how = dict(site="moe.gate", over="layer,feature", op=ji.zero, progress=False)
    print("\nwithout one expert (logits)\n", patching.sweep(model, params, **how, **prompts).effect.round(2).values)


if __name__ == "__main__":
    main()
