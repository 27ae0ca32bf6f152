"""Two real processes that are one JAX."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def run_two(code, *more):
    """The outputs of two processes with four devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_cpu_use_fusion_emitters=false",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    start = lambda i: subprocess.Popen(
        [sys.executable, "-c", code, str(i), f"localhost:{port}", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    processes = [start(i) for i in range(2)]
    try:
        outputs = [p.communicate(timeout=120) for p in processes]
    finally:
        for p in processes:
            p.kill()
    for p, (_, errors) in zip(processes, outputs, strict=True):
        if p.returncode and ("not compiled with gloo" in errors.lower() or "gloo is not available" in errors.lower()):
            pytest.skip("this jaxlib has no gloo, through which CPU processes talk")
        assert p.returncode == 0, errors[-3000:]
    return [out for out, _ in outputs]


def result_of(output):
    """What a process printed as JSON behind RESULT, wherever that stands: gloo writes to the same stream."""
    return json.JSONDecoder().raw_decode(output[output.index("RESULT") + len("RESULT") :])[0]
