"""Sparse dictionaries: architectures, training on a mesh, evaluation, steering."""

from jaxinterp.saes._ablation import AblationEffects, ablation_effects
from jaxinterp.saes._absorption import Absorption, absorption
from jaxinterp.saes._active import AuxK
from jaxinterp.saes._architecture import Architecture, Outcome, Training
from jaxinterp.saes._axes import Axes
from jaxinterp.saes._batch_topk import BatchTopK
from jaxinterp.saes._config import SAEConfig
from jaxinterp.saes._controls import random_dictionary, random_weights
from jaxinterp.saes._described import ARCHITECTURES, config_from, described
from jaxinterp.saes._evaluate import Evaluation, evaluate
from jaxinterp.saes._gated import Gated
from jaxinterp.saes._jump_relu import JumpReLU
from jaxinterp.saes._loss_recovered import LossRecovered, loss_recovered
from jaxinterp.saes._matryoshka import Matryoshka
from jaxinterp.saes._metrics import read_metrics
from jaxinterp.saes._predicates import Predicates, TokenCounts, count_tokens, predicates
from jaxinterp.saes._probes import SparseProbes, sparse_probes
from jaxinterp.saes._recovery import Recovery, amplitude_ratio, recovery
from jaxinterp.saes._relu import ReLU
from jaxinterp.saes._sae import SAE
from jaxinterp.saes._sparse import SparseLatents, decode_active, encode_active
from jaxinterp.saes._topk import TopK
from jaxinterp.saes._train import Stream, train, train_ensemble
from jaxinterp.saes._train_config import TrainConfig

__all__ = [
    "ARCHITECTURES",
    "SAE",
    "AblationEffects",
    "Absorption",
    "Architecture",
    "AuxK",
    "Axes",
    "BatchTopK",
    "Evaluation",
    "Gated",
    "JumpReLU",
    "LossRecovered",
    "Matryoshka",
    "Outcome",
    "Predicates",
    "ReLU",
    "Recovery",
    "SAEConfig",
    "SparseLatents",
    "SparseProbes",
    "Stream",
    "TokenCounts",
    "TopK",
    "TrainConfig",
    "Training",
    "ablation_effects",
    "absorption",
    "amplitude_ratio",
    "config_from",
    "count_tokens",
    "decode_active",
    "described",
    "encode_active",
    "evaluate",
    "loss_recovered",
    "predicates",
    "random_dictionary",
    "random_weights",
    "read_metrics",
    "recovery",
    "sparse_probes",
    "train",
    "train_ensemble",
]
