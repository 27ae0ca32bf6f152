"""From cases (texts, answers, roles) to `PromptPairs`, with every fault of every case reported together."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from jaxinterp._errors import JaxinterpError
from jaxinterp.tasks._faults import Fault, answer_faults, pair_faults, raise_faults, role_faults
from jaxinterp.tasks._pairs import PromptPairs
from jaxinterp.tasks._tokens import TokenizerLike, check_tokenizer, resolve_bos, side_by_side


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mention:
    """The position of a known token: its `occurrence`-th of exactly `of` in the clean prompt, moved by `shift`."""

    token: int
    occurrence: int = 0
    of: int = 1
    shift: int = 0


Role = int | str | Mention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One pair before tokenization. `where` names it in errors; answers are texts, or token ids known already."""

    where: str
    clean: str
    corrupt: str
    correct: Sequence[str] | Sequence[int]
    wrong: Sequence[str] | Sequence[int]
    roles: Mapping[str, Role] = dataclasses.field(default_factory=dict)
    template: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One pair as token ids."""

    clean: Sequence[int]
    corrupt: Sequence[int]
    correct: Sequence[int]
    wrong: Sequence[int]
    roles: Mapping[str, int]


def pairs_from_cases(
    cases: Sequence[Case],
    tokenizer: TokenizerLike,
    *,
    prepend_bos: bool | None,
    what: str = "prompt pairs",
    earlier: Sequence[Fault] = (),
    refused: tuple[str, ...] = (),
) -> PromptPairs:
    """Tokenizes and checks every case; `earlier` faults (of reading a file) are reported with the new ones."""
    check_tokenizer(tokenizer)
    bos = resolve_bos(tokenizer, prepend_bos)
    rows: list[Row] = []
    faults = list(earlier)
    for case in cases:
        row, found = _row_from_case(case, tokenizer, bos)
        faults += found
        if row is not None:
            rows.append(row)
    faults += role_faults([case.where for case in cases], [case.roles for case in cases])
    places = {fault.where for fault in earlier}
    raise_faults(faults, total=len(cases) + len(places - {case.where for case in cases}), what=what)
    pad = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.bos_id
    return assemble(
        rows,
        pad_id=0 if pad is None else int(pad),
        clean_text=tuple(case.clean for case in cases),
        corrupt_text=tuple(case.corrupt for case in cases),
        template=tuple(case.template for case in cases),
        prepend_bos=bos,
        refused=refused,
    )


def assemble(
    rows: Sequence[Row],
    *,
    pad_id: int = 0,
    width: int | None = None,
    clean_text: tuple[str, ...] = (),
    corrupt_text: tuple[str, ...] = (),
    template: tuple[str, ...] = (),
    prepend_bos: bool = False,
    refused: tuple[str, ...] = (),
) -> PromptPairs:
    """Makes the arrays from checked rows, padded on the right to one width (the longest row's); adds the role `end`."""
    lengths = np.array([len(row.clean) for row in rows], np.int32)
    width = int(lengths.max()) if width is None else width
    ids = lambda name, fill, w: jnp.asarray(_padded([getattr(row, name) for row in rows], fill, w))
    most = lambda name: max(len(getattr(row, name)) for row in rows)
    roles = {name: np.array([row.roles[name] for row in rows], np.int32) for name in rows[0].roles}
    roles["end"] = lengths - 1
    return PromptPairs(
        clean=ids("clean", pad_id, width),
        corrupt=ids("corrupt", pad_id, width),
        mask=jnp.asarray(np.arange(width)[None, :] < lengths[:, None]),
        correct=ids("correct", -1, most("correct")),
        wrong=ids("wrong", -1, most("wrong")),
        answer_position=jnp.asarray(lengths - 1),
        roles={name: jnp.asarray(position) for name, position in roles.items()},
        clean_text=clean_text,
        corrupt_text=corrupt_text,
        template=template,
        prepend_bos=prepend_bos,
        refused=refused,
    )


def _row_from_case(case: Case, tokenizer: TokenizerLike, bos: bool) -> tuple[Row | None, list[Fault]]:
    fault = lambda message: Fault(where=case.where, message=message)
    for name in ("clean", "corrupt"):
        text = getattr(case, name)
        if not isinstance(text, str):
            return None, [Fault(where=case.where, message=f"{name} must be a string; got {text!r}.", kind="input")]
        if not text.strip():
            return None, [fault(f"{name} is an empty prompt: give it at least one word.")]
    try:
        clean = list(tokenizer.encode(case.clean, prepend_bos=bos))
        corrupt = list(tokenizer.encode(case.corrupt, prepend_bos=bos))
    except JaxinterpError as error:
        return None, [fault(str(error))]
    faults = pair_faults(case.where, clean, corrupt)
    if len(clean) != len(corrupt):
        faults = [dataclasses.replace(faults[0], detail=side_by_side(tokenizer, clean, corrupt))]
    answers, wrong_answers = _answers(case, tokenizer)
    roles, wrong_roles = _roles(case, clean, tokenizer, bos)
    faults += [fault(message) for message in wrong_answers]
    faults += [] if wrong_answers else answer_faults(case.where, answers["correct"], answers["wrong"])
    faults += [fault(message) for message in wrong_roles]
    return (None, faults) if faults else (Row(clean=clean, corrupt=corrupt, roles=roles, **answers), [])


def _answers(case: Case, tokenizer: TokenizerLike) -> tuple[dict[str, list[int]], list[str]]:
    """The token ids of both answer sets, and what is wrong with them."""
    ids: dict[str, list[int]] = {"correct": [], "wrong": []}
    messages = []
    for name, found in ids.items():
        for answer in getattr(case, name):
            try:
                found.append(answer if isinstance(answer, int) else tokenizer.answer_token(case.clean, answer))
            except JaxinterpError as error:
                messages.append(f"{name} {answer!r}: {error}")
        if len(found) != len(set(found)):
            messages.append(f"{name} holds an answer twice: {list(getattr(case, name))!r}.")
    return ids, messages


def _roles(case: Case, clean: Sequence[int], tokenizer: TokenizerLike, bos: bool) -> tuple[dict[str, int], list[str]]:
    """The positions of the roles but `end`, and what is wrong with them."""
    positions: dict[str, int] = {}
    messages = []
    for name, role in case.roles.items():
        position = _locate(role, case.clean, clean, tokenizer, bos)
        if isinstance(position, str):
            messages.append(f"role {name!r}: {position}")
        elif name != "end":
            positions[name] = position
        elif position != len(clean) - 1:
            messages.append(f"role 'end' is always the last token, {len(clean) - 1}, not {position}: use another name.")
    return positions, messages


def _locate(role: Role, text: str, ids: Sequence[int], tokenizer: TokenizerLike, bos: bool) -> int | str:
    """The position that a role means, or what is wrong with it."""
    if isinstance(role, bool) or not isinstance(role, int | str | Mention):
        return f"got {role!r}: give a part of the clean prompt, or the index of a token."
    if isinstance(role, int):
        return role if 0 <= role < len(ids) else f"index {role} is outside the {len(ids)} tokens (0 to {len(ids) - 1})."
    if isinstance(role, Mention):
        found = [position for position, token in enumerate(ids) if token == role.token]
        if len(found) != role.of or not 0 <= found[role.occurrence] + role.shift < len(ids):
            return f"token {role.token} occurs {len(found)} times, {role.of} expected, in {tokenizer.str_tokens(list(ids))}."
        return found[role.occurrence] + role.shift
    if not role.strip():
        return f"got {role!r}: give a part of the clean prompt, or the index of a token."
    if text.count(role) != 1:
        return (
            f"{role!r} occurs {text.count(role)} times in the clean prompt: give a part that occurs once (a longer one, "
            "for instance), or the index of a token."
        )
    upto = tokenizer.encode(text[: text.index(role) + len(role.rstrip())], prepend_bos=bos)
    if list(ids[: len(upto)]) != list(upto):
        return (
            f"{role!r} does not end where a token ends: the tokens are {tokenizer.str_tokens(list(ids))}. "
            "Give a part that does, or the index of a token."
        )
    return len(upto) - 1


def _padded(rows: Sequence[Sequence[int]], fill: int, width: int) -> np.ndarray:
    out = np.full((len(rows), width), fill, np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
