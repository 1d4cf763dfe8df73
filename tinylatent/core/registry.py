"""Registries: what is installed under an entry-point group, by name, loaded when it is asked for."""

import importlib.metadata
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Generic, TypeVar

Kind = TypeVar("Kind")


class Registry(Mapping[str, Kind], Generic[Kind]):
    """The entry points of a group, as a mapping from names to what they load.

    Args:
        group: of the entry points, such as "tinylatent.methods".
        word: what one of them is called in messages.
    """

    def __init__(self, group: str, word: str):
        self.group, self.word = group, word
        self._loaded: dict[str, Kind] = {}

    @cached_property
    def _points(self) -> dict[str, importlib.metadata.EntryPoint]:
        found: dict[str, importlib.metadata.EntryPoint] = {}
        for point in importlib.metadata.entry_points(group=self.group):
            other = found.get(point.name)
            if other is not None and other.value != point.value:
                owners = " and ".join(each.dist.name if each.dist else "unknown" for each in (other, point))
                raise ValueError(
                    f"two packages register a {self.word} {point.name!r}: {owners}; uninstall one, or rename its entry"
                )
            found[point.name] = point
        return found

    def __getitem__(self, name: str) -> Kind:
        if name not in self._loaded:
            point = self._points[name]
            try:
                self._loaded[name] = point.load()
            except Exception as error:
                owner = point.dist.name if point.dist else "an unknown package"
                raise ValueError(
                    f"the {self.word} {name!r} of {owner} cannot be loaded from {point.value} ({type(error).__name__}: "
                    f"{error}): mend or uninstall it"
                ) from error
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._points))

    def __len__(self) -> int:
        return len(self._points)
