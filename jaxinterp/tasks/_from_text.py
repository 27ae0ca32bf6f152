"""Prompt pairs that a person wrote: from texts, from a JSONL file, from token ids."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from jaxinterp._errors import InputError, MissingFileError, closest
from jaxinterp.tasks._build import Case, Row, assemble, pairs_from_cases
from jaxinterp.tasks._faults import Fault, answer_faults, pair_faults, raise_faults
from jaxinterp.tasks._pairs import PromptPairs
from jaxinterp.tasks._tokens import TokenizerLike

_FIELDS = ("clean", "corrupt", "correct", "wrong", "roles", "template")


def pairs_from_text(
    tokenizer: TokenizerLike,
    *,
    clean: Sequence[str],
    corrupt: Sequence[str],
    correct: Sequence[str | Sequence[str]],
    wrong: Sequence[str | Sequence[str]],
    roles: Mapping[str, Sequence[str | int]] | None = None,
    prepend_bos: bool | None = None,
) -> PromptPairs:
    """Prompt pairs from texts.

    An answer such as " She" means the token that it adds to the clean prompt; it must be exactly one. Mind the space in
    front of a word. A pair must have the same number of tokens on both sides; pairs among themselves need not.

    Args:
        tokenizer: the tokenizer of the model to be studied.
        clean: the clean prompts.
        corrupt: the corrupt prompts, in the same order.
        correct: for each pair the right answer to the clean prompt, or several.
        wrong: for each pair the answer to weigh against it, or several.
        roles: for each role its place in every clean prompt: a part of the text that occurs once, of which the last token
            is meant, or the index of a token, BOS counted. The role `end`, the last token, is always added.
        prepend_bos: whether BOS is put in front; None follows the tokenizer.

    Returns:
        `PromptPairs`, padded on the right to the longest pair.

    Raises:
        TokenError: pairs whose sides differ in length (both tokenizations are shown side by side), empty prompts, answers
            that are not one token, roles that are not found. All faults are reported together.
        InputError: lists of different lengths, or none at all.

    Example:
        >>> from jaxinterp.tasks import WordTokenizer
        >>> clean, corrupt = ["One day, Lily had an idea."], ["One day, Tim had an idea."]
        >>> words = WordTokenizer.of_texts([*clean, *corrupt, " She He"])
        >>> pairs = pairs_from_text(
        ...     words, clean=clean, corrupt=corrupt, correct=[" She"], wrong=[" He"], roles={"name": ["Lily"]}
        ... )
        >>> pairs.roles["name"].tolist(), pairs.differs().tolist()
        ([3], [[False, False, False, True, False, False, False, False]])
    """
    roles = {} if roles is None else dict(roles)
    columns: dict[str, Any] = {"clean": clean, "corrupt": corrupt, "correct": correct, "wrong": wrong}
    columns |= {f"roles[{name!r}]": places for name, places in roles.items()}
    _check_columns(columns)
    cases = [
        Case(
            where=f"pair {i}",
            clean=clean[i],
            corrupt=corrupt[i],
            correct=_answers(correct[i]),
            wrong=_answers(wrong[i]),
            roles={name: places[i] for name, places in roles.items()},
        )
        for i in range(len(clean))
    ]
    return pairs_from_cases(cases, tokenizer, prepend_bos=prepend_bos)


def pairs_from_jsonl(
    path: str | PathLike[str], tokenizer: TokenizerLike, *, prepend_bos: bool | None = None
) -> PromptPairs:
    """Prompt pairs from a file with one JSON object a line.

    Fields: `clean`, `corrupt`, `correct`, `wrong` (an answer or a list of answers), and optionally `roles` (an object:
    name to a part of the clean prompt or a token index) and `template` (a string). Blank lines are skipped.

    Args:
        path: the file.
        tokenizer: the tokenizer of the model to be studied.
        prepend_bos: whether BOS is put in front; None follows the tokenizer.

    Returns:
        `PromptPairs`, in the order of the lines.

    Raises:
        MissingFileError: no such file.
        InputError, TokenError: faulty lines, all reported together with their numbers.

    Example:
        >>> import json, tempfile
        >>> from jaxinterp.tasks import WordTokenizer
        >>> line = {"clean": "Then Lily ran.", "corrupt": "Then Tim ran.", "correct": " She", "wrong": " He"}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "pairs.jsonl")
        ...     size = path.write_text(json.dumps(line | {"roles": {"name": "Lily"}}))
        ...     pairs = pairs_from_jsonl(path, WordTokenizer.of_texts(line.values()))
        >>> len(pairs), pairs.roles["name"].tolist()
        (1, [1])
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no file {path}: give a JSONL file of prompt pairs, one JSON object a line.")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}): save it as UTF-8.") from error
    cases: list[Case] = []
    faults: list[Fault] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            case, found = _case_from_line(line, f"line {number}")
            faults += found
            cases += [] if case is None else [case]
    if not cases and not faults:
        raise InputError(f"{path} holds no prompt pair: write one JSON object a line.")
    return pairs_from_cases(cases, tokenizer, prepend_bos=prepend_bos, what=f"lines of {path.name}", earlier=faults)


