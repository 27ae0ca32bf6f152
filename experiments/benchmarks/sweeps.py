"""Sweeps of activation patching, GPT-2-small's shape with random weights, 8 prompts x 15 tokens, float32, on one core.

The prompts of a pair first differ at position 5, and the logit difference is read at the end. Ours against TransformerLens 3.x,
nnsight, and our own vmapped whole forward passes that unembed the last position only. All have the same weights, and their
effects are compared. They run turn by turn in one process; the others at the number of cells in a forward pass that is best for
each, on a sample of cells, scaled to all. A last figure is the share of the core's peak (a large matrix product) that ours
reaches on the operations that its plan counts.

    make parity            # makes .venv-parity
    .venv-parity/bin/pip install nnsight
    taskset -c 0 .venv-parity/bin/python experiments/benchmarks/sweeps.py
    python experiments/benchmarks/sweeps.py --smoke        # seconds, a tiny model, writes nothing
"""

import argparse
import functools
import importlib.metadata
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

import jaxinterp as ji

WORKS = {
    "heads": ("attn.z", ("layer", "head")),
    "residual stream": ("resid_pre", ("layer", "position")),
    "heads by position": ("attn.z", ("layer", "head", "position")),
}
BATCHES = (1, 2, 4, 8, 12, 16, 24)


class Setup(NamedTuple):
    """What all libraries get: config, parameters, prompts [B, T] equal before `differ`, answers [B, 2]."""

    model: Any
    params: Any
    base: np.ndarray
    source: np.ndarray
    answers: np.ndarray


def make_setup(smoke):
    """GPT-2-small's shape, or a tiny one."""
    shape = dict(n_layers=12, d_model=768, n_ctx=1024, n_heads=12, d_head=64, d_vocab=50257, d_mlp=3072)
    prompts, length, differ = 8, 15, 5
    if smoke:
        shape = dict(n_layers=2, d_model=32, n_ctx=16, n_heads=2, d_head=16, d_vocab=101, d_mlp=64)
        prompts, length, differ = 2, 6, 3
    model = ji.Model(config=ji.TransformerConfig(**shape, act_fn="gelu_new", tie_word_embeddings=True))
    rng = np.random.default_rng(0)
    base, source = rng.integers(0, shape["d_vocab"], (2, prompts, length)).astype(np.int32)
    source[:, :differ] = base[:, :differ]
    answers = rng.integers(0, shape["d_vocab"], (prompts, 2)).astype(np.int32)
    return Setup(model, jax.jit(model.init)(jax.random.key(0)), base, source, answers)


def all_cells(setup, axes):
    """[n, 3]: layer, head, position; -1 where the work has no such axis."""
    sizes = {"layer": setup.model.config.n_layers, "head": setup.model.config.n_heads, "position": setup.base.shape[1]}
    grid = np.meshgrid(*(np.arange(sizes[a]) if a in axes else [-1] for a in sizes), indexing="ij")
    return np.stack([g.reshape(-1) for g in grid], 1)


def by_layer(cells):
    """For each layer of `cells`: [(number of the cell, head, position), ...]."""
    found = {}
    for i, (layer, head, position) in enumerate(cells.tolist()):
        found.setdefault(layer, []).append((i, head, position))
    return sorted(found.items())


# ------------------------------------------------------------------------------------------- the four contestants
# Each is made once, and gives a function: cells [k, 3] -> logit differences [k, B], by one forward pass of k x B prompts.
def whole_forwards(setup, site, axes):
    """Our model, vmapped over cells, with logits of the answers at the last position only."""
    model, base = setup.model, jnp.asarray(setup.base)
    last, answers = jnp.asarray([[setup.base.shape[1] - 1]]), jnp.asarray(setup.answers)
    acts = jax.jit(lambda p, t: ji.run(model.forward, ji.capture(site))(p, t)[1][site])(setup.params, setup.source)

    @jax.jit
    def run_cells(params, acts, where):
        def one(where):
            edit = ji.place(ji.patch(site, per_layer=acts), **where)
            logits = ji.run(model.forward, edit)(params, base, read=last, answers=answers)[0][:, 0]
            return logits[:, 0] - logits[:, 1]

        return jax.vmap(one)(where)

    names = ("layer", "head", "position")
    return lambda cells: np.asarray(
        run_cells(
            setup.params,
            acts,
            {a: jnp.asarray(cells[:, i], jnp.int32) for i, a in enumerate(names) if a in axes},
        )
    )


