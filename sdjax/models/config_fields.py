"""Reading a network's config.json: what is known of it, and what nobody may pass over."""

from collections.abc import Collection, Mapping
from typing import Any

from sdjax.errors import SdjaxError


def known_fields(config: Mapping[str, Any], known: Collection[str], kind: str) -> dict[str, Any]:
    """The fields in `known`, lists as tuples.

    Keys with a leading underscore are notes, and an unknown field that is null or false asks for
    nothing: both are left out. Raises SdjaxError for any other, naming the `kind` of network.
    """
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    for key, value in given.items():
        if key not in known and value is not None and value is not False:
            raise SdjaxError(f"{kind} configuration: unknown field {key} = {value!r}")
    return {key: hashable(value) for key, value in given.items() if key in known}


def hashable(value: Any) -> Any:
    """The value with every list, however deep, as a tuple."""
    return tuple(map(hashable, value)) if isinstance(value, list | tuple) else value
