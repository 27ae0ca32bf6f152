"""Rules of the house that no linter has: sizes, JAX's public interface only, a table of contents in each package."""

import ast
import re
from pathlib import Path

import jaxinterp

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in ("jaxinterp", "tests", "experiments", "examples", "colab")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".py", ".ipynb"} and path != Path(__file__).resolve()
}
PACKAGE = {name: ast.parse(text) for name, text in SOURCES.items() if name.startswith("jaxinterp/")}


def test_files_are_at_most_500_lines():
    long = [f"{name}: {text.count(chr(10))}" for name, text in SOURCES.items() if text.count("\n") > 500]
    assert not long, "split by idea: " + ", ".join(long)


def test_functions_are_at_most_60_lines_without_their_docstring():
    long = []
    for name, tree in PACKAGE.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                docstring = ast.get_docstring(node, clean=False)
                length = node.end_lineno - node.lineno + 1 - (docstring.count("\n") + 1 if docstring else 0)
                if length > 60:
                    long.append(f"{name}: {node.name} has {length}")
    assert not long, "split by idea: " + ", ".join(long)


def test_only_public_jax_and_no_unfinished_notes():
    pattern = re.compile(r"\bjax\._src\b|\b(TODO|FIXME|XXX)\b")
    found = [f"{name}: {hit.group()}" for name, text in SOURCES.items() for hit in pattern.finditer(text)]
    assert not found, ", ".join(found)


def test_each_package_lists_what_it_exports():
    missing = [
        name
        for name, tree in PACKAGE.items()
        if name.endswith("/__init__.py")
        and not any(isinstance(node, ast.Assign) and node.targets[0].id == "__all__" for node in tree.body)
    ]
    assert not missing, "no __all__ in " + ", ".join(missing)


def test_the_changelog_has_this_version():
    version = re.escape(jaxinterp.__version__)
    assert re.search(rf"^## {version}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
