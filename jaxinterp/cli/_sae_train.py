"""`jaxinterp sae train`."""

import contextlib
import dataclasses
import itertools
import json
import shlex
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from jaxinterp import saes, viz
from jaxinterp.activations import ActivationStream
from jaxinterp.cli._commands import Command
from jaxinterp.cli._files import check_folder
from jaxinterp.cli._options import (
    ModelArgs,
    ModelOptions,
    OptionalInteger,
    OptionalText,
    OutputArgs,
    OutputOptions,
    check_range,
    headline,
    load_model,
    model_facts,
    provenance,
)
from jaxinterp.cli._output import SECONDS_BETWEEN_LINES, Output, number_or_none
from jaxinterp.cli._sae_options import TextArgs, dictionary_line, fields_of, open_stream, options_of, read_text
from jaxinterp.saes import SAE, SAEConfig, TrainConfig
from jaxinterp.store import Checkpoints, atomic_file

Kind = Literal["relu", "topk", "batch_topk", "jump_relu", "gated", "matryoshka"]
Settings = TypeVar("Settings")
DEFAULT: Kind = "topk"
METRICS, CURVES, CHECKPOINTS, DICTIONARY = "metrics.jsonl", "metrics.png", "checkpoints", "dictionary"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Generic[Settings]):
    """Options of `jaxinterp sae train`; `Settings` is the architecture, whose fields are options too."""

    text: TextArgs

    site: OptionalText = None
    """What the dictionary reads, as NAME.LAYER of `jaxinterp sites`: mlp.out.3. (default: resid_post of the middle layer)"""

    target: OptionalText = None
    """The site that it is to give, where that is another one: a transcoder."""

    n_latents: OptionalInteger = None
    """How many latents it has. (default: 8 times the width of the site)"""

    batch_size: int = 1024
    """Rows of a step: activations of so many tokens."""

    epochs: OptionalInteger = None
    """How often the text is read at most. Where the steps take more, the run stops with an error and keeps what it has; the
    same command with more epochs goes on. (default: as often as the steps take)"""

    out: Path = Path("sae-results")
    """Folder for metrics, checkpoints and the dictionary; one that holds the same run is gone on with."""

    architecture: Kind = DEFAULT
    """The kind of dictionary. The options below are of this one: `--architecture relu --help` shows those of another."""

    settings: Annotated[Settings, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff]
    sae: options_of(SAEConfig, "architecture", "d_in", "n_latents", "site", "d_out", "target", normalize="sqrt_d")  # type: ignore[valid-type]
    training: options_of(  # type: ignore[valid-type]
        TrainConfig, "sae", steps=2000, learning_rate=1e-3, dead_after=100_000, log_every=20, checkpoint_every=500
    )
    model: ModelArgs = dataclasses.field(default_factory=ModelOptions)
    output: OutputArgs = dataclasses.field(default_factory=OutputOptions)


def _named(arguments: list[str]) -> str:
    """The architecture that the arguments name."""
    named = [two for one, two in itertools.pairwise(arguments) if one == "--architecture"]
    named += [one.partition("=")[2] for one in arguments if one.startswith("--architecture=")]
    return (named or [DEFAULT])[-1]


def options(arguments: list[str]) -> Any:
    """The options with those of the architecture that the arguments name."""
    return Train[saes.ARCHITECTURES.get(_named(arguments), saes.TopK)]


def chosen(arguments: list[str]) -> str:
    """The architecture as an option, where it is not the one by default: so the help of the right one is pointed to."""
    name = _named(arguments)
    return f"--architecture {name}" if name in saes.ARCHITECTURES and name != DEFAULT else ""


def advice(arguments: list[str]) -> str:
    """Which architectures have the options that the chosen one has not."""
    have = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in saes.ARCHITECTURES.items()}
    kind = _named(arguments)
    here = have.get(kind, set())
    given = dict.fromkeys(one.partition("=")[0][2:].replace("-", "_") for one in arguments if one.startswith("--"))
    lines = []
    for option in given:
        owners = [name for name, fields in have.items() if option in fields]
        if owners and option not in here:
            lines.append(
                f"--{option.replace('_', '-')} is an option of --architecture {', '.join(owners)}, and not of {kind}: "
                f"`jaxinterp sae train --architecture {owners[0]} --help` explains it."
            )
    return "\n".join(lines)


