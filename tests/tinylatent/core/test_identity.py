"""Identities are hashes of JSON values; fields that came later stand in them only where they say something."""

import hashlib
import json
from dataclasses import dataclass, field

from tinylatent.core.identity import LATER, checksum, identity, plain


@dataclass(frozen=True)
class Recipe:
    """One field of the first edition, two that came later."""

    steps: tuple[int, ...] = (1, 2)
    share: float = field(default=0.0, metadata=LATER)
    name: str | None = field(default=None, metadata=LATER)


def test_later_fields_are_left_out_at_their_defaults_and_only_there():
    assert plain(Recipe()) == {"steps": [1, 2]}
    assert plain(Recipe((1, 2), 0.0, None)) == {"steps": [1, 2]}
    assert plain(Recipe((), 0.1)) == {"steps": [], "share": 0.1}
    assert plain(Recipe((3,), 0.0, "")) == {"steps": [3], "name": ""}


def test_an_identity_is_a_hash_of_the_values_whatever_their_order():
    """Anyone can compute it; Python's own hash would differ from process to process."""
    value = {"b": [1, 2.5], "a": {"d": None, "c": "é"}}
    text = json.dumps(value, sort_keys=True).encode()
    assert identity(value) == hashlib.blake2b(text, digest_size=6).hexdigest()
    assert identity(dict(reversed(value.items()))) == identity(value)
    assert identity({**value, "b": [1, 2.6]}) != identity(value)


def test_checksums_are_of_128_bits():
    assert checksum(b"") == hashlib.blake2b(b"", digest_size=16).hexdigest()
    assert len(checksum(b"x")) == 32
    assert checksum(b"x") != checksum(b"y")
