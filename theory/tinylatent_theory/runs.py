"""Runs of this package as JSON: their version and the settings that differ from the defaults.

So a setting that is added later, with a default, changes no id, and what was stored before can still be read.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Self

from tinylatent.core.identity import plain
from tinylatent.lab.run import Run


class PlainRun(Run):
    """A run whose fields are plain values. Subclasses are frozen dataclasses."""

    def to_json(self) -> dict[str, Any]:
        """The version and every setting that is not the default."""
        return {"version": self.version, **plain(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The run that these values of today's version describe.

        Raises:
            ValueError: another version wrote them, or a setting is missing or unknown.
        """
        settings = {name: value for name, value in values.items() if name != "version"}
        if values.get("version") != cls.version:
            raise ValueError(
                f"written by version {values.get('version')} of {cls.__name__}, this is {cls.version}: measure it again"
            )
        try:
            return cls(**settings)
        except TypeError as error:
            raise ValueError(f"not the settings of a {cls.__name__} ({error}): measure it again") from error

    @classmethod
    def lift(cls, written: dict[str, Any]) -> dict[str, Any]:
        """A record in today's form with a run of today's version.

        Raises:
            ValueError: the record's form is not that of its body, or its run is none of this kind.
        """
        form = written.get("version", 1)
        if (form == 1) != ("experiment" in written):
            raise ValueError(f"it says that it is of form {form} and is of another: it was changed, measure it again")
        record = super().lift(written)
        if form == 1:
            cls.lift_run(record)
        cls.from_json(record["run"])
        return record

    @classmethod
    @abstractmethod
    def lift_run(cls, record: dict[str, Any]) -> None:
        """Rewrites the run of a record of form 1, and what else changed with it, in place.

        Raises:
            ValueError: it is no run of this kind.
        """


def settings_of(run: Mapping[str, Any], purpose: str, version: int) -> dict[str, Any]:
    """The settings of a run that kept its seed apart, under "seeds" by its purpose, with the seed among them.

    Raises:
        ValueError: its seeds are not one whole number of this purpose.
    """
    seeds = run.get("seeds")
    seed = seeds.get(purpose) if isinstance(seeds, dict) and len(seeds) == 1 else None
    if type(seed) is not int:
        raise ValueError(f"its seeds are {seeds}: expected one whole number, named {purpose!r}; measure it again")
    return {**{name: value for name, value in run.items() if name != "seeds"}, "version": version, "seed": seed}