def pairs_from_tokens(
    *,
    clean: Sequence[Sequence[int]],
    corrupt: Sequence[Sequence[int]],
    correct: Sequence[int | Sequence[int]],
    wrong: Sequence[int | Sequence[int]],
    roles: Mapping[str, Sequence[int]] | None = None,
    pad_id: int = 0,
) -> PromptPairs:
    """Prompt pairs from token ids, for models without a tokenizer.

    Args:
        clean: the ids of the clean prompts, of any lengths.
        corrupt: the ids of the corrupt prompts, each as long as its clean one.
        correct: for each pair the id of the right answer, or several.
        wrong: for each pair the id to weigh against it, or several.
        roles: for each role its position in every pair. The role `end`, the last token, is always added.
        pad_id: the id that fills the padding.

    Returns:
        `PromptPairs` without texts.

    Raises:
        TokenError: pairs of different or no length, or without any difference; negative ids.
        InputError: lists of different lengths, positions outside a prompt.

    Example:
        >>> pairs = pairs_from_tokens(clean=[[5, 6], [7]], corrupt=[[5, 9], [8]], correct=[1, 2], wrong=[3, 3])
        >>> pairs.clean.tolist(), pairs.mask.tolist(), pairs.answer_position.tolist()
        ([[5, 6], [7, 0]], [[True, True], [True, False]], [1, 0])
    """
    roles = {} if roles is None else dict(roles)
    columns: dict[str, Any] = {"clean": clean, "corrupt": corrupt, "correct": correct, "wrong": wrong}
    columns |= {f"roles[{name!r}]": places for name, places in roles.items()}
    _check_columns(columns)
    rows: list[Row] = []
    faults: list[Fault] = []
    for i in range(len(clean)):
        ids = {name: [int(t) for t in _answers(columns[name][i])] for name in ("clean", "corrupt", "correct", "wrong")}
        row = Row(**ids, roles={name: int(places[i]) for name, places in roles.items()})
        faults += _token_row_faults(row, f"pair {i}")
        rows.append(row)
    raise_faults(faults, total=len(rows), what="prompt pairs")
    return assemble(rows, pad_id=pad_id)


def _token_row_faults(row: Row, where: str) -> list[Fault]:
    if not row.clean or not row.corrupt:
        return [Fault(where=where, message="an empty prompt: give it at least one token.")]
    faults = pair_faults(where, row.clean, row.corrupt) + answer_faults(where, row.correct, row.wrong)
    negative = [t for ids in (row.clean, row.corrupt, row.correct, row.wrong) for t in ids if t < 0]
    if negative:
        faults.append(Fault(where=where, message=f"token id {negative[0]} is negative: ids count from 0."))
    for name, position in row.roles.items():
        if not 0 <= position < len(row.clean) or (name == "end" and position != len(row.clean) - 1):
            message = f"role {name!r}: position {position} of {len(row.clean)} tokens is not legal (`end` is always the last)."
            faults.append(Fault(where=where, message=message, kind="input"))
    return faults


def _case_from_line(line: str, where: str) -> tuple[Case | None, list[Fault]]:
    fault = lambda message: Fault(where=where, message=message, kind="input")
    try:
        item = json.loads(line)
    except json.JSONDecodeError as error:
        return None, [fault(f"not JSON ({error.msg} at column {error.colno}).")]
    if not isinstance(item, dict):
        return None, [fault(f"a JSON object is needed, with {', '.join(_FIELDS[:4])}; got a {type(item).__name__}.")]
    faults = [fault(f"unknown field {name!r}. {closest(name, _FIELDS)}") for name in item if name not in _FIELDS]
    for name in _FIELDS[:4]:
        value = item.get(name)
        texts = value if isinstance(value, list) and name in ("correct", "wrong") else [value]
        if name not in item:
            faults.append(fault(f"field {name!r} is missing."))
        elif not texts or not all(isinstance(text, str) for text in texts):
            legal = "a string or a list of strings" if name in ("correct", "wrong") else "a string"
            faults.append(fault(f"field {name!r} must be {legal}; got {value!r}."))
    roles, template = item.get("roles", {}), item.get("template", "")
    if not isinstance(roles, dict):
        faults.append(fault(f"field 'roles' must be an object from names to places; got {roles!r}."))
    if not isinstance(template, str):
        faults.append(fault(f"field 'template' must be a string; got {template!r}."))
    if faults:
        return None, faults
    case = Case(
        where=where,
        clean=item["clean"],
        corrupt=item["corrupt"],
        correct=_answers(item["correct"]),
        wrong=_answers(item["wrong"]),
        roles=roles,
        template=template,
    )
    return case, []


def _check_columns(columns: Mapping[str, Any]) -> None:
    texts = [name for name, values in columns.items() if isinstance(values, str)]
    if texts:
        raise InputError(
            f"{', '.join(texts)} must be lists with one entry for each pair; got a single string: put it in [ ]."
        )
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(
            "Lists of different lengths: "
            + ", ".join(f"{k} {v}" for k, v in lengths.items())
            + ". Give one entry for each pair."
        )
    if lengths["clean"] == 0:
        raise InputError("There is no prompt pair: give at least one.")


def _answers(value: Any) -> Sequence[Any]:
    return [value] if isinstance(value, str) or not hasattr(value, "__len__") else list(value)
