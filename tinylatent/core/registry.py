"""Registries: the installed entry points of a group by name, loaded on first use."""

import dataclasses
import importlib.metadata
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar

Kind = TypeVar("Kind")


class PluginWarning(UserWarning):
    """Something that a package installed is left out; the message names it and its package.

    Args:
        message: what is left out, and why.
        package: whose it is; who shows warnings shows one of each package.
    """

    def __init__(self, message: str, package: str = ""):
        super().__init__(message)
        self.package = package


class Registry(Mapping[str, Kind], Generic[Kind]):
    """The entry points of a group, as a mapping from names to what they load.

    Asking for one name raises ValueError if it cannot be loaded or two packages register it; `loaded` leaves it out
    with a warning.

    Args:
        group: name of the entry-point group, such as "tinylatent.methods".
        word: what messages call one entry, such as "method".
        named: whether loaded objects have a `name`, which must equal their entry's.
        expects: what an entry must be, in words, such as "a subclass of Method".
        fits: whether a loaded object is that; all are by default.
    """

    def __init__(
        self,
        group: str,
        word: str,
        named: bool = False,
        expects: str = "",
        fits: Callable[[Any], bool] = lambda found: True,
    ):
        self.group, self.word, self.is_named, self.expects, self.fits = group, word, named, expects, fits
        self._found: dict[str, Kind] = {}

    @cached_property
    def points(self) -> dict[str, importlib.metadata.EntryPoint]:
        """All entry points of the group by name, not loaded; the first of those that share a name."""
        return {name: found[0] for name, found in self._registered.items()}

    @cached_property
    def _registered(self) -> dict[str, list[importlib.metadata.EntryPoint]]:
        """All entry points of the group by name: several only where packages register different things under it."""
        found: dict[str, list[importlib.metadata.EntryPoint]] = {}
        for point in importlib.metadata.entry_points(group=self.group):
            same = found.setdefault(point.name, [])
            if all(other.value != point.value for other in same):
                same.append(point)
        return found

    def __getitem__(self, name: str) -> Kind:
        if name not in self.points:
            raise KeyError(f"unknown {self.word} {name!r}: expected one of {', '.join(self)}")
        if name not in self._found:
            self._found[name] = self._load(name)
        return self._found[name]

    def _load(self, name: str) -> Kind:
        """What an entry loads.

        Raises:
            KeyError: there is none of this name.
            ValueError: two packages register the name, or it cannot be loaded, or is not what it must be.
        """
        point, *others = self._registered[name]
        if others:
            raise ValueError(
                f"two packages register a {self.word} {name!r}: {owner(point)} and {owner(others[0])}; uninstall one, "
                "or rename its entry"
            )
        about = f"the {self.word} {name!r} of {owner(point)}"
        try:
            found = point.load()
        except Exception as error:
            raise ValueError(
                f"{about} cannot be loaded from {point.value} ({type(error).__name__}: {error}): repair or uninstall it"
            ) from error
        if not self.fits(found):
            raise ValueError(f"{about}, {point.value}, is not {self.expects}: repair or uninstall it")
        own = getattr(found, "name", None)
        if self.is_named and own != name:
            raise ValueError(f"{about} is named {own!r} in {point.value}: give both one name")
        return found

    def loaded(self) -> dict[str, Kind]:
        """All entries that can be loaded, by name; warns of the others as `leave_out` does."""
        found, errors = {}, {}
        for name in self:
            try:
                found[name] = self[name]
            except ValueError as error:
                errors[name] = str(error)
        self.leave_out(errors)
        return found

    def leave_out(self, errors: Mapping[str, str]) -> None:
        """Gives a PluginWarning for every package some of whose entries are left out.

        errors: why, by the name of the entry.
        """
        packages: dict[str, list[str]] = {}
        for name in errors:
            packages.setdefault(owner(self.points[name]), []).append(name)
        for package, (first, *others) in packages.items():
            more = f"; so {'is' if len(others) == 1 else 'are'} {', '.join(map(repr, others))}" if others else ""
            warnings.warn(PluginWarning(f"left out: {errors[first]}{more}", package), stacklevel=3)

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


def dataclass_of(base: type) -> Callable[[Any], bool]:
    """Whether something is a dataclass that inherits from a base, as a function: for `fits` of a registry."""
    return lambda found: isinstance(found, type) and issubclass(found, base) and dataclasses.is_dataclass(found)


def owner(point: importlib.metadata.EntryPoint) -> str:
    """The name of the package that brings an entry point."""
    return point.dist.name if point.dist else "an unknown package"
