"""Options that several commands share."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxinterp import zoo
from jaxinterp._errors import InputError, MissingFileError
from jaxinterp.weights import LanguageModel, Tokenizer, load

OptionalText = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
OptionalInteger = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
OptionalNumber = Annotated[float | None, tyro.conf.arg(metavar="NUMBER", help_behavior_hint="")]
Texts = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT ...", help_behavior_hint="")]
Indices = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...", help_behavior_hint="(default: all)")]
Precision = Literal["float32", "bfloat16", "float16"]
Policy = Literal["auto", "yes", "no"]
_MODELS = (
    "a checkpoint folder with config.json and safetensors, a hub id (openai-community/gpt2), or a model that comes with "
    f"jaxinterp: {', '.join(zoo.names())}"
)
ModelName = Annotated[str, tyro.conf.arg(metavar="MODEL", help=f"{_MODELS[0].upper()}{_MODELS[1:]}.")]
Prompt = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it is read."""

    model: ModelName = "stories"

    revision: OptionalText = None
    """Branch, tag or commit of a model on the hub."""

    dtype: Precision = "float32"
    """Number format of the parameters."""

    bos: Policy = "auto"
    """Whether a BOS token is put in front of every prompt. auto follows the tokenizer's own files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """How the result is printed."""

    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print one JSON object instead of text; errors too, as {"error": ...}."""


ModelArgs = Annotated[ModelOptions, tyro.conf.OmitArgPrefixes]
OutputArgs = Annotated[OutputOptions, tyro.conf.OmitArgPrefixes]

_POLICY: dict[str, bool | None] = {"auto": None, "yes": True, "no": False}


class HintedError(Exception):
    """A user's mistake with a hint of its own."""

    def __init__(self, error: Exception, hint: str):
        super().__init__(str(error))
        self.error = error
        self.hint = hint


def load_model(options: ModelOptions) -> LanguageModel:
    """The model that was asked for, with the BOS policy that was asked for."""
    shipped = options.model in zoo.names()
    if shipped and options.revision is not None:
        raise InputError(f"{options.model} comes with jaxinterp and has no revisions. Leave --revision out.")
    place = zoo.path(options.model) if shipped else options.model
    try:
        return load(place, dtype=options.dtype, revision=options.revision, prepend_bos=_POLICY[options.bos])
    except MissingFileError as error:
        raise HintedError(error, f"--model takes {_MODELS}.") from error


def tokenizer_of(lm: LanguageModel, options: ModelOptions) -> Tokenizer:
    """The model's tokenizer, for the commands that read text."""
    if lm.tokenizer is None:
        raise InputError(
            f"the model {options.model} has no tokenizer: it reads token ids, and this command reads text. Choose another "
            "model, or use jaxinterp on ids in Python."
        )
    return lm.tokenizer


def check_range(option: str, value: float | int | None, low: float | int, high: float | int = math.inf) -> None:
    """Refuses the value of an option outside `low` to `high`; None is an option that was not given."""
    if value is None or (low <= value <= high and math.isfinite(value)):
        return
    legal = f"at least {low}" if high == math.inf else f"from {low} to {high}"
    raise InputError(f"{option} {value} is not legal: give a number {legal}.")


def bos_policy(lm: LanguageModel) -> str:
    """The policy in words."""
    if lm.tokenizer is None:
        return "no tokenizer"
    if not lm.tokenizer.prepend_bos:
        return "BOS is not prepended"
    assert lm.tokenizer.bos_id is not None
    return f"BOS {lm.tokenizer.str_tokens([lm.tokenizer.bos_id])[0]!r} is prepended"


def headline(lm: LanguageModel, options: ModelOptions) -> str:
    """The model in one line: name, revision, size, BOS policy."""
    c = lm.config
    revision = f" at {lm.source['revision']}" if lm.source.get("revision") else ""
    return f"{options.model}{revision}: {c.n_layers} layers, {c.n_heads} heads, d_model {c.d_model}; {bos_policy(lm)}"


def provenance(lm: LanguageModel, options: ModelOptions, command: str) -> dict[str, Any]:
    """What is kept with every result: model, revision, BOS policy, number format, time, command."""
    import datetime

    return {
        "model": options.model,
        "revision": lm.source.get("revision") or "none",
        "family": lm.source.get("family"),
        "dtype": options.dtype,
        "prepend_bos": lm.tokenizer is not None and lm.tokenizer.prepend_bos,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
    }


def model_facts(lm: LanguageModel, options: ModelOptions) -> dict[str, Any]:
    """The same, for a command's JSON."""
    facts = provenance(lm, options, "")
    facts["revision"] = lm.source.get("revision")
    return {key: facts[key] for key in ("model", "revision", "family", "dtype", "prepend_bos")}
