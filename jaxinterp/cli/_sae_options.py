"""Options that the commands on dictionaries share."""

import dataclasses
import json
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from jaxinterp import activations, saes
from jaxinterp._errors import InputError
from jaxinterp.cli._options import (
    ModelOptions,
    OptionalInteger,
    OptionalNumber,
    OptionalText,
    check_range,
    tokenizer_of,
)
from jaxinterp.cli._output import Output
from jaxinterp.saes import SAE
from jaxinterp.weights import LanguageModel

_ROWS_OF_TOKENS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextOptions:
    """What the model reads."""

    text: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """Text with a separator between documents; .jsonl with a text in each line; or .npy, token ids [documents, positions].
    Special tokens are left out; where the model has no tokenizer to name them, none is."""

    separator: str = "<|endoftext|>"
    """What stands between the documents of a text."""

    field: str = "text"
    """Of each line of a .jsonl file: where its text is."""

    n_ctx: OptionalInteger = None
    """How many tokens the model reads at once; longer documents are cut. (default: 128, or the model's context if shorter)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Where a dictionary lies, and what its files leave open."""

    subfolder: OptionalText = None
    """Where in the folder or repository it lies, such as layer_20/width_16k/average_l0_71."""

    dictionary_revision: OptionalText = None
    """Branch, tag or commit on the hub."""

    read_form: OptionalText = None
    """How its files are laid out: jaxinterp, saelens, gemma_scope, dictionary_learning, sparsify. (default: told by the files)"""

    site: OptionalText = None
    """The site that it reads, such as resid_post.3, where its files do not say it."""

    target: OptionalText = None
    """The site that a transcoder gives, where its files do not say it."""

    scale: OptionalNumber = None
    """What rows are multiplied by first, where its files ask for rows of a certain mean norm and do not say it."""


Dictionary = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DICTIONARY")]
TextArgs = Annotated[TextOptions, tyro.conf.arg(name="")]
FileArgs = Annotated[FileOptions, tyro.conf.arg(name="")]


def options_of(config: type, *without: str, **defaults: Any) -> Any:
    """A config's fields as options: a dataclass with its words about them, some fields left out, some defaults others.

    `fields_of` gives the values back.
    """
    hints = typing.get_type_hints(config, vars(sys.modules[config.__module__]))
    fields = [
        (field.name, hints[field.name], dataclasses.field(default=defaults.get(field.name, field.default)))
        for field in dataclasses.fields(config)
        if field.name not in without
    ]
    namespace = {"__doc__": config.__doc__}
    made = dataclasses.make_dataclass(config.__name__, fields, frozen=True, kw_only=True, namespace=namespace)
    return Annotated[made, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


def fields_of(options: Any) -> dict[str, Any]:
    """The values of a dataclass by name."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


def load_dictionary(dictionary: str, options: FileOptions, *, dtype: str | None = "float32") -> SAE:
    """The dictionary that was asked for."""
    return saes.load(
        dictionary, subfolder=options.subfolder, revision=options.dictionary_revision, form=options.read_form,
        dtype=dtype, site=options.site, target=options.target, scale=options.scale,
    )  # fmt: skip


def read_text(
    lm: LanguageModel, model: ModelOptions, options: TextOptions, *, seed: int, epochs: int | None
) -> activations.Tokens:
    """The text as batches of tokens, its documents in an order drawn from the seed."""
    check_range("--n-ctx", options.n_ctx, 2, lm.config.n_ctx)
    if options.text.suffix != ".npy" and options.text.is_file():
        tokenizer_of(lm, model)
    return activations.read_tokens(
        options.text, lm.tokenizer, n_ctx=options.n_ctx or min(128, lm.config.n_ctx), batch_size=_ROWS_OF_TOKENS,
        seed=seed, epochs=epochs, separator=options.separator, field=options.field,
    )  # fmt: skip


def special_ids(tokens: activations.Tokens) -> tuple[int, ...]:
    """The ids that are left out: none where there is no tokenizer to name them."""
    return tokens.special_ids or ()


def open_stream(
    lm: LanguageModel,
    tokens: activations.Tokens,
    sites: Sequence[str],
    *,
    batch_size: int,
    seed: int,
    buffer_size: int | None = None,
) -> activations.ActivationStream:
    """Rows of sites, in random order."""
    return activations.ActivationStream(
        lm.model, lm.params, tokens, list(dict.fromkeys(sites)), batch_size=batch_size, buffer_size=buffer_size,
        key=jax.random.key(seed), exclude=special_ids(tokens),
    )  # fmt: skip


def check_dictionary(sae: SAE, stream: activations.ActivationStream, model: str, output: Output) -> None:
    """Refuses a dictionary whose sites have another width in this model; notes if it was trained on another one."""
    config = sae.config
    faults = [
        f"{site!r} is {stream.widths[site]} wide in {model}, and the dictionary {verb} {width} numbers"
        for site, width, verb in ((config.site, config.d_in, "reads"), (config.target_site, config.width_out, "gives"))
        if stream.widths[site] != width
    ]
    if faults:
        raise InputError(
            f"This dictionary was not made for this model: {'; '.join(dict.fromkeys(faults))}. Give the model that it was "
            "trained on by --model, or another --site."
        )
    trained = {} if sae.source is None or sae.source.form != "jaxinterp" else sae.source.config
    parts = {
        "its model": lambda d: d["model"],
        "its tokenizer and BOS": lambda d: [d["tokens"]["tokenizer"], d["tokens"]["front"]],
    }
    for name, part in parts.items():
        if trained and part(trained["stream"]) != json.loads(json.dumps(part(stream.description))):
            output.note(f"warning: {name} in training ({trained['model']}) was another one than here.")


def dictionary_line(sae: SAE) -> str:
    """A dictionary in one line."""
    config = sae.config
    gives = "" if config.target is None else f", gives {config.target} ({config.width_out} wide)"
    return (
        f"{config.architecture.name} dictionary of {config.n_latents} latents: reads {config.site} ({config.d_in} wide){gives}, "
        f"normalize {config.normalize}"
    )
