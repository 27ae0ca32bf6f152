"""Prints the run-time dependencies pinned to their lower bounds, as a pip constraints file."""

import pathlib
import tomllib

project = tomllib.loads((pathlib.Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
for requirement in project["dependencies"]:
    name, bound, version = requirement.partition(">=")
    if not bound or "," in version:
        raise SystemExit(
            f"{requirement!r} in pyproject.toml: a dependency has a lower bound and nothing else, as name>=version"
        )
    print(f"{name.strip()}=={version.strip()}")