def transformer_lens(setup, site, axes):
    """HookedTransformer with our weights; k cells are k repetitions of the prompts, each edited by a hook in its rows."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    c, (blocks,) = setup.model.config, setup.params["blocks"]
    names = ("n_layers", "d_model", "n_ctx", "n_heads", "d_head", "d_vocab", "d_mlp", "act_fn")
    config = HookedTransformerConfig(**{n: getattr(c, n) for n in names}, normalization_type="LN", seed=0, device="cpu")
    model = HookedTransformer(config).eval()
    tensor = lambda x: torch.tensor(np.asarray(x))
    state = {"embed.W_E": tensor(setup.params["embed"]["W_E"]), "unembed.b_U": torch.zeros(c.d_vocab)}
    state |= {"pos_embed.W_pos": tensor(setup.params["embed"]["W_pos"]), "unembed.W_U": state["embed.W_E"].T}
    state |= {f"ln_final.{n}": tensor(x) for n, x in setup.params["ln_final"].items()}
    for part, tensors in blocks.items():
        state |= {f"blocks.{i}.{part}.{n}": tensor(x[i]) for n, x in tensors.items() for i in range(c.n_layers)}
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    name = {"attn.z": "blocks.{}.attn.hook_z", "resid_pre": "blocks.{}.hook_resid_pre"}[site].format
    base, source = (torch.tensor(x).long() for x in (setup.base, setup.source))
    cache = model.run_with_cache(source, names_filter=[name(i) for i in range(c.n_layers)])[1]

    def hook(value, hook, edits):
        for i, head, position in edits:
            rows = slice(i * len(base), (i + 1) * len(base))
            where = (slice(None) if position < 0 else position,) + ((head,) if head >= 0 else ())
            value[(rows, *where)] = cache[hook.name][(slice(None), *where)]
        return value

    def forward(cells):
        hooks = [(name(layer), functools.partial(hook, edits=edits)) for layer, edits in by_layer(cells)]
        logits = model.run_with_hooks(base.repeat(len(cells), 1), fwd_hooks=hooks)
        return difference(logits[:, -1], setup.answers, len(cells))

    return forward


def hugging_face(setup):
    """GPT2LMHeadModel with our weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    c, (blocks,) = setup.model.config, setup.params["blocks"]
    config = GPT2Config(
        n_layer=c.n_layers, n_embd=c.d_model, n_head=c.n_heads, n_positions=c.n_ctx, vocab_size=c.d_vocab,
        n_inner=c.d_mlp, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    a, flat = blocks["attn"], lambda x: np.asarray(x).reshape(c.n_layers, -1)
    weights = [np.moveaxis(np.asarray(a[n]), 1, 2).reshape(c.n_layers, c.d_model, -1) for n in ("W_Q", "W_K", "W_V")]
    ours = {
        "attn.c_attn.weight": np.concatenate(weights, 2),
        "attn.c_attn.bias": np.concatenate([flat(a[n]) for n in ("b_Q", "b_K", "b_V")], 1),
        "attn.c_proj.weight": np.asarray(a["W_O"]).reshape(c.n_layers, -1, c.d_model), "attn.c_proj.bias": a["b_O"],
        "mlp.c_fc.weight": blocks["mlp"]["W_in"], "mlp.c_fc.bias": blocks["mlp"]["b_in"],
        "mlp.c_proj.weight": blocks["mlp"]["W_out"], "mlp.c_proj.bias": blocks["mlp"]["b_out"],
    }  # fmt: skip
    for ln in ("1", "2"):
        ours |= {f"ln_{ln}.weight": blocks[f"ln{ln}"]["w"], f"ln_{ln}.bias": blocks[f"ln{ln}"]["b"]}
    state = {f"transformer.h.{i}.{n}": x[i] for n, x in ours.items() for i in range(c.n_layers)}
    table, norm = setup.params["embed"], setup.params["ln_final"]
    state |= {"transformer.wte.weight": table["W_E"], "transformer.wpe.weight": table["W_pos"]}
    state |= {"transformer.ln_f.weight": norm["w"], "transformer.ln_f.bias": norm["b"], "lm_head.weight": table["W_E"]}
    model.load_state_dict({n: torch.tensor(np.asarray(x)) for n, x in state.items()})
    return model


def nnsight(setup, site, axes):
    """nnsight's trace of GPT2LMHeadModel; k cells are k repetitions of the prompts."""
    from nnsight import NNsight

    module = hugging_face(setup)
    base, source = (torch.tensor(x).long() for x in (setup.base, setup.source))
    acts, width, n = {}, setup.model.config.d_head, len(setup.base)
    of_layer = lambda h: h.attn.c_proj if site == "attn.z" else h
    kept = [
        of_layer(h).register_forward_pre_hook(lambda m, args, i=i: acts.update({i: args[0].clone()}))
        for i, h in enumerate(module.transformer.h)
    ]
    module(source, use_cache=False)
    for handle in kept:
        handle.remove()
    model = NNsight(module)

    def forward(cells):
        k, edits = len(cells), by_layer(cells)
        with model.trace(base.repeat(k, 1), use_cache=False):
            for layer, there in edits:
                value = of_layer(model.transformer.h[layer]).input
                for i, head, position in there:
                    rows = slice(None) if position < 0 else slice(position, position + 1)
                    features = slice(None) if head < 0 else slice(head * width, (head + 1) * width)
                    value[i * n : (i + 1) * n, rows, features] = acts[layer][:, rows, features]
            last = model.lm_head.output[:, -1].save()
        return difference(last, setup.answers, k)

    return forward


def difference(last, answers, k):
    """[k x B, V] at the last position to logit differences [k, B]."""
    ids = torch.tensor(answers).long().repeat(k, 1)
    taken = last.gather(1, ids)
    return (taken[:, 0] - taken[:, 1]).reshape(k, -1).numpy()


CONTESTANTS = {
    "TransformerLens": transformer_lens, "TransformerLens, one cell a pass": transformer_lens, "nnsight": nnsight,
    "our whole forwards": whole_forwards,
}  # fmt: skip
FIXED = {"TransformerLens, one cell a pass": 1}  # as its own patching functions do


# --------------------------------------------------------------------------------------------------------- timing
def seconds(function, *arguments):
    """Of one call."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def best_batch(forward, cells):
    """The number of cells in a forward pass that takes the least time for a cell; each is run once before it counts."""
    taken = {}
    for k in BATCHES:
        if k <= len(cells):
            forward(cells[:k])
            taken[k] = min(seconds(forward, cells[:k]) for _ in range(2)) / k
    return min(taken, key=lambda k: taken[k])


@jax.jit
def product(a, b):
    """A matrix product in float32."""
    return jnp.dot(a, b, precision="highest")


def matrix_peak(sizes=(1024, 2048)):
    """Floating-point operations a second of a large float32 matrix product, the best of some sizes."""
    found = []
    for n in sizes:
        a = jnp.ones((n, n), jnp.float32)
        jax.block_until_ready(product(a, a))
        found += [2 * n**3 / seconds(product, a, a) for _ in range(2)]
    return max(found)


def measure(setup, name, rounds, contestants, batches):
    """The figures of one work."""
    site, axes = WORKS[name]
    cells = all_cells(setup, axes)
    last = np.full(len(setup.base), setup.base.shape[1] - 1)
    how = dict(
        base=setup.base, source=setup.source, site=site, over=",".join(axes),
        metric=ji.patching.logit_difference(setup.answers[:, 0], setup.answers[:, 1], last),
    )  # fmt: skip
    sweep = lambda: ji.patching.sweep(setup.model, setup.params, **how, progress=False)
    plan = ji.patching.plan(setup.model, setup.params, **how)
    start = time.perf_counter()
    result = sweep()
    first_call = time.perf_counter() - start
    effects, baseline = result["effect"].transpose(*axes).values.reshape(-1), float(result["base"])
    forwards = {n: make(setup, site, axes) for n, make in contestants.items()}
    order = np.random.default_rng(1).permutation(len(cells))
    off = {}
    for n, forward in forwards.items():
        batches.setdefault(n, best_batch(forward, cells[order]))
        sample = order[: batches[n]]
        got = np.asarray(forward(cells[sample])).mean(1) - baseline
        off[n] = float(np.abs(got - effects[sample]).max() / np.abs(effects).max())
    taken = {n: [] for n in ("jaxinterp", *forwards)}
    peaks = []
    for i in range(rounds):
        taken["jaxinterp"].append(seconds(sweep))
        peaks.append(matrix_peak())
        for n, forward in forwards.items():
            k = batches[n]
            sample = cells[np.roll(order, -k * i)[:k]]
            taken[n].append(seconds(forward, sample) / k * len(cells))
    share = [plan.flops[1] / s / p for s, p in zip(taken["jaxinterp"], peaks, strict=True)]
    return {
        "cells": len(cells),
        "median_seconds": {n: round(statistics.median(s), 3) for n, s in taken.items()},
        "times faster than": {n: round(ratio(taken[n], taken["jaxinterp"]), 2) for n in forwards},
        "cells in a forward pass of the others": {n: batches[n] for n in forwards},
        "largest difference of effects, of the largest effect": {n: float(f"{x:.1e}") for n, x in off.items()},
        "first call, with compiling": round(first_call, 3),
        "operations": {"whole forwards": plan.flops[0], "plan": plan.flops[1]},
        "peak, GFLOP/s": round(statistics.median(peaks) / 1e9, 1),
        "share of the peak": round(statistics.median(share), 3),
    }


def ratio(a, b):
    """Median of the ratios of rounds."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def main():
    """Prints the figures and writes them beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--works", nargs="*", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--without", nargs="*", choices=list(CONTESTANTS), default=[], help="others to leave out")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and one round; writes only to a given --out")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if cores != 1 and not arguments.smoke:
        parser.error(f"pin this to one core (it has {cores}): taskset -c 0 python experiments/benchmarks/sweeps.py")
    torch.set_num_threads(1)
    setup = make_setup(arguments.smoke)
    prompts, length = setup.base.shape
    packages = ("jax", "torch", "transformer-lens", "nnsight", "transformers")
    contestants = {n: make for n, make in CONTESTANTS.items() if n not in arguments.without}
    result = {
        "work": f"activation patching, {'tiny' if arguments.smoke else 'GPT-2-small'} shape, random weights, "
        f"{prompts} x {length} tokens, float32, one core",
        "rounds": 1 if arguments.smoke else arguments.rounds,
        "versions": {p: importlib.metadata.version(p) for p in packages if p != "nnsight" or "nnsight" in contestants},
    }
    batches = dict(FIXED)  # a forward pass costs the same in every work
    with torch.inference_mode():
        for name in arguments.works:
            result[name] = measure(setup, name, result["rounds"], contestants, batches)
            print(name, json.dumps(result[name], indent=2), flush=True)
    out = arguments.out or (None if arguments.smoke else Path(__file__).with_suffix(".json"))
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
