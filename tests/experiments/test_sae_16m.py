"""The calculation of a dictionary of 16 M latents, at small size: on 512 devices, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_calculation_runs_at_small_size():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "experiments.sae_16m.run", "--smoke"]
    out = subprocess.run(
        command, cwd=Path(__file__).resolve().parents[2], env=environment, check=True, capture_output=True, text=True
    ).stdout
    rows = [line for line in out.splitlines() if line.startswith("| data=")]
    assert [line.split("|")[1].strip() for line in rows] == ["data=8, dict=64"]
    assert all("all-gather" in line and "all-reduce" in line for line in rows)
