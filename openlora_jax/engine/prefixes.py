"""The names of KV blocks by what they contain, so that who asks the same again need not compute it again.

A full block's keys and values follow from the base model, of which an engine has one, the mix that was applied, and
every token up to the block's last. Its name is a hash chain over these, and over the tenant: what one tenant has asked
cannot be told from the time that another's request takes. Of a mix those members count that act before the block's end,
each with the position from which it does: before all of them a block is the base model's own.
"""

import hashlib
import struct
from collections.abc import Iterator

from openlora_jax.engine.sequence import LiveRequest, Sequence


def block_names(sequence: Sequence, block_size: int) -> Iterator[bytes]:
    """The names of the full blocks of a prompt, without the block of its last token, which is always computed."""
    live = sequence.request
    name = hashlib.sha256(repr(live.request.scheduling.tenant).encode()).digest()
    for start in range(0, (sequence.prompt_len - 1) // block_size * block_size, block_size):
        tokens = struct.pack(f"<{block_size}I", *sequence.tokens[start : start + block_size])
        name = hashlib.sha256(name + _mix(live, start + block_size) + tokens).digest()
        yield name


def _mix(live: LiveRequest, end: int) -> bytes:
    """The members that act before a position."""
    weights = (item.weight for item in live.request.mix)
    members = zip(live.digests, weights, live.begins, strict=True)
    return repr([member for member in members if member[2] is not None and member[2] < end]).encode()
