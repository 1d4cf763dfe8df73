"""Choices: tasks as the command line offers them, by name."""

from typing import Annotated, Any, Union

import tyro

from tinylatent.cli.terminal import description
from tinylatent.lab.tasks import TASKS

_kinds = tuple(
    Annotated[kind, tyro.conf.subcommand(name, prefix_name=False, description=description(kind.__doc__))]
    for name, kind in TASKS.loaded().items()
)
AnyTask: Any = Union[_kinds]  # noqa: UP007 - the members are only known at run time
"""A registered task with its settings, chosen by name."""
