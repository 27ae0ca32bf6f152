import os
import re
import subprocess
import sys

import pytest

import jaxinterp
from jaxinterp.cli import _main
from jaxinterp.cli._commands import COMMANDS, load_command
from jaxinterp.saes import ARCHITECTURES


def test_help_lists_every_command_and_teaches(cli):
    done = cli("--help")
    assert done.code == 0 and done.err == ""
    for name in COMMANDS:
        assert f"\n  {name} " in done.out
    assert "--correct ' She'" not in done.out and '--correct " She"' in done.out
    assert "exit codes" in done.out


HELPS = [*(name.split() for name in COMMANDS), *(["sae", "train", "--architecture", name] for name in ARCHITECTURES)]


@pytest.mark.parametrize("arguments", HELPS, ids=" ".join)
def test_the_help_of_each_command_explains_every_option_and_has_examples(cli, arguments):
    done = cli(*arguments, "--help")
    assert done.code == 0
    name = " ".join(arguments[:2] if arguments[0] == "sae" else arguments)
    assert f"examples:\n  jaxinterp {name}" in done.out and "--json" in done.out
    assert name == "sae convert" or ("--model" in done.out and "--bos" in done.out)
    lines = [line.strip("│ ") for line in done.out.splitlines()]
    options = [i for i, line in enumerate(lines) if re.match("--[a-z]", line)]
    assert len(options) >= 5
    for i, following in zip(options, [*options[1:], len(lines)], strict=True):  # an option, its kind, what it is
        said = " ".join(lines[i:following]).partition("(default")[0].split()
        assert len(said) > 3, said


def test_nothing_and_unknown_commands_and_options_are_usage_errors(cli):
    assert cli().code == 2
    done = cli("patc")
    assert done.code == 2 and "Did you mean 'patch'?" in done.err and done.out == ""
    assert cli("predict").code == 2
    done = cli("sae", "trian")
    assert done.code == 2 and "Did you mean 'sae train'" in done.err
    assert cli("sae").code == 2 and "\n  sae train " in cli("sae", "--help").out and cli("sae", "--help").code == 0
    assert cli("patch", "--ovr", "layer").code == 2
    assert cli("predict", "a", "--k", "many").code == 2
    for wrong in (("sae", "eval", "d", "--text", "x", "--bogus", 3), ("patc",)):
        done = cli(*wrong, "--json")
        assert done.code == 2 and done.json()["error"]["type"] == "UsageError"


def test_version(cli):
    done = cli("--version")
    assert done.code == 0 and done.out.startswith(f"jaxinterp {jaxinterp.__version__} (jax ")


def raising(error):
    def run(options, output, command):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "traceback"),
    [
        (KeyboardInterrupt(), 130, False),
        (OSError(28, "No space left on device"), 1, False),
        (jaxinterp.InputError("[bold]not markup[/bold]"), 1, False),
        (ZeroDivisionError("oops"), 70, True),
    ],
)
def test_what_goes_wrong_has_its_exit_code(cli, monkeypatch, error, code, traceback):
    command = load_command("predict")
    broken = type(command)(options=command.options, description=command.description, run=raising(error))
    monkeypatch.setattr(_main, "load_command", lambda name: broken)
    done = cli("predict", "Once")
    assert done.code == code and done.out == ""
    assert ("Traceback" in done.err) == traceback
    if code == 1:
        assert "error: " in done.err and "hint: " in done.err
        assert "not markup" not in done.err or "[bold]not markup[/bold]" in done.err
        as_json = cli("predict", "Once", "--json")
        assert as_json.code == 1 and as_json.json()["error"]["type"] == type(error).__name__


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys; from jaxinterp.cli import main; main(['--help'])\n"
        "heavy = {'xarray', 'matplotlib', 'tokenizers', 'rich', 'tyro', 'optax', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_as_a_process_with_a_reader_that_goes_away_and_a_cache_on_disk(stories, tmp_path):
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = f"{sys.executable} -m jaxinterp.cli sites --model {stories} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=env)
    assert "5 layers" in done.stdout and done.stdout.split()[-1] == "0"
    assert "Traceback" not in done.stderr and "Broken" not in done.stderr
    command = [sys.executable, "-m", "jaxinterp.cli", "predict", "Once upon a", "--model", str(stories), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{") and done.stderr == ""
    assert any((tmp_path / "jaxinterp" / "compiled").iterdir())
