"""One forward pass, GPT-2-small's shape with random weights, 8 prompts x 15 tokens, float32, on one core.

Ours against TransformerLens 3.x and Hugging Face, called turn by turn in one process; and what capturing one site adds.

    make parity            # makes .venv-parity
    taskset -c 0 .venv-parity/bin/python experiments/benchmarks/forward.py
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import numpy as np
import torch

import jaxinterp as ji

PROMPTS, LENGTH = 8, 15


def ours(tokens):
    """(plain forward, forward that captures attn.z), each a function without arguments."""
    config = ji.TransformerConfig(
        n_layers=12, d_model=768, n_ctx=1024, n_heads=12, d_head=64, d_vocab=50257, d_mlp=3072, act_fn="gelu_new",
        tie_word_embeddings=True,
    )  # fmt: skip
    model = ji.Model(config=config)
    params = jax.jit(model.init)(jax.random.key(0))
    plain = jax.jit(model.forward)
    capture = jax.jit(lambda p, t: ji.run(model.forward, ji.capture("attn.z"))(p, t)[:2])
    ids = jax.numpy.asarray(tokens)
    return lambda: jax.block_until_ready(plain(params, ids)), lambda: jax.block_until_ready(capture(params, ids))


def transformer_lens(tokens):
    """TransformerLens's HookedTransformer of the same shape."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=12, d_model=768, n_ctx=1024, n_heads=12, d_head=64, d_vocab=50257, d_mlp=3072, act_fn="gelu_new",
        normalization_type="LN", seed=0, device="cpu",
    )  # fmt: skip
    model, ids = HookedTransformer(config).eval(), torch.tensor(tokens)
    return lambda: model(ids)


def hugging_face(tokens):
    """Hugging Face's GPT2LMHeadModel."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model, ids = GPT2LMHeadModel(GPT2Config()).eval(), torch.tensor(tokens)
    return lambda: model(ids, use_cache=False).logits


def rounds(calls, n):
    """Seconds of each call, n rounds turn by turn after two that do not count."""
    seconds = {name: [] for name in calls}
    for i in range(n + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main():
    """Prints medians and ratios, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("forward.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokens = np.random.default_rng(0).integers(0, 50257, (PROMPTS, LENGTH)).astype(np.int32)
    plain, capture = ours(tokens)
    calls = {
        "jaxinterp": plain,
        "jaxinterp, capturing attn.z": capture,
        "TransformerLens": transformer_lens(tokens.astype(np.int64)),
        "Hugging Face": hugging_face(tokens.astype(np.int64)),
    }
    with torch.inference_mode():
        seconds = rounds(calls, arguments.rounds)

    def ratio(a, b):
        return statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))

    result = {
        "work": f"forward, GPT-2-small shape, random weights, {PROMPTS} x {LENGTH} tokens, float32, one core",
        "rounds": arguments.rounds,
        "median_seconds": {name: round(statistics.median(s), 4) for name, s in seconds.items()},
        "ours / TransformerLens": round(ratio("jaxinterp", "TransformerLens"), 3),
        "ours / Hugging Face": round(ratio("jaxinterp", "Hugging Face"), 3),
        "with capture / without": round(ratio("jaxinterp, capturing attn.z", "jaxinterp"), 3),
    }
    print(json.dumps(result, indent=2))
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
