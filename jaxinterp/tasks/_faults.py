"""What is wrong with prompt pairs: collected over all of them and reported in one error."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from jaxinterp._errors import InputError, TokenError

_SHOWN_FAULTS = 20
_SHOWN_DETAILS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong in one place."""

    where: str
    message: str
    detail: str = ""
    kind: Literal["token", "input"] = "token"


def raise_faults(faults: Sequence[Fault], *, total: int, what: str) -> None:
    """Raises one error that lists all `faults`, if there are any; `what` completes "2 of 7 ..."."""
    if not faults:
        return
    lines = [f"{len({f.where for f in faults})} of {total} {what} cannot be used:"]
    details = 0
    for fault in faults[:_SHOWN_FAULTS]:
        lines.append(f"  {fault.where}: {fault.message}")
        if fault.detail and details < _SHOWN_DETAILS:
            details += 1
            lines += [f"    {line}" for line in fault.detail.splitlines()]
    if len(faults) > _SHOWN_FAULTS:
        rest = list(dict.fromkeys(fault.where for fault in faults[_SHOWN_FAULTS:]))
        lines.append(f"  and likewise {', '.join(rest)}")
    kind = TokenError if all(fault.kind == "token" for fault in faults) else InputError
    raise kind("\n".join(lines))


def pair_faults(where: str, clean: Sequence[int], corrupt: Sequence[int]) -> list[Fault]:
    """Faults of two token sequences as a pair (their lengths apart, or no difference at all)."""
    if len(clean) != len(corrupt):
        message = (
            f"clean has {len(clean)} tokens and corrupt {len(corrupt)}; a pair needs the same number, so that a position "
            "means the same in both. Reword one of them, or choose words that are as long in tokens."
        )
        return [Fault(where=where, message=message)]
    if list(clean) == list(corrupt):
        return [
            Fault(
                where=where,
                message="clean and corrupt are the same tokens, so nothing can be found: change the word that matters in one.",
            )
        ]
    return []


def answer_faults(where: str, correct: Sequence[int], wrong: Sequence[int]) -> list[Fault]:
    """Faults of two answer sets."""
    faults = []
    for name, ids in (("correct", correct), ("wrong", wrong)):
        if not ids:
            faults.append(Fault(where=where, message=f"`{name}` is empty: give at least one answer.", kind="input"))
    both = sorted(set(correct) & set(wrong))
    if both:
        message = f"token {both[0]} is both a correct and a wrong answer, so nothing tells them apart: give different answers."
        faults.append(Fault(where=where, message=message))
    return faults


def role_faults(where: Sequence[str], roles: Sequence[Mapping[str, object]]) -> list[Fault]:
    """Roles that some pairs have and others lack."""
    every = list(dict.fromkeys(name for these in roles for name in these if name != "end"))
    return [
        Fault(
            where=place,
            message=f"role {name!r} is missing, which other pairs have: give every pair the same roles.",
            kind="input",
        )
        for place, these in zip(where, roles, strict=True)
        for name in every
        if name not in these
    ]
