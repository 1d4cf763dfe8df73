"""Extras: packages that only some users need, and what is said where one is not installed."""


class MissingExtraError(ImportError):
    """A package that an extra of this one brings is not installed."""

    def __init__(self, what: str, package: str, extra: str):
        super().__init__(f"{what} the package {package}: pip install 'tinylatent[{extra}]'")
