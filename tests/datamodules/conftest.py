"""A byte-level tokenizer, small question files, and where the benchmarks lie."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORDS = ["sun", "moon", "river", "stone", "force", "light", "heat", "plant", "animal", "water", "energy", "metal"]


@pytest.fixture(scope="session")
def byte_level() -> Any:
    """A byte-level BPE tokenizer with a BOS, as GPT-2's and Llama-3's families have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs = [(a, b) for a in WORDS for b in WORDS]
    body = "Question: {0} {1}\nA. {0}\nB. {1}\nC. {0}\nD. {1}\nE. {1}\nAnswer: {2}"
    text = [body.format(a, b, letter) for letter in "ABCDE" for a, b in pairs]
    core.train_from_iterator(text, trainer)
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows (or raw lines) to a file below the test's folder."""

    def write(name: str, rows: list[Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


def make_rows(n: int, seed: int = 0, prefix: str = "q") -> list[dict[str, Any]]:
    """Questions of varying length with three to five options."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        options = rng.sample(WORDS, rng.choice([3, 4, 5]))
        text = " ".join(rng.choices(WORDS, k=rng.randint(2, 30)))
        rows.append({"id": f"{prefix}{i}", "question": text, "options": options, "label": rng.randrange(len(options))})
    return rows


@pytest.fixture
def question_folder(write_jsonl: Callable[..., Path]) -> Path:
    """37 questions to train on, 10 to validate and 11 to test on."""
    for seed, (split, n) in enumerate({"train": 37, "validation": 10, "test": 11}.items()):
        path = write_jsonl(f"questions/{split}.jsonl", make_rows(n, seed, split))
    return path.parent


@pytest.fixture(scope="session")
def data_dir() -> str:
    """The folder of the public benchmarks' files."""
    folder = Path(os.environ.get("BAYESLORA_DATA", Path(__file__).parents[2] / ".." / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no benchmark files at {folder}; set BAYESLORA_DATA to a folder that has them")
    return str(folder)


@pytest.fixture(scope="session")
def real_tokenizer(data_dir: str) -> Callable[[str], Any]:
    """Loads a real tokenizer that lies beside the benchmarks."""
    from transformers import AutoTokenizer

    def load(name: str) -> Any:
        folder = Path(data_dir).parent / "tokenizers" / name
        if not folder.is_dir():
            pytest.skip(f"no tokenizer at {folder}")
        return AutoTokenizer.from_pretrained(folder)

    return load
