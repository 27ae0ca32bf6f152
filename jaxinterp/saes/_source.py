"""What a loaded dictionary remembers of its file."""

from __future__ import annotations

import dataclasses
import json
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What a file says beside what `SAEConfig` holds, kept so that it can be written back.

    Attributes:
        form: the form of the file, a key of `saes.FORMS`; "jaxinterp" of one that `jaxinterp sae train` made, whose file is
            `provenance.json`: model, text, command.
        files: its small files, by name, byte for byte; the config first.
        params: our parameters: their name there, and their dtype there.
        tensors: tensors that no parameter comes from and that change nothing: name, dtype, shape, bytes.
    """

    form: str
    files: tuple[tuple[str, bytes], ...] = ()
    params: tuple[tuple[str, str, str], ...] = ()
    tensors: tuple[tuple[str, str, tuple[int, ...], bytes], ...] = ()

    @property
    def config(self) -> dict[str, Any]:
        """The content of the file's config; empty where the form has none."""
        return json.loads(self.files[0][1]) if self.files else {}
