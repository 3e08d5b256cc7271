"""Adapters and weights as people write them on a command line."""

from openlora_jax.errors import InvalidRequest


def weighted(field: str, text: str, separator: str, example: str) -> tuple[str, float]:
    """The name and the weight of NAME=WEIGHT, or with another separator.

    Raises:
        InvalidRequest: it is none; names the field, and shows the example.
    """
    name, _, weight = text.rpartition(separator)
    name = name.strip()
    try:
        value = float(weight)
    except ValueError:
        value = None
    if not name or value is None:
        raise InvalidRequest(field, f"{text[:140]!r} is no NAME{separator}WEIGHT; write {example}")
    return name, value
