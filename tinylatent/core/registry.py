"""Registries: the installed entry points of a group by name, loaded on first use."""

import importlib.metadata
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Generic, TypeVar

Kind = TypeVar("Kind")


class PluginWarning(UserWarning):
    """An installed entry point cannot be loaded and is left out; the message names it and its package."""


class Registry(Mapping[str, Kind], Generic[Kind]):
    """The entry points of a group, as a mapping from names to what they load.

    Asking for one name raises ValueError if it cannot be loaded; `loaded` warns and leaves it out.

    Args:
        group: name of the entry-point group, such as "tinylatent.methods".
        word: what messages call one entry, such as "method".
        named: whether loaded objects have a `name`, which must equal their entry's.
    """

    def __init__(self, group: str, word: str, named: bool = False):
        self.group, self.word, self.is_named = group, word, named
        self._found: dict[str, Kind] = {}

    @cached_property
    def points(self) -> dict[str, importlib.metadata.EntryPoint]:
        """All entry points of the group by name, not loaded.

        Raises:
            ValueError: two packages register the same name.
        """
        found: dict[str, importlib.metadata.EntryPoint] = {}
        for point in importlib.metadata.entry_points(group=self.group):
            other = found.get(point.name)
            if other is not None and other.value != point.value:
                raise ValueError(
                    f"two packages register a {self.word} {point.name!r}: {owner(other)} and {owner(point)}; "
                    "uninstall one, or rename its entry"
                )
            found[point.name] = point
        return found

    def __getitem__(self, name: str) -> Kind:
        if name not in self._found:
            point = self.points[name]
            try:
                found = point.load()
            except Exception as error:
                raise ValueError(
                    f"the {self.word} {name!r} of {owner(point)} cannot be loaded from {point.value} "
                    f"({type(error).__name__}: {error}): repair or uninstall it"
                ) from error
            own = getattr(found, "name", None)
            if self.is_named and own != name:
                raise ValueError(
                    f"the {self.word} {name!r} of {owner(point)} is named {own!r} in {point.value}: give both one name"
                )
            self._found[name] = found
        return self._found[name]

    def loaded(self) -> dict[str, Kind]:
        """All entries that can be loaded, by name; gives a PluginWarning for every other one."""
        found = {}
        for name in self:
            try:
                found[name] = self[name]
            except ValueError as error:
                warnings.warn(f"left out: {error}", PluginWarning, stacklevel=2)
        return found

    def named(self, name: str) -> Kind:
        """The entry of this name.

        Raises:
            ValueError: there is none, or it cannot be loaded; the message lists the known names.
        """
        if name not in self:
            raise ValueError(f"unknown {self.word} {name!r}: expected one of {', '.join(self)}")
        return self[name]

    def __contains__(self, name: object) -> bool:
        return name in self.points

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.points))

    def __len__(self) -> int:
        return len(self.points)


def owner(point: importlib.metadata.EntryPoint) -> str:
    """The name of the package that brings an entry point."""
    return point.dist.name if point.dist else "an unknown package"
