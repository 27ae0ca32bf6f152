"""Activations of a model as batches of rows, for training dictionaries: harvested, shuffled on the mesh, kept on a disk.

The data flow of an `ActivationStream`:

    documents -> grain's threads tokenize and cut them into pieces -> pieces packed into rows of tokens [B, T]      (host)
    tokens -> one forward pass, cut over the mesh's `data` axis -> rows of each site [B * T, width]                 (devices)
    rows that are kept -> appended in place to the pool; full: permutation, all-to-all in equal blocks, permutation
    pool -> batches as slices of it, until half of it is used; then it is filled up and shuffled again
"""

from jaxinterp.activations._arrays import DrawnStream, from_arrays, from_function
from jaxinterp.activations._packing import TokenBatch
from jaxinterp.activations._stored import stored_activations
from jaxinterp.activations._stream import ActivationStream
from jaxinterp.activations._tokens import Tokens, read_tokens
from jaxinterp.activations._write import write_activations

__all__ = [
    "ActivationStream",
    "DrawnStream",
    "TokenBatch",
    "Tokens",
    "from_arrays",
    "from_function",
    "read_tokens",
    "stored_activations",
    "write_activations",
]
