"""Identities are hashes of JSON values; only fields that differ from their defaults stand in them."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from tinylatent.core.identity import checksum, identity, plain, sealed


@dataclass(frozen=True)
class Recipe:
    """Fields of every kind that settings have."""

    share: float = 0.0
    name: str | None = None
    steps: tuple[Any, ...] = (1, 2)
    words: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Grown(Recipe):
    """The same with a field that came later."""

    clip: float | None = None


@pytest.mark.parametrize(
    ("recipe", "written"),
    [
        (Recipe(), {}),
        (Recipe(0.0, None, (1, 2), []), {}),
        (Recipe(share=0), {}),
        (Recipe(share=1), {"share": 1.0}),
        (Recipe(name=""), {"name": ""}),
        (Recipe(steps=()), {"steps": []}),
        (Recipe(steps=((1, 2), (3,))), {"steps": [[1, 2], [3]]}),
        (Recipe(0.1, "a", (3,), ["b"]), {"share": 0.1, "name": "a", "steps": [3], "words": ["b"]}),
    ],
)
def test_only_what_differs_from_its_default_is_written(recipe, written):
    assert plain(recipe) == written
    assert json.dumps(plain(recipe)) == json.dumps(written)  # 1 and 1.0 are equal, their JSON is not


def test_a_field_that_comes_later_leaves_earlier_values_as_they_were():
    assert plain(Grown(0.5, "a")) == plain(Recipe(0.5, "a"))
    assert plain(Grown(clip=1.0)) == {"clip": 1.0}


def test_a_field_without_a_default_is_always_written():
    @dataclass(frozen=True)
    class Named:
        name: str

    assert plain(Named("")) == {"name": ""}


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


def test_a_seal_is_of_all_else():
    value = sealed({"a": 1, "b": [0.1]})
    assert value == sealed(value)
    assert json.loads(json.dumps(value)) == value
    assert {**value, "a": 2} != sealed({**value, "a": 2})
