"""Array types and the axis letters, fixed once for the whole project.

B batch, T query position, S key position, D residual width, H query heads, K key/value heads, E head width,
F MLP width, V vocabulary, L layers, N latents.
"""

from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

Params = Any
"""A nested dictionary of arrays: the parameters of a model."""

PyTree = Any

ArrayLike = Array | np.ndarray
"""What a public function takes where it says array."""

__all__ = ["Array", "ArrayLike", "Bool", "Float", "Int", "PRNGKeyArray", "Params", "PyTree"]