def run(options: Train[Any], output: Output, command: str) -> dict[str, Any]:
    """Trains or goes on, saves, and prints where it ended."""
    check_range("--batch-size", options.batch_size, 1)
    check_range("--n-latents", options.n_latents, 1)
    check_range("--epochs", options.epochs, 1)
    lm = load_model(options.model)
    tokens = read_text(lm, options.model, options.text, seed=options.training.seed, epochs=options.epochs)
    site = options.site or f"resid_post.{(lm.config.n_layers - 1) // 2}"
    sites = [site, *([] if options.target is None else [options.target])]
    stream = open_stream(lm, tokens, sites, options.text, batch_size=options.batch_size, seed=options.training.seed)
    config = _config(options, stream)
    check_folder(options.out)
    output.line(headline(lm, options.model), style="dim")
    done = _done(options.out)
    if done and done < config.steps:
        output.line(f"{options.out} holds a run up to step {done:,}: this one goes on from there, if it is the same")
    with _kept(options.out, command), _lines(options.out / METRICS, config.steps, output):
        sae = saes.train(config, stream, folder=options.out, progress=output.bars)
    about = {**provenance(lm, options.model, command), "stream": stream.description}
    sae = dataclasses.replace(sae, source=saes.Source(form="jaxinterp", files=(("provenance.json", _json(about)),)))
    folder = saes.save(sae, options.out / DICTIONARY, overwrite=True)
    rows = saes.read_metrics(options.out / METRICS)
    with atomic_file(options.out / CURVES) as partial:
        viz.plot_training(rows, size=dictionary_line(sae)).savefig(partial, dpi=150)
    last = rows[-1]
    if done >= config.steps:
        output.line(f"{options.out} holds this run, and it is finished already: nothing was trained")
    elif tokens.passes > 1:
        output.line(f"passes over the text that were begun: {tokens.passes:,}")
    _print(output, sae, last, folder, options)
    measured = {name: number_or_none(last[name]) for name in ("loss", "fvu", "l0", "dead")}
    return {
        **model_facts(lm, options.model),
        "sae": saes.described(sae.config),
        "steps": last["step"],
        "steps_before": done,
        "rows": last["rows"],
        **measured,
        "files": [str(folder), *(str(options.out / name) for name in (METRICS, CURVES, CHECKPOINTS))],
    }


def _config(options: Train[Any], stream: ActivationStream) -> TrainConfig:
    """The config of the run; the widths are those that the sites have."""
    site, *target = stream.widths
    widths = {"d_in": stream.widths[site], "d_out": stream.widths[target[0]] if target else None}
    sae = SAEConfig(
        architecture=options.settings, site=site, target=target[0] if target else None, **widths,
        n_latents=options.n_latents or 8 * stream.widths[site], **fields_of(options.sae),
    )  # fmt: skip
    return TrainConfig(sae=sae, **fields_of(options.training))


def _done(folder: Path) -> int:
    """The newest step that a run in the folder has kept; 0 if there is none."""
    if not (folder / CHECKPOINTS).is_dir():
        return 0
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        return max(checkpoints.steps, default=0)


@contextlib.contextmanager
def _lines(path: Path, steps: int, output: Output) -> Iterator[None]:
    """Where no progress bar is shown, a line now and then on how far it is: the newest row of its metrics."""
    if output.as_json or output.bars:
        yield
        return
    stop = threading.Event()

    def watch() -> None:
        said = None
        while not stop.wait(SECONDS_BETWEEN_LINES):
            rows = saes.read_metrics(path) if path.is_file() else []
            if rows and rows[-1]["step"] != said:
                said = rows[-1]["step"]
                output.step(f"step {said:,} of {steps:,}: loss {rows[-1]['loss']:.4g}, FVU {rows[-1]['fvu']:.4f}")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


@contextlib.contextmanager
def _kept(folder: Path, command: str) -> Iterator[None]:
    """Lets SIGTERM interrupt as Ctrl-C does, and says what is kept then and how to go on."""
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main else None
    try:
        yield
    except KeyboardInterrupt:
        with Checkpoints(folder / CHECKPOINTS) as checkpoints:
            steps = checkpoints.steps
        if not steps:
            raise
        raise KeyboardInterrupt(
            f"interrupted; {folder} keeps what was trained up to step {steps[-1]}. The same command goes on from there:\n  "
            + command
        ) from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


def _print(output: Output, sae: SAE, last: dict[str, Any], folder: Path, options: Train[Any]) -> None:
    output.line(dictionary_line(sae))
    output.line()
    names = (("loss", ".4g"), ("fvu", ".4f"), ("l0", ".1f"), ("dead", ".1%"))
    output.table(
        ["step", "rows", "loss", "FVU", "L0", "dead"],
        [[f"{last['step']:,}", f"{last['rows']:,}", *(format(last[name], form) for name, form in names)]],
        left=(),
    )
    output.heading("files")
    for path, what in (
        (folder, "the dictionary: jaxinterp.saes.load"),
        (options.out / METRICS, "how it went: jaxinterp.saes.read_metrics"),
        (options.out / CURVES, "the same as a picture"),
        (options.out / CHECKPOINTS, "the run, to go on from"),
    ):
        output.line(f"  {path}   {what}")
    output.heading("next")
    output.line(
        f"  jaxinterp sae eval {shlex.quote(str(folder))} --text OTHER_TEXT   (a text that it was not trained on)"
    )


COMMAND = Command(
    options=options,
    run=run,
    chosen=chosen,
    advice=advice,
    description="""\
Trains a sparse dictionary (SAE, or a transcoder with --target) on the values that a site of a model takes on a text.

It writes OUT/metrics.jsonl and OUT/checkpoints as it goes, at the end OUT/metrics.png and OUT/dictionary, which
`jaxinterp sae eval` and jaxinterp.saes.load read. Ctrl-C and SIGTERM save first: the same command goes on, to the bit. A
folder that holds another run is an error that tells the difference. The defaults take a minute or two on a CPU for the
model that comes with jaxinterp, and are a beginning, not a recipe.

examples:
  jaxinterp sae train --text stories.txt
  jaxinterp sae train --text stories.txt --site mlp.out.3 --n-latents 4096 --k 16 --steps 10000 --out results
  jaxinterp sae train --text stories.txt --architecture relu --l1-coefficient 3 --sparsity-warmup-steps 500
  jaxinterp sae train --text stories.txt --site mlp.in.3 --target mlp.out.3
  jaxinterp sae train --text texts.jsonl --model openai-community/gpt2 --site resid_post.6
""",
)
