"""Stored studies that this package reads: full results of the laboratory, from the working directory or a checkout."""

from dataclasses import dataclass
from pathlib import Path

from tinylatent.core.files import DamagedError
from tinylatent.core.identity import checksum

PLACES = (Path("results"), Path(__file__).resolve().parents[2] / "results")
"""Folders of results, where the first that holds a file counts: the working directory's, then this checkout's."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a stored study, as it was read."""

    path: Path
    data: bytes

    @property
    def text(self) -> str:
        """Its text."""
        return self.data.decode("utf-8")

    @property
    def checksum(self) -> str:
        """Its hash, so that a record can say which file stood beside it."""
        return checksum(self.data)

    def damaged(self, study: str, error: object) -> DamagedError:
        """What to raise where the file does not hold what the study writes."""
        return DamagedError(f"{self.path} is not what study {study} writes ({error}): run tinylatent rebuild {study}")


def stored(study: str, name: str) -> StoredFile:
    """A file of a stored study.

    Raises:
        DamagedError: no folder of results holds it.
    """
    for place in PLACES:
        path = place / study / name
        if path.is_file():
            return StoredFile(path, path.read_bytes())
    raise DamagedError(
        f"{study}/{name} is missing in {PLACES[0].resolve()} and in {PLACES[1]}: this reads the full results of study "
        f"{study}; start it in a checkout of the repository, which holds them, or make them here with tinylatent "
        f"reproduce {study} --profile full --results {PLACES[0]}"
    )
