"""Compiled programs are kept on disk, so that a command that is run again starts at once."""

import os
from pathlib import Path


def keep_compiled_programs() -> None:
    """Turns on JAX's persistent compilation cache, unless the user has set one up.

    It lies in jaxinterp/compiled under XDG_CACHE_HOME (by default ~/.cache). JAX_COMPILATION_CACHE_DIR names another
    folder; JAX_ENABLE_COMPILATION_CACHE=false turns it off. A folder that can not be written is not an error.
    """
    import jax

    if getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxinterp" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
