"""`jaxinterp patch`."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxinterp import patching, tap, tasks
from jaxinterp._errors import InputError, closest
from jaxinterp.cli._commands import Command
from jaxinterp.cli._files import check_folder, save_effects
from jaxinterp.cli._options import (
    Indices,
    ModelArgs,
    ModelOptions,
    OptionalNumber,
    OptionalPath,
    OptionalText,
    OutputArgs,
    OutputOptions,
    check_range,
    headline,
    load_model,
    model_facts,
    provenance,
    tokenizer_of,
)
from jaxinterp.cli._output import Output
from jaxinterp.cli._ranking import print_ranking, ranking_json
from jaxinterp.tasks import PromptPairs
from jaxinterp.weights import LanguageModel

MetricName = Literal["logit_difference", "probability_difference", "log_probability"]

Direction = Annotated[
    Literal["denoise", "noise"] | None,
    tyro.conf.arg(
        metavar="{denoise,noise}", help_behavior_hint="(default: denoise for --op patch, noise for zero and mean)"
    ),
]

_OPS = {"patch": tap.patch, "zero": tap.zero, "mean": tap.mean}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patch:
    """Options of `jaxinterp patch`."""

    clean: OptionalText = None
    """The prompt that calls for the correct answer."""

    corrupt: OptionalText = None
    """The same prompt with what matters exchanged; as many tokens as --clean."""

    correct: OptionalText = None
    """The right answer to the clean prompt: one token, with the space in front of it (" She")."""

    wrong: OptionalText = None
    """The answer to weigh against it: one token (" He")."""

    pairs: OptionalPath = None
    """Many pairs instead of one: a JSONL file with clean, corrupt, correct, wrong and maybe roles in each line."""

    over: str = "layer,head"
    """Axes of the sweep, of layer, head, position, role, feature. What is left out is edited as a whole."""

    site: OptionalText = None
    """The value to edit, of those that `jaxinterp sites` lists. (default: attn.z over heads, else resid_pre)"""

    layers: Indices = ()
    """Only these layers."""

    heads: Indices = ()
    """Only these heads."""

    positions: Indices = ()
    """Only these positions, counted from 0, BOS included."""

    op: Literal["patch", "zero", "mean"] = "patch"
    """The edit: patch puts in what the other prompt has at that place; zero and mean (over prompts and positions) remove it."""

    direction: Direction = None
    """Run the corrupt prompts (denoise: what is enough?) or the clean ones (noise: what is needed?)."""

    metric: tuple[MetricName, ...] = ("logit_difference",)
    """What is measured at the end of the prompt; several may be named."""

    memory: OptionalNumber = None
    """GiB that the sweep may take beside the model, above 0. (default: a quarter of what is free)"""

    plan: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Print what would run (cells, operations, memory, compiles) and stop."""

    resume: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Keep cells in OUT/cells as they are finished, and go on from those that an earlier, interrupted run left there."""

    null: Annotated[
        Literal["prompts", "directions"] | None,
        tyro.conf.arg(metavar="{prompts,directions}", help_behavior_hint="(default: none)"),
    ] = None
    """Also draw what edits do that carry nothing: another prompt's values, or random directions. Ten draws."""

    top: int = 10
    """How many cells the printed ranking has."""

    out: Path = Path("patch-results")
    """Folder for effects.nc, effects.png and effects.html; files of these names are replaced."""

    model: ModelArgs = dataclasses.field(default_factory=ModelOptions)
    output: OutputArgs = dataclasses.field(default_factory=OutputOptions)


def run(options: Patch, output: Output, command: str) -> dict[str, Any]:
    """Sweeps, saves, and prints the ranking."""
    if options.direction is None:
        options = dataclasses.replace(options, direction="denoise" if options.op == "patch" else "noise")
    _check_prompts(options)
    _check_numbers(options)
    over = _over(options)
    if not options.plan:
        check_folder(options.out)
    lm = load_model(options.model)
    pairs = _pairs(options, lm)
    output.line(headline(lm, options.model), style="dim")
    output.line(pairs.summary())
    site = options.site or ("attn.z" if "head" in over else "resid_pre")
    output.line(_what_runs(options, site))
    args = _arguments(options, lm, pairs, site, over)
    if options.plan:
        return _print_plan(patching.plan(lm.model, lm.params, **args), output)
    effects = patching.sweep(
        lm.model,
        lm.params,
        **args,
        keep=("prompts", "interval"),
        tokenizer=lm.tokenizer,
        provenance={**provenance(lm, options.model, command), "direction": options.direction},
        store=options.out / "cells" if options.resume else None,
        progress=output.bars,
    )
    texts = _ends(options, pairs.clean_text, pairs.corrupt_text)
    files = save_effects(effects, options.out, prompts=list(zip(*texts, strict=True)))
    print_ranking(output, effects, options.top)
    output.heading("files")
    for file in files:
        output.line(f"  {file}")
    return {
        **model_facts(lm, options.model),
        "site": effects.attrs["site"],
        "op": options.op,
        "direction": options.direction,
        "run": _ends(options, "clean", "corrupt")[0],
        "n_prompts": int(effects.attrs["n_prompts"]),
        "metrics": ranking_json(effects, options.top),
        "files": [str(file) for file in files],
    }


def _check_prompts(options: Patch) -> None:
    single = {name: getattr(options, name) for name in ("clean", "corrupt", "correct", "wrong")}
    missing = [f"--{name}" for name, text in single.items() if text is None]
    if options.pairs is not None and len(missing) < len(single):
        raise InputError("--pairs is given beside --clean, --corrupt, --correct or --wrong. Give one or the other.")
    if options.pairs is None and missing:
        raise InputError(
            f"{', '.join(missing)} missing. Give --clean, --corrupt, --correct and --wrong, or a file of pairs with --pairs."
        )


