"""Options that the commands on dictionaries share."""

import dataclasses
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
from jaxinterp.tap import site_of_hook
from jaxinterp.weights import LanguageModel

_ROWS_OF_TOKENS = 16
_UNNAMED = ("x", "y")
"""What `saes.load` calls sites that the files do not name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextOptions:
    """What the model reads."""

    text: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """Text with a separator between documents; .jsonl with a text in each line; or .npy, token ids [documents, positions]."""

    separator: str = "<|endoftext|>"
    """What stands between the documents of a text."""

    field: str = "text"
    """Of each line of a .jsonl file: where its text is."""

    n_ctx: OptionalInteger = None
    """How many tokens the model reads at once; longer documents are cut. (default: what the dictionary was trained with, if
    this command made it; else 128, or the model's context if shorter)"""

    exclude: Annotated[tuple[int, ...], tyro.conf.arg(metavar="ID ...", help_behavior_hint="")] = ()
    """Token ids whose rows are left out. (default: the tokenizer's special tokens; where the model has none, none, or those
    that were left out in training)"""


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
    """The site that it reads, such as resid_post.3, where its files do not say it, or say it wrongly."""

    target: OptionalText = None
    """The site that a transcoder gives, likewise."""

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


def load_dictionary(dictionary: str, options: FileOptions, output: Output, *, dtype: str | None = "float32") -> SAE:
    """The dictionary that was asked for; notes where an option says another site than its files."""
    sae = saes.load(
        dictionary, subfolder=options.subfolder, revision=options.dictionary_revision, form=options.read_form,
        dtype=dtype, scale=options.scale,
    )  # fmt: skip
    config = sae.config
    if options.target is not None and config.target is None:
        raise InputError(
            f"--target {options.target}, but this dictionary is no transcoder: it gives what it reads. Leave --target out."
        )
    named = {key: value for key in ("site", "target") if (value := getattr(options, key)) is not None}
    given = {key: site_of_hook(value) or value for key, value in named.items()}
    for key, value in given.items():
        said = getattr(config, key)
        if said not in (value, *_UNNAMED):
            output.note(f"warning: --{key} {value} is taken, and the files of {dictionary} say {said}.")
    return dataclasses.replace(sae, config=dataclasses.replace(config, **given))


def read_text(
    lm: LanguageModel, model: ModelOptions, options: TextOptions, *, seed: int, epochs: int | None
) -> activations.Tokens:
    """The text as batches of tokens, its documents in an order drawn from the seed."""
    check_range("--n-ctx", options.n_ctx, 2, lm.config.n_ctx)
    for token in options.exclude:
        check_range("--exclude", token, 0, lm.config.d_vocab - 1)
    if options.text.is_dir():
        raise InputError(f"--text {options.text} is a folder: give one file, .npy (token ids), .jsonl, or text.")
    if options.text.suffix != ".npy" and options.text.is_file():
        tokenizer_of(lm, model)
    return activations.read_tokens(
        options.text, lm.tokenizer, n_ctx=options.n_ctx or min(128, lm.config.n_ctx), batch_size=_ROWS_OF_TOKENS,
        seed=seed, epochs=epochs, separator=options.separator, field=options.field,
    )  # fmt: skip


def left_out(tokens: activations.Tokens, options: TextOptions) -> tuple[int, ...]:
    """The ids that are left out: those that were asked for, or the special tokens of a tokenizer."""
    return options.exclude or tokens.special_ids or ()


def open_stream(
    lm: LanguageModel,
    tokens: activations.Tokens,
    sites: Sequence[str],
    options: TextOptions,
    *,
    batch_size: int,
    seed: int,
    buffer_size: int | None = None,
) -> activations.ActivationStream:
    """Rows of sites, in random order."""
    return activations.ActivationStream(
        lm.model, lm.params, tokens, list(dict.fromkeys(sites)), batch_size=batch_size, buffer_size=buffer_size,
        key=jax.random.key(seed), exclude=left_out(tokens, options),
    )  # fmt: skip


def dictionary_line(sae: SAE) -> str:
    """A dictionary in one line."""
    config = sae.config
    gives = "" if config.target is None else f", gives {config.target} ({config.width_out} wide)"
    return (
        f"{config.architecture.name} dictionary of {config.n_latents} latents: reads {config.site} ({config.d_in} wide){gives}, "
        f"normalize {config.normalize}"
    )
