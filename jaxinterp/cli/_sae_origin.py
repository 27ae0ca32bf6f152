"""What a dictionary was trained on, as its files say it, and whether that is what it is judged on."""

import dataclasses
import json
from typing import Annotated, Any

import tyro

from jaxinterp._errors import InputError
from jaxinterp.activations import ActivationStream
from jaxinterp.cli._options import ModelOptions, OptionalText, Policy, Precision
from jaxinterp.cli._output import Output
from jaxinterp.cli._sae_options import TextOptions
from jaxinterp.saes import SAE

_ALSO_CALLED = {"gpt2-small": "gpt2"}
"""Names of TransformerLens, which SAELens writes, that are not the end of the hub's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedModelOptions:
    """Which model, and how it is read; by default the one that the dictionary was trained on."""

    model: OptionalText = None
    """A checkpoint folder, a hub id, or a model that comes with jaxinterp. (default: the one that the dictionary was trained
    on, if `jaxinterp sae train` made it; else stories)"""

    revision: OptionalText = None
    """Branch, tag or commit of a model on the hub."""

    dtype: Precision = "float32"
    """Number format of the parameters."""

    bos: Policy = "auto"
    """Whether a BOS token is put in front of every prompt. auto follows the tokenizer's own files."""


TrainedModelArgs = Annotated[TrainedModelOptions, tyro.conf.OmitArgPrefixes]


def as_trained(sae: SAE, model: TrainedModelOptions, text: TextOptions) -> tuple[ModelOptions, TextOptions]:
    """The options with what was not given taken from the training, where `jaxinterp sae train` made the dictionary.

    Where another model is named, nothing is taken: its contexts and tokens are its own.
    """
    trained = _provenance(sae)
    same = bool(trained) and model.model in (None, trained["model"])
    name = model.model or (trained["model"] if trained else "stories")
    revision = trained.get("revision") if same and trained["revision"] != "none" else None
    options = ModelOptions(model=name, revision=model.revision or revision, dtype=model.dtype, bos=model.bos)
    if not same:
        return options, text
    stream = trained["stream"]
    excluded = stream.get("exclude", {}).get("tokens", ())
    return options, dataclasses.replace(
        text, n_ctx=text.n_ctx or stream["tokens"]["n_ctx"], exclude=text.exclude or tuple(excluded)
    )


def check_dictionary(sae: SAE, stream: ActivationStream, model: ModelOptions, output: Output) -> None:
    """Refuses a dictionary whose sites have another width in this model; notes if it was trained on another one."""
    config = sae.config
    faults = [
        f"{site!r} is {stream.widths[site]} wide in {model.model}, and the dictionary {verb} {width} numbers"
        for site, width, verb in ((config.site, config.d_in, "reads"), (config.target_site, config.width_out, "gives"))
        if stream.widths[site] != width
    ]
    if faults:
        raise InputError(
            f"This dictionary was not made for this model: {'; '.join(dict.fromkeys(faults))}. Give the model that it was "
            "trained on by --model, or another --site."
        )
    for fault in (*_against_training(_provenance(sae), stream, model), *_against_saelens(sae, model)):
        output.note(f"warning: {fault}")


def is_text_of_training(sae: SAE, stream: ActivationStream) -> bool:
    """Whether the stream reads the very documents that the dictionary was trained on, by number and checksum."""
    trained = _provenance(sae)
    source = lambda description: description["tokens"]["source"]
    return bool(trained) and source(trained["stream"]) == source(json.loads(json.dumps(stream.description)))


def _provenance(sae: SAE) -> dict[str, Any]:
    """What `jaxinterp sae train` wrote beside the dictionary; empty if another tool made it."""
    return {} if sae.source is None or sae.source.form != "jaxinterp" else sae.source.config


def _against_training(trained: dict[str, Any], stream: ActivationStream, model: ModelOptions) -> list[str]:
    if not trained:
        return []
    old, new = trained["stream"], json.loads(json.dumps(stream.description))
    faults = []
    if old["model"] != new["model"]:
        faults.append(f"its model in training ({trained['model']}) was another one than here ({model.model}).")
    elif old.get("params", new["params"]) != new["params"]:
        dtype = trained.get("dtype", model.dtype)
        faults.append(
            f"its model in training ({trained['model']}) had other weights than the one here ({model.model})."
            if dtype == model.dtype
            else f"its model in training ({trained['model']}) was read as {dtype}, and here ({model.model}) as {model.dtype}."
        )
    if any(old["tokens"][part] != new["tokens"][part] for part in ("tokenizer", "front")):
        faults.append(f"its tokenizer and BOS in training ({trained['model']}) were others than here ({model.model}).")
    return faults


def _against_saelens(sae: SAE, model: ModelOptions) -> list[str]:
    """Names alone: the files have no more."""
    if sae.source is None or sae.source.form != "saelens":
        return []
    said = sae.source.config
    name = (said.get("metadata") or {}).get("model_name") or said.get("model_name")
    if not name or _short(str(name)) == _short(model.model):
        return []
    return [f"its files name the model {name}, and it is read on {model.model}. All is well if that is the same model."]


def _short(name: str) -> str:
    """The last part of a hub id or path, in one spelling."""
    last = name.rstrip("/").rpartition("/")[2].lower()
    return _ALSO_CALLED.get(last, last)