def _check_numbers(options: Patch) -> None:
    check_range("--top", options.top, 1)
    if options.memory is not None and not 0 < options.memory < math.inf:
        raise InputError(f"--memory {options.memory} is not legal: give GiB above 0, such as 0.5.")


def _over(options: Patch) -> dict[str, Any]:
    """The axes of the sweep with the values wanted, None for all; checked as far as that goes without the model."""
    axes = [axis.strip() for axis in options.over.split(",")]
    for axis in axes:
        if axis not in patching.AXES:
            near = closest(axis, patching.AXES)
            raise InputError(f"--over {options.over}: there is no axis {axis!r}. {near}")
        if axes.count(axis) > 1:
            raise InputError(f"--over {options.over} names {axis} {axes.count(axis)} times. Give each axis once.")
    if len(axes) > 3:
        raise InputError(
            f"--over {options.over} has {len(axes)} axes; a picture holds 3. Use jaxinterp.patching.sweep in Python."
        )
    over: dict[str, Any] = dict.fromkeys(axes)
    for axis, chosen in (("layer", options.layers), ("head", options.heads), ("position", options.positions)):
        if chosen and axis not in over:
            raise InputError(
                f"--{axis}s is given, but --over {options.over} does not run over {axis}s. Add it to --over."
            )
        if chosen:
            over[axis] = list(chosen)
    return over


def _pairs(options: Patch, lm: LanguageModel) -> PromptPairs:
    tokenizer = tokenizer_of(lm, options.model)
    if options.pairs is not None:
        return tasks.pairs_from_jsonl(options.pairs, tokenizer)
    one = lambda name: [getattr(options, name)]
    return tasks.pairs_from_text(
        tokenizer, clean=one("clean"), corrupt=one("corrupt"), correct=one("correct"), wrong=one("wrong")
    )


def _ends(options: Patch, clean: Any, corrupt: Any) -> tuple[Any, Any]:
    """(base, source)."""
    return (corrupt, clean) if options.direction == "denoise" else (clean, corrupt)


def _what_runs(options: Patch, site: str) -> str:
    """The experiment in one line."""
    base, source = _ends(options, "clean", "corrupt")
    edit = {
        "patch": f"replaced by what it is in the {source} prompts",
        "zero": "set to zero",
        "mean": "replaced by its mean over prompts and positions",
    }
    return f"run: the {base} prompts, with {site} {edit[options.op]}, one cell of {options.over} at a time"


def _arguments(
    options: Patch, lm: LanguageModel, pairs: PromptPairs, site: str, over: dict[str, Any]
) -> dict[str, Any]:
    """What the plan and the sweep both take."""
    base, source = _ends(options, pairs.clean, pairs.corrupt)
    return dict(
        base=base,
        source=source,
        mask=pairs.mask if pairs.is_padded else None,
        site=site,
        over=over,
        metric={name.replace("_", " "): _metric(name, pairs) for name in options.metric},
        op=_OPS[options.op],
        roles=pairs.roles,
        null=options.null,
        memory=None if options.memory is None else int(options.memory * 2**30),
    )


def _print_plan(plan: patching.Plan, output: Output) -> dict[str, Any]:
    output.heading("plan")
    for line in str(plan).splitlines():
        output.line(f"  {line}")
    return {
        "n_cells": plan.n_cells,
        "n_run": plan.n_run,
        "flops_whole_forwards": plan.flops[0],
        "flops": plan.flops[1],
        "bytes": plan.bytes_peak,
        "budget": plan.budget,
        "compiles": len(plan.suffixes) + 1,
        "calls": len(plan.chunks),
    }


def _metric(name: MetricName, pairs: PromptPairs) -> patching.Metric:
    makers = {
        "logit_difference": functools.partial(patching.logit_difference, pairs.correct, pairs.wrong),
        "probability_difference": functools.partial(patching.probability_difference, pairs.correct, pairs.wrong),
        "log_probability": functools.partial(patching.log_probability, pairs.correct[:, 0]),
    }
    if name == "log_probability" and pairs.correct.shape[1] > 1:
        raise InputError(
            "--metric log_probability reads one answer, and some pair has several. Use probability_difference."
        )
    return makers[name](pairs.answer_position)


COMMAND = Command(
    options=Patch,
    run=run,
    description="""\
Activation patching: which heads, layers or positions of a model carry the answer?

Takes two prompts that differ in one thing, and the answers that tell them apart. For every place of the sweep it runs
the one prompt with the other's activation at that place (--op zero and mean: the clean prompt with the activation
removed), and measures how far the answer moves: normalized, 1 is all the way to the other prompt's value, 0 is
nothing. It writes OUT/effects.nc (the numbers, for xarray.open_dataset),
OUT/effects.png and OUT/effects.html (one file that opens without a network), and prints the strongest places.

examples:
  jaxinterp patch --clean "One day, Lily had an idea." --corrupt "One day, Tim had an idea." \\
      --correct " She" --wrong " He"
  jaxinterp patch --clean ... --corrupt ... --correct ... --wrong ... --over layer,position
  jaxinterp patch --model openai-community/gpt2 --pairs pairs.jsonl --over layer,role --site attn.out --out results
  jaxinterp patch --pairs pairs.jsonl --op zero --site mlp.out --over layer --json

a line of pairs.jsonl:
  {"clean": "One day, Lily had an idea.", "corrupt": "One day, Tim had an idea.",
   "correct": " She", "wrong": " He", "roles": {"name": "Lily"}}
""",
)
