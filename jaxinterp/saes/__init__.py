"""Sparse dictionaries: architectures, training on a mesh, evaluation, steering."""

from jaxinterp.saes._active import AuxK
from jaxinterp.saes._architecture import Architecture, Outcome, Training
from jaxinterp.saes._axes import Axes
from jaxinterp.saes._batch_topk import BatchTopK
from jaxinterp.saes._config import SAEConfig
from jaxinterp.saes._described import ARCHITECTURES, config_from, described
from jaxinterp.saes._files import load, save
from jaxinterp.saes._forms import FORMS
from jaxinterp.saes._gated import Gated
from jaxinterp.saes._jump_relu import JumpReLU
from jaxinterp.saes._matryoshka import Matryoshka
from jaxinterp.saes._metrics import read_metrics
from jaxinterp.saes._program import Program, make_program
from jaxinterp.saes._relu import ReLU
from jaxinterp.saes._sae import SAE, init
from jaxinterp.saes._source import Source
from jaxinterp.saes._sparse import SparseLatents, decode_active, encode_active
from jaxinterp.saes._splice import Spliced, splice
from jaxinterp.saes._topk import TopK
from jaxinterp.saes._train import Stream, train, train_ensemble
from jaxinterp.saes._train_config import TrainConfig

__all__ = [
    "ARCHITECTURES",
    "FORMS",
    "SAE",
    "Architecture",
    "AuxK",
    "Axes",
    "BatchTopK",
    "Gated",
    "JumpReLU",
    "Matryoshka",
    "Outcome",
    "Program",
    "ReLU",
    "SAEConfig",
    "Source",
    "SparseLatents",
    "Spliced",
    "Stream",
    "TopK",
    "TrainConfig",
    "Training",
    "config_from",
    "decode_active",
    "described",
    "encode_active",
    "init",
    "load",
    "make_program",
    "read_metrics",
    "save",
    "splice",
    "train",
    "train_ensemble",
]
