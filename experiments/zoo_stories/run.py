"""Makes the zoo's model `stories` again: `python -m experiments.zoo_stories.run --out FOLDER` (42 minutes on a shared core).

FOLDER gets the tokenizer, parameters from along the run, the model as a Hugging Face folder and results.json. A training run
that is already there is not repeated.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

from experiments.zoo_stories import data, evaluate, package
from experiments.zoo_stories import training as recipe


def train(settings: recipe.Settings, stories: list[str], held_out: list[str], out: Path) -> None:
    """Tokenizer, parameters and history into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = data.train_tokenizer(stories, settings.d_vocab)
    tokenizer.save(str(out / "tokenizer.json"))
    sample = held_out[:60]
    ids, sample_ids = data.encode(tokenizer, stories), data.encode(tokenizer, sample)
    model, start = recipe.make_model(settings), time.perf_counter()
    last = settings.steps + settings.long_steps

    def report(state, row):
        if row["step"] % 500 == 0 or row["step"] == last:
            row["held_out"] = recipe.nats_per_byte(model, state.params, sample_ids, data.count_bytes(sample))
            recipe.save_checkpoint(state.params, out / "checkpoints" / f"{row['step']}.safetensors")
        row["seconds"] = time.perf_counter() - start
        print(json.dumps({name: round(value, 4) for name, value in row.items()}), flush=True)

    _, params, history = recipe.train(settings, ids, report)
    (out / "history.json").write_text(json.dumps(history, indent=1))
    recipe.save_checkpoint(params, out / "params.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=evaluate.DATA, help="the stories")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a run of seconds that learns nothing, to test the script")
    arguments = parser.parse_args()
    settings = dataclasses.replace(recipe.SMOKE if arguments.smoke else recipe.Settings(), seed=arguments.seed)
    stories = data.read_stories(arguments.data)[: 40 if arguments.smoke else None]
    out = arguments.out
    if not (out / "params.safetensors").is_file():
        train(settings, *data.split(stories), out)
    model = recipe.make_model(settings)
    params = recipe.load_checkpoint(model, out / "params.safetensors")
    lm = package.write_folder(out / "stories", model, params, (out / "tokenizer.json").read_text())
    size = dict(order=3, least=1, openings=1, n=4, counts=(1,), controls=1) if arguments.smoke else {}
    results = {
        "settings": dataclasses.asdict(settings),
        **evaluate.figures(lm, stories, **size),
        "history": json.loads((out / "history.json").read_text()),
    }
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({name: value for name, value in results.items() if name != "history"}, indent=1))


if __name__ == "__main__":
    main()
