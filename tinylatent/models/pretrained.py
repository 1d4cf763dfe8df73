"""Pretrained: which model of transformers a run begins with, as plain settings; loading it is `huggingface_loading`."""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from tinylatent.core.identity import checksum, file_checksum
from tinylatent.models.huggingface_lora import LoRA

Precision = Literal["float32", "bfloat16", "float16"]
Attention = Literal["sdpa", "eager"]
CONFIG = "config.json"
WEIGHTS = ("*.safetensors", "*.bin")
"""Patterns of the files that hold weights."""
WORDS = (
    "added_tokens.json", "chat_template.jinja", "merges.txt", "special_tokens_map.json", "tokenizer.json",
    "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
"""Files that say what text its tokens are."""


@dataclass(frozen=True)
class Pretrained:
    """A causal language model of transformers in a folder, with its tokenizer.

    Raises ValueError for an unknown precision or kind of attention.
    """

    path: str = field(compare=False)
    """Its folder, as `save_pretrained` writes it. Where it lies is no part of a run's identity; what is in it is."""
    digest: str = ""
    """Checksum of its weights and configuration; found when a run is made."""
    dtype: Precision = "float32"
    """The precision that it computes in. Logits, losses and adapters are float32 at least."""
    attention: Attention = "sdpa"
    """How transformers computes attention."""
    lora: LoRA | None = None
    """Adapters, which are then trained alone; by default the whole model is trained."""
    checkpointing: bool = False
    """Whether supervised losses compute blocks again in the backward, for less memory."""

    def __post_init__(self) -> None:
        for name, options in (("dtype", Precision), ("attention", Attention)):
            if getattr(self, name) not in get_args(options):
                raise ValueError(f"{name} {getattr(self, name)!r}: expected one of {', '.join(get_args(options))}")

    def found(self) -> "Pretrained":
        """The same with its digest, from the folder.

        Raises:
            ValueError: the folder holds no model, or another than the digest says.
        """
        digest = digest_of(self.path)
        if self.digest not in ("", digest):
            raise ValueError(
                f"{self.path} holds another model than this run was made with (checksum {digest} instead of "
                f"{self.digest}): restore it, or begin a new run"
            )
        return replace(self, digest=digest)

    def backbone(self, tokens: int, added: list[list[int]], generator: Any) -> Any:
        """The model as a Backbone; see `huggingface_loading.load_backbone`.

        Raises:
            ImportError: transformers is not installed, or peft for adapters.
        """
        from tinylatent.models.huggingface_loading import load_backbone

        return load_backbone(self.found(), tokens, added, generator)

    def tokenizer(self) -> Any:
        """Its tokenizer.

        Raises:
            ImportError: transformers is not installed.
            ValueError: the folder holds none.
        """
        from tinylatent.models.huggingface_loading import load_tokenizer

        return load_tokenizer(self.path)


def digest_of(folder: str) -> str:
    """A checksum of a model's weights, configuration, tokenizer and chat template, read once.

    Raises:
        ValueError: the folder holds no model.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"{folder} is no folder: expected one with {CONFIG} and weights, as save_pretrained writes it")
    files = [path / CONFIG, *sorted(file for pattern in WEIGHTS for file in path.glob(pattern))]
    if not files[0].exists() or len(files) == 1:
        raise ValueError(
            f"{folder} holds no model: expected a folder with {CONFIG} and weights, as save_pretrained writes it"
        )
    files += sorted(path / name for name in WORDS if (path / name).exists())
    return _digest(tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@lru_cache(maxsize=16)
def _digest(files: tuple[tuple[str, int, int], ...]) -> str:
    """The checksum of files that have not changed since they were looked at."""
    return checksum("".join(file_checksum(Path(name)) for name, _, _ in files).encode())[:16]
