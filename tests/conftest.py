"""Settings and fixtures of every test.

Before JAX starts, the session is put on eight forced CPU devices; then dtype promotion is made strict and rank
promotion an error, and every shape annotation of `jaxinterp` is checked by beartype (in tests only). Warnings are
errors (`pyproject.toml`).

Fixtures:
    shared: `Path` of the data folder beside the project (`../shared/data`); skips the test where it is absent.
    bfloat16_products: skips the test where XLA's CPU backend cannot multiply bfloat16 into float32.
    count_compiles: a context manager that counts what XLA compiled inside it.
    drop_programs: for every module; keeps the memory of a test process small.

Counting compiles::

    def test_a_traced_layer_never_recompiles(count_compiles):
        f = jax.jit(lambda layer: ...)
        with count_compiles() as warm:
            f(jnp.int32(0))
        assert warm.count("<lambda>") == 1
        with count_compiles() as again:
            f(jnp.int32(1))                 # also make the argument outside if it must not count
        assert again.names == []

`names` lists every compiled program in order, eager operations such as `jnp.zeros` included (they are compiled
once for each shape in a session, so warm them up or count by name); `count(name)` counts those of one function:
the name that `jax.jit` was given.
"""

import atexit
import contextlib
import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

if "jax" in sys.modules:
    raise RuntimeError(
        "jax was imported before tests/conftest.py could force eight devices: run pytest from the project's root"
    )

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of a test's time is compiling, and without its fusion emitters XLA's CPU backend compiles three times faster. Users have
# them: JAXINTERP_XLA=user runs the tests with theirs (`make properties` and `make parity` do).
os.environ["XLA_FLAGS"] = " ".join(
    [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in flag]
    + ["--xla_force_host_platform_device_count=8"]
    + ["--xla_cpu_use_fusion_emitters=false"] * (os.environ.get("JAXINTERP_XLA") != "user")
)
# What one process of a session has compiled, no other compiles again: workers and the processes that tests start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxinterp-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for a network

import jax
import jax.monitoring
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# LLVM's expensive passes are left out too (XLA's own optimizations of the program stay).
jax.config.update("jax_disable_most_optimizations", True)

install_import_hook("jaxinterp", "beartype.beartype")

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_compiled: list[str] = []


def _on_duration(event: str, seconds: float, **details: str | int) -> None:
    if event == _COMPILE_EVENT:
        _compiled.append(str(details.get("fun_name", "")))


jax.monitoring.register_event_duration_secs_listener(_on_duration)


@dataclasses.dataclass
class Compiles:
    """What was compiled: program names in order (`jit_f` and `jit(f)` are both written `f`)."""

    names: list[str] = dataclasses.field(default_factory=list)

    def count(self, name: str | None = None) -> int:
        """Number of compiled programs, or of those made from the function called `name`."""
        return len(self.names) if name is None else self.names.count(name)


def _function_name(program: str) -> str:
    if program.startswith("jit(") and program.endswith(")"):
        return program[4:-1]
    return program.removeprefix("jit_")


@contextlib.contextmanager
def _count_compiles() -> Iterator[Compiles]:
    start, result = len(_compiled), Compiles()
    try:
        yield result
    finally:
        result.names = [_function_name(program) for program in _compiled[start:]]


@pytest.fixture
def count_compiles() -> Callable[[], contextlib.AbstractContextManager[Compiles]]:
    """`with count_compiles() as compiles: ...`, then `compiles.names` and `compiles.count("f")`."""
    return _count_compiles


MUCH = 2**30
"""Bytes of a test process from which on compiled programs are dropped."""


@pytest.fixture(scope="module", autouse=True)
def drop_programs() -> Iterator[None]:
    """Between modules, which hardly share compiled programs: kept, those of all tests are 5 GB a process."""
    yield
    memory = Path("/proc/self/statm")  # where there is none (not Linux), nothing is dropped
    if memory.exists() and int(memory.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > MUCH:
        jax.clear_caches()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data folder beside the project."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the data folder beside the project is absent ({folder})")
    return folder


@pytest.fixture(scope="session")
def bfloat16_products() -> None:
    """Skips where XLA cannot multiply bfloat16 into float32 on a CPU (jax 0.7); TPUs and GPUs always can."""
    ones = lambda *shape: jax.numpy.ones(shape, jax.numpy.bfloat16)
    product = lambda a, b: jax.numpy.einsum("btd,vd->btv", a, b, preferred_element_type=jax.numpy.float32)
    try:
        jax.jit(product)(ones(2, 5, 16), ones(11, 16)).block_until_ready()
    except jax.errors.JaxRuntimeError as error:
        pytest.skip(f"this XLA has no bfloat16 product into float32 on a CPU: {error}")
