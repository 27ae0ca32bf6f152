"""One training step of a TopK dictionary: width 768, 16,384 latents, k 32, 2,048 rows, float32, Adam, on one core.

Ours against SAELens's training step and against the same loss written densely in JAX, called turn by turn in one process. With
`--memory` the peak of resident memory instead, each in a process of its own.

    make parity            # makes .venv-parity
    taskset -c 0 .venv-parity/bin/python experiments/benchmarks/dictionary_step.py
    taskset -c 0 .venv-parity/bin/python experiments/benchmarks/dictionary_step.py --memory
"""

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinterp import saes

WIDTH, LATENTS, K, ROWS = 768, 16_384, 32, 2_048
RATE = 1e-4


def rows(i):
    """The same rows for all: sums of a few of 4,096 directions, as numpy has them."""
    rng = np.random.default_rng(i)
    directions = np.random.default_rng(0).normal(size=(4096, WIDTH)).astype(np.float32)
    chosen = rng.integers(0, 4096, (ROWS, 8))
    return np.einsum("bk,bkd->bd", rng.exponential(size=(ROWS, 8)).astype(np.float32), directions[chosen]).astype(
        np.float32
    )


def ours(batches):
    """`jaxinterp.saes.train`, a step at a time: a generator that trains one step whenever it is asked."""
    config = saes.TrainConfig(
        sae=saes.SAEConfig(architecture=saes.TopK(k=K), d_in=WIDTH, n_latents=LATENTS), steps=10**6, learning_rate=RATE, clip=1.0
    )  # fmt: skip
    program = saes.make_program([config])
    state, turn = None, itertools.cycle(batches)

    def step():
        nonlocal state
        x = jnp.asarray(next(turn))
        state = program.first(x, x) if state is None else state
        state, metrics = program.step(state, x, x)
        return jax.block_until_ready((state, metrics))[1]["fvu"]

    return step


def dense(batches):
    """The same loss and update with all latents in every product."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(RATE))
    decoder = jax.random.normal(jax.random.key(0), (LATENTS, WIDTH))
    decoder /= jnp.linalg.norm(decoder, axis=1, keepdims=True)
    params = {"W_enc": decoder, "b_enc": jnp.zeros(LATENTS), "W_dec": jnp.array(decoder), "b_dec": jnp.zeros(WIDTH)}

    def loss(p, x):
        z = (x - p["b_dec"]) @ p["W_enc"].T + p["b_enc"]
        values, indices = jax.lax.top_k(z, K)
        f = jnp.zeros_like(z).at[jnp.arange(ROWS)[:, None], indices].set(jnp.maximum(values, 0))
        return jnp.sum((f @ p["W_dec"] + p["b_dec"] - x) ** 2) / jnp.sum((x - x.mean(0)) ** 2)

    @jax.jit
    def update(p, s, x):
        value, g = jax.value_and_grad(loss)(p, x)
        w = p["W_dec"]
        g["W_dec"] -= jnp.sum(g["W_dec"] * w, 1, keepdims=True) * w
        change, s = optimizer.update(g, s, p)
        p = optax.apply_updates(p, change)
        return {**p, "W_dec": p["W_dec"] / jnp.linalg.norm(p["W_dec"], axis=1, keepdims=True)}, s, value

    update = jax.jit(update, donate_argnums=(0, 1))
    state, turn = (params, optimizer.init(params)), itertools.cycle(batches)

    def step():
        nonlocal state
        *state, value = jax.block_until_ready(update(*state, jnp.asarray(next(turn))))
        return value

    return step


def sae_lens(batches):
    """SAELens's trainer, a step at a time; its sparse option is slower here."""
    import torch
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.set_num_threads(1)
    config = SAETrainerConfig(
        n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=10**9, device="cpu",
        autocast=False, lr=RATE, lr_end=RATE, lr_scheduler_name="constant", lr_warm_up_steps=0, lr_decay_steps=0,
        n_restart_cycles=1, train_batch_size_samples=ROWS, dead_feature_window=10_000, feature_sampling_window=20_000,
        logger=LoggingConfig(log_to_wandb=False), adam_beta1=0.9, adam_beta2=0.999,
    )  # fmt: skip
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=WIDTH, d_sae=LATENTS, k=K))
    tensors = [torch.tensor(batch) for batch in batches]
    trainer, turn = SAETrainer(cfg=config, sae=sae, data_provider=iter(())), itertools.cycle(tensors)

    def step():
        trainer.n_training_steps += 1
        return trainer.step(next(turn)).loss.item()

    return step


MAKERS = {"jaxinterp": ours, "jaxinterp's loss, dense": dense, "SAELens": sae_lens}


def turns(calls, n):
    """Seconds of each call, n rounds turn by turn after two that do not count."""
    seconds = {name: [] for name in calls}
    for i in range(n + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak(name):
    """The peak resident memory of a process that takes four steps, in bytes."""
    step = MAKERS[name]([rows(i) for i in range(2)])
    for _ in range(4):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    """Prints medians and ratios, and adds them to the result beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("dictionary_step.json"))
    arguments = parser.parse_args()
    if arguments.peak_of:
        print(json.dumps(peak(arguments.peak_of)))
        return
    result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    result["work"] = (
        f"TopK training step, width {WIDTH}, {LATENTS} latents, k {K}, {ROWS} rows, float32, Adam, one core"
    )
    if arguments.memory:
        for name in MAKERS:
            command = [sys.executable, __file__, "--peak-of", name]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            result.setdefault("peak_bytes", {})[name] = json.loads(out.splitlines()[-1])
        result["peak memory, ours / SAELens"] = round(
            result["peak_bytes"]["jaxinterp"] / result["peak_bytes"]["SAELens"], 2
        )
    else:
        batches = [rows(i) for i in range(3)]
        seconds = turns({name: make(batches) for name, make in MAKERS.items()}, arguments.rounds)
        result["rounds"] = arguments.rounds
        result["median_seconds"] = {name: round(statistics.median(s), 3) for name, s in seconds.items()}
        for other in ("SAELens", "jaxinterp's loss, dense"):
            ratio = statistics.median(a / b for a, b in zip(seconds[other], seconds["jaxinterp"], strict=True))
            result[f"{other} / ours"] = round(ratio, 2)
    print(json.dumps(result, indent=2))
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
