"""A run whose process is killed at a random moment, again and again, ends with the bits of one that nobody disturbed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxinterp.store import Checkpoints

KILLS = int(os.environ.get("JAXINTERP_KILLS", "2"))
SCRIPT = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jaxinterp import activations, saes
from tests.tiny import make_model, make_params

model = make_model(n_ctx=16)
texts = np.random.default_rng(0).integers(0, 11, (300, 12)).astype(np.int32)
tokens = activations.read_tokens(texts, n_ctx=12, batch_size=8, seed=0, epochs=None)
stream = activations.ActivationStream(
    model, make_params(model), tokens, [("resid_post", 1)], batch_size=32, buffer_size=400, key=jax.random.key(0),
    exclude=(),
)
sae = saes.SAEConfig(architecture=saes.BatchTopK(k=2), d_in=8, n_latents=24, site="resid_post.1", normalize="sqrt_d")
config = saes.TrainConfig(
    sae=sae, steps=150, learning_rate=1e-2, warmup_steps=10, dead_after=500, log_every=10, checkpoint_every=3
)
print("start", flush=True)
trained = saes.train(config, stream, folder=sys.argv[1], progress=False)
np.savez(sys.argv[2], **trained.params, **{"scale_" + name: leaf for name, leaf in trained.scales.items()})
"""


def begin(folder, out):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(out)], env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]


def steps_in(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdigit())


def wait_for_more(process, folder):
    """Until a checkpoint is there that was not there before."""
    before = steps_in(folder)
    while steps_in(folder) == before and process.poll() is None:
        time.sleep(0.01)


@pytest.mark.slow
def test_sigkill_and_sigterm(tmp_path):
    whole = begin(tmp_path / "whole", tmp_path / "whole.npz")
    draw, folder = random.Random(), tmp_path / "killed"
    for signal_sent in [signal.SIGKILL] * KILLS + [signal.SIGTERM]:
        process = begin(folder, tmp_path / "killed.npz")
        wait_for_more(process, folder)
        time.sleep(draw.uniform(0, 0.3))
        process.send_signal(signal_sent)
        process.communicate(timeout=60)
        if process.returncode == 0:
            break  # it was done before the signal came
        assert process.returncode == -signal_sent
        with Checkpoints(folder / "checkpoints") as checkpoints:  # no half-written state under a step's name
            assert checkpoints.steps == steps_in(folder)
            for step in checkpoints.steps:
                assert checkpoints.records(step)
    finish(begin(folder, tmp_path / "killed.npz"))
    finish(whole)
    with np.load(tmp_path / "whole.npz") as want, np.load(tmp_path / "killed.npz") as got:
        assert set(want) == set(got) and len(want.files) > 5
        for name in want:
            np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    assert steps_in(folder)[-1] == 150
