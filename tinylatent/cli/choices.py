"""Choices: the registered tasks and methods as the command line offers them, by name."""

from collections.abc import Mapping
from typing import Annotated, Any, Union

import tyro

from tasks import REGISTRY
from tinylatent.methods import METHODS


def _choice(registry: Mapping[str, Any]) -> Any:
    """A union of registered dataclasses for tyro, named as registered."""
    kinds = tuple(Annotated[kind, tyro.conf.subcommand(name, prefix_name=False)] for name, kind in registry.items())
    return Union[kinds]  # noqa: UP007 - the members are only known at run time


AnyTask: Any = _choice(REGISTRY)
AnyMethod: Any = _choice(METHODS)
