"""Plain values: the JSON of an experiment, in every form that was ever written, and its parts made of it again.

Forms: 1 is the first edition's (shape, rate, batch, problems, room), which is lifted when read; 2 is today's.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

import msgspec
from tinylatent_tasks.checks import short

from tinylatent.core.identity import plain
from tinylatent.core.registry import Registry
from tinylatent.lab.run import NotInstalledError
from tinylatent.methods import METHODS
from tinylatent.objectives.method import Method

PARTS = ("task", "method", "model", "shape", "hf", "text", "training", "seeds", "start")
"""The objects in an experiment's JSON, in all forms."""
RENAMED = {
    "task": {"room": "capacity"},
    "training": {"batch": "batch_size", "rate": "learning_rate", "problems": "num_train"},
}
"""Fields of form 1 by the names they have now."""


def anywhere(run: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a run without the paths of its model and lines, which stand beside checksums of what is there."""
    found = dict(run)
    for name in ("hf", "task"):
        if isinstance(found.get(name), dict) and "digest" in found[name]:
            found[name] = {field: value for field, value in found[name].items() if field != "path"}
    return found | ({"start": anywhere(found["start"])} if isinstance(found.get("start"), dict) else {})


def check_objects(values: Any) -> None:
    """TypeError unless an experiment's JSON is an object, and so is every part of it that is known."""
    if not isinstance(values, dict):
        raise TypeError(f"it is {short(values)} and no object")
    for name, part in values.items():
        if name in PARTS and not isinstance(part, dict):
            raise TypeError(f"its {short(name)} is {short(part)} and no object")


def lifted(values: dict[str, Any]) -> dict[str, Any]:
    """The JSON of an experiment in today's form, from any form that was ever written."""
    if "version" in values:
        return values
    found: dict[str, Any] = {"version": 2, **{name: value for name, value in values.items() if name != "shape"}}
    found["model"] = values["shape"]
    for part, names in RENAMED.items():
        found[part] = {names.get(name, name): value for name, value in values[part].items()}
    if "start" in values:
        found["start"] = lifted(values["start"])
    return found


def written_method(method: Method) -> dict[str, Any]:
    """A method as plain values: name, version, and every setting that is not the default."""
    return {"name": method.name, "version": method.version, **plain(method)}


def read_method(values: dict[str, Any]) -> Method:
    """The method that wrote these values.

    Raises:
        NotInstalledError: it is not installed, or not in the version that wrote this.
        KeyError, TypeError: name or version is missing, a setting is unknown or its value of another type.
        ValueError: a value is out of range.
    """
    settings = dict(values)
    kind, version = installed(METHODS, settings.pop("name"), "method"), settings.pop("version")
    if version != kind.version:
        raise NotInstalledError(
            f"written by version {version} of method {kind.name}, this is {kind.version}: train it again"
        )
    method: Method = made(kind, "method", settings)
    return method


def made(kind: Callable[..., Any], part: str, values: dict[str, Any]) -> Any:
    """A part of an experiment from its settings, plain values as in JSON.

    Types that JSON does not know, which a package may have, are not checked.

    Raises:
        TypeError: a setting is unknown, or its value is not of the field's type; the message names it.
        ValueError: a value is out of range.
    """
    try:
        types = get_type_hints(kind)
    except Exception:
        types = {}
    known = {field.name for field in fields(kind)} if is_dataclass(kind) else values.keys()
    for name, value in values.items():
        if name not in known:
            raise TypeError(f"{part} has the unknown setting {short(name)}")
        try:
            with suppress(TypeError, _UncheckableError):
                msgspec.convert(value, types.get(name, Any), dec_hook=_unchecked)
        except (msgspec.ValidationError, UnicodeError) as error:  # half a surrogate pair is no text to msgspec
            raise TypeError(f"{part}.{name} is {short(value)} ({error})") from error
    return kind(**{name: _within(types.get(name), f"{part}.{name}", value) for name, value in values.items()})


def _within(kind: Any, name: str, value: Any) -> Any:
    """A setting from its plain value: tuples for lists, and a dataclass for an object where the field is of one."""
    if isinstance(value, dict):
        own: Any = next((each for each in (kind, *get_args(kind)) if is_dataclass(each)), None)
        return value if own is None else made(own, name, value)
    return _tupled(value)


class _UncheckableError(Exception):
    """A type that JSON does not know."""


def _unchecked(kind: Any, value: Any) -> Any:
    """Says that a type cannot be checked."""
    raise _UncheckableError


def _tupled(value: Any) -> Any:
    """The value with tuples for the lists of JSON, inside one another too."""
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def installed(registry: Registry[Any], name: str, word: str) -> Any:
    """What a stored run names, or a clear word that it is not there."""
    if name not in registry:
        raise NotInstalledError(
            f"not an experiment this version can read: {word} {name!r} is not installed, there are "
            f"{', '.join(registry)}; install the package that brings it"
        )
    return registry[name]
