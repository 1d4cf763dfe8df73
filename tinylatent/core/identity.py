"""Identities: short names for JSON values, the same for equal values on every machine."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any


def identity(values: Any) -> str:
    """The hash of a JSON value in twelve hexadecimal digits; equal values have equal hashes."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=6).hexdigest()


def checksum(data: bytes) -> str:
    """The hash of bytes, 128 bits in hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def file_checksum(path: Path) -> str:
    """The checksum of a file's bytes, read a piece at a time."""
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(2**20):
            found.update(piece)
    return found.hexdigest()


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with a checksum of itself, under "seal", so that a change is noticed."""
    bare = {name: value for name, value in values.items() if name != "seal"}
    return {**bare, "seal": checksum(json.dumps(bare).encode())}


def plain(value: Any) -> dict[str, Any]:
    """A dataclass as a JSON object of the fields that differ from their defaults; tuples become lists, and dataclasses
    within it objects.

    So a field that is added later, with a default, does not change the identity of earlier values.
    """
    found = {}
    for field in dataclasses.fields(value):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        given = getattr(value, field.name)
        if isinstance(default, float) and type(given) is int:
            given = float(given)  # 1 and 1.0 are the same value
        if given != default:
            found[field.name] = plain(given) if dataclasses.is_dataclass(given) else _listed(given)
    return found


def _listed(value: Any) -> Any:
    """The value with lists for tuples, inside one another too."""
    return [_listed(each) for each in value] if isinstance(value, tuple) else value
