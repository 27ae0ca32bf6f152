"""Training small models: a loss, an optimizer, one pure step and a loop over it."""

from jaxinterp.training._dropout import dropout
from jaxinterp.training._loop import fit
from jaxinterp.training._loss import next_token_loss, token_nats
from jaxinterp.training._optimizer import adamw, warmup_cosine
from jaxinterp.training._step import Loss, TrainState, init_state, train_step

__all__ = [
    "Loss",
    "TrainState",
    "adamw",
    "dropout",
    "fit",
    "init_state",
    "next_token_loss",
    "token_nats",
    "train_step",
    "warmup_cosine",
]
