"""docs/records.md, written from the classes of records: `python -m tests.schema > docs/records.md`.

A field's name and default are those of the class, its type and meaning those of the source: the annotation, and the
string below it.
"""

import ast
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import msgspec

from tinylatent.lab.records import ExperimentRecord
from tinylatent.lab.run import Record
from tinylatent.lab.study import STUDIES

INTRODUCTION = """\
# Records

A line of `runs.jsonl` is the record of one run, a JSON object: what was run, what came of it, and where. Tables,
figures and findings are made from these lines alone, by `tinylatent rebuild`. A finished run has the same object in its
own folder, as `result.json`, with a `seal` beside: a checksum of all else. A file that differs from its seal is
refused; one without a seal is believed, as earlier versions wrote none. The JSON is standard: every number is finite.

**Forms.** Records of form 1, of the first edition, have no field `version`. They stay as they were written and are
lifted when they are read: `experiment` is `run`, and in it `shape` is `model`, and `room`, `rate`, `batch`, `problems`
are `capacity`, `learning_rate`, `batch_size`, `num_train`; `environment` is `environments.measuring`; `constant` is
`majority_baseline`, `attainable` is `accuracy_ceiling`, `ladder` is `levels`, and the evaluation `itself` is `default`;
in `metrics`, `rate` is `learning_rate` and `silent_groups` is `frac_reward_zero_std`. What form 1 did not write down is
absent. Form 2 is described below. A form that this program does not know is refused.

**Ids.** `id` is a hash of `run` (of `experiment`, in form 1) as the JSON was written: BLAKE2b of 6 bytes over
`json.dumps(run, sort_keys=True)`. It is checked before anything is lifted, so a record whose run was changed by hand is
refused. So is one of form 2 whose run is not what this program writes for its settings, whatever its id. A lifted
record keeps the id that was written. The id of a check of the ledger leaves its seed out.

**Defaults.** In `run` a setting at its default is left out, so that a setting which is added later changes no id; a
default changes only with a new `version`. In the record a field with a default (written behind its type) is left out
where it has that value. All others are there, and a field that is not listed here is an error.

**Runs.** The `run` of an experiment has `version`; `task` (`name` and its settings); `method` (`name`, `version` and
its settings); `model`; `training`; `seeds` (`split`, `init`, `order`, `sampling`); and `start`, the run whose weights
it began with, if there is one. `tinylatent run --help` lists every setting. Runs of other kinds have settings of their
own.
"""


def render() -> str:
    """The whole page."""
    return INTRODUCTION + "".join(map(_section, kinds()))


def kinds() -> list[type]:
    """Every class of records of this project, each behind the one it is part of."""
    found: dict[type, None] = {}
    for root in [Record, ExperimentRecord, *(STUDIES[name].kind.record for name in STUDIES)]:
        if root.__module__.startswith("tinylatent"):
            _collect(root, found)
    return [*found]


def _collect(kind: type, found: dict[type, None]) -> None:
    """Adds a class of records and, behind it, the classes of its fields."""
    if kind in found:
        return
    found[kind] = None
    hints = get_type_hints(kind)
    for name in own_fields(kind):
        for part in _classes(hints[name]):
            _collect(part, found)


def _classes(hint: Any) -> Iterator[type]:
    """The structs and dataclasses in a type."""
    if isinstance(hint, type) and (issubclass(hint, msgspec.Struct) or dataclasses.is_dataclass(hint)):
        yield hint
    for part in get_args(hint):
        yield from _classes(part)


def own_fields(kind: type) -> dict[str, tuple[str, str]]:
    """Annotation and meaning of every field that a class does not inherit, by its name in Python."""
    tree = ast.parse(inspect.getsource(kind)).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for line, below in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            found[line.target.id] = ast.unparse(line.annotation), str(below.value.value) if said else ""
    return found


def _section(kind: type) -> str:
    """One class as a table."""
    base = " It has the fields of every record, and:" if Record in kind.__bases__ else ""
    about = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
    cells = ((f"`{name}`", f"`{hint}`", " ".join(meaning.split())) for name, hint, meaning in fields(kind))
    rows = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in cells]
    lines = [f"## {kind.__name__}", "", about + base, "", "| field | type | meaning |", "| --- | --- | --- |", *rows]
    return "\n" + "\n".join(lines) + "\n"


def fields(kind: type) -> Iterator[tuple[str, str, str]]:
    """Name in JSON, type with the default, and meaning of every field that a class does not inherit."""
    written = {each.name: each for each in _all_fields(kind)}
    for name, (hint, meaning) in own_fields(kind).items():
        default = _default(written[name])
        yield getattr(written[name], "encode_name", name), hint + default, meaning


def _all_fields(kind: Any) -> Any:
    """Every field of a struct or dataclass, inherited ones included."""
    return msgspec.structs.fields(kind) if issubclass(kind, msgspec.Struct) else dataclasses.fields(kind)


def _default(field: Any) -> str:
    """What stands for a field that is left out; nothing where it never is."""
    if field.default not in (msgspec.NODEFAULT, dataclasses.MISSING):
        return f" = {field.default!r}"
    if field.default_factory not in (msgspec.NODEFAULT, dataclasses.MISSING):
        return f" = {field.default_factory()!r}"
    return ""


if __name__ == "__main__":
    print(render(), end="")
