"""Identities: short names for JSON values, the same for equal values on every machine."""

import dataclasses
import hashlib
import json
from typing import Any

LATER = {"later": True}
"""Metadata of a dataclass field that first records lack: it stands in an identity only where it is not its default, so
that those records keep theirs."""


def identity(values: Any) -> str:
    """Twelve hexadecimal digits that stand for a JSON value, the same for equal values."""
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=6).hexdigest()


def checksum(data: bytes) -> str:
    """A hexadecimal digest of 128 bits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def plain(value: Any) -> dict[str, Any]:
    """A dataclass as a JSON object: tuples as lists, fields marked LATER left out where they are at their default."""
    fields = [
        f for f in dataclasses.fields(value) if not ("later" in f.metadata and getattr(value, f.name) == f.default)
    ]
    values = {field.name: getattr(value, field.name) for field in fields}
    return {name: list(each) if isinstance(each, tuple) else each for name, each in values.items()}
