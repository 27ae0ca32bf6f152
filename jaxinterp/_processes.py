"""Agreement between the processes that are one JAX."""

import jax
import numpy as np


def from_all(text: str) -> list[str]:
    """The texts of all processes, by their number, in every process; all must call it, and none goes on before all did.

    Example:
        >>> from_all("process 0 is well")
        ['process 0 is well']
    """
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils

    content = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(content), np.int32))
    padded = np.zeros(max(1, int(sizes.max())), np.uint8)
    padded[: len(content)] = content
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes().decode() for row, size in zip(np.asarray(rows), sizes.tolist(), strict=True)]
