"""What an engine saw of its load, kept for the memory plan of its next start."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openlora_jax.errors import BadCheckpoint
from openlora_jax.untrusted import read_json_object

MAX_DIGESTS = 8192
"""Whose requests are kept: those asked for most."""

Count = Annotated[int, Field(ge=0, lt=1 << 53)]


class Planned(BaseModel):
    """What a memory plan came to.

    Attributes:
        basis: the settings that it was made for.
        pages: module -> its rank pages.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    basis: str
    pages: dict[str, Count]
    kv_blocks: Count


class Observed(BaseModel):
    """From one start to its end; requests also from those before, each time counted half.

    Attributes:
        base_digest: of the base model.
        planned: what was held.
        uses: requests by digest of their adapter.
        kv_tokens: positions that sequences held at once, at most.
        preemptions: sequences that gave up their KV blocks.
        pool_bytes: pages that adapters held at the end.
        evictions: adapters that left the device for others.
        activations: bytes that the device held beside what was planned for, at most; None where it does not say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    base_digest: str
    planned: Planned | None = None
    uses: dict[str, Count] = Field(default_factory=dict)
    kv_tokens: Count = 0
    preemptions: Count = 0
    pool_bytes: Count = 0
    evictions: Count = 0
    activations: Count | None = None

    @classmethod
    def read(cls, path: Path, base_digest: str) -> "Observed":
        """What was kept for a base model; nothing where there is no file.

        Raises:
            BadCheckpoint: the file is damaged, or about another base model.
        """
        if not path.exists():
            return cls(base_digest=base_digest)
        try:
            found = cls.model_validate(read_json_object(path))
        except (ValidationError, ValueError) as error:
            raise BadCheckpoint(path, "is no record of an engine's load; delete it") from error
        if found.base_digest != base_digest:
            raise BadCheckpoint(path, f"is about the base {found.base_digest}; delete it")
        return found

    def after(self, before: "Observed") -> "Observed":
        """This start's, with half of the requests that were counted before it."""
        uses = Counter(self.uses) + Counter({digest: count // 2 for digest, count in before.uses.items()})
        return self.model_copy(update={"uses": dict(uses.most_common(MAX_DIGESTS))})

    def write(self, path: Path) -> None:
        """Replaces what was kept, whole. Raises OSError."""
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            draft.write_text(json.dumps(self.model_dump()) + "\n")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def observed_path(store: Path, base_digest: str) -> Path:
    """Where it is kept: beside the registry of the adapters that were asked for, a file for each base model."""
    return store / f"observed-{base_digest[:16]}.json"
