"""`import jaxinterp` is cheap: at most half a second over `import jax`, and nothing heavy comes with it."""

import re
import subprocess
import sys

HEAVY = (
    "torch transformers flax optax orbax grain penzai treescope xarray pandas matplotlib plotly tokenizers safetensors "
    "huggingface_hub h5py h5netcdf rich tyro IPython beartype"
).split()


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, timeout=120)


def _seconds_over_jax() -> float:
    """What `-X importtime` gives for jaxinterp, its models and taps, which come with the first use of a name."""
    log = _python("-X", "importtime", "-c", "import jax; import jaxinterp; jaxinterp.run; jaxinterp.Model").stderr
    after = log[log.index("| jaxinterp\n") :]
    found = re.findall(r"^import time:\s*\d+ \|\s*(\d+) \| (\S+)$", log, re.MULTILINE)
    costs = [int(cost) for cost, name in found if name.startswith("jaxinterp")]
    assert "jaxinterp.models" in after, "models were not imported after jaxinterp:\n" + log[-2000:]
    return sum(costs) / 1e6


def test_import_costs_at_most_half_a_second_over_jax():
    seconds = min(_seconds_over_jax() for _ in range(3))
    assert seconds <= 0.5, (
        f"import jaxinterp took {seconds:.2f} s beyond import jax; look for a heavy module-level import"
    )


def test_import_brings_nothing_heavy():
    touched = "import sys, jax, jaxinterp; jaxinterp.run, jaxinterp.Model"
    script = f"{touched}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    assert _python("-c", script).stdout.split() == []
