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
from jaxinterp.saes._directions import Ranked
from jaxinterp.saes._evaluate import Evaluation, evaluate
from jaxinterp.saes._files import load, save
from jaxinterp.saes._forms import FORMS
from jaxinterp.saes._gated import Gated
from jaxinterp.saes._jump_relu import JumpReLU
from jaxinterp.saes._latents import Contexts, LatentDescriptions, describe_latents
from jaxinterp.saes._loss_recovered import LossRecovered, loss_recovered
from jaxinterp.saes._matryoshka import Matryoshka
from jaxinterp.saes._metrics import read_metrics
from jaxinterp.saes._predicates import Predicates, TokenCounts, count_tokens, predicates
from jaxinterp.saes._probes import SparseProbes, sparse_probes
from jaxinterp.saes._program import Program, make_program
from jaxinterp.saes._recovery import Recovery, amplitude_ratio, recovery
from jaxinterp.saes._relu import ReLU
from jaxinterp.saes._run_folder import load_run
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
    "AblationEffects",
    "Absorption",
    "Architecture",
    "AuxK",
    "Axes",
    "BatchTopK",
    "Contexts",
    "Evaluation",
    "Gated",
    "JumpReLU",
    "LatentDescriptions",
    "LossRecovered",
    "Matryoshka",
    "Outcome",
    "Predicates",
    "Program",
    "Ranked",
    "ReLU",
    "Recovery",
    "SAEConfig",
    "Source",
    "SparseLatents",
    "SparseProbes",
    "Spliced",
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
    "describe_latents",
    "described",
    "encode_active",
    "evaluate",
    "init",
    "load",
    "load_run",
    "loss_recovered",
    "make_program",
    "predicates",
    "random_dictionary",
    "random_weights",
    "read_metrics",
    "recovery",
    "save",
    "sparse_probes",
    "splice",
    "train",
    "train_ensemble",
]
