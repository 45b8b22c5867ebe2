"""What a cell's results depend on, as one document: two cells are the same where their documents are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from bayeslora.grid.fields import counting_fields

# Raised by hand where a mend changes results, so that no table mixes those of before with those of after: of all
# methods ("") or of one class.
SCHEMAS = {"": 1}


def document(
    config: Mapping[str, Any], reads: Mapping[str, Any], seed: int, threads: int, training: str | None, checkpoint: str
) -> dict[str, Any]:
    """What a cell's results depend on.

    Args:
        config: Its resolved configuration, see :func:`~bayeslora.grid.fields.counting_fields`.
        reads: What it reads, by content: base, tokenizer, adapter, questions.
        seed: Its seed.
        threads: Its CPU threads.
        training: Fingerprint of the cell whose training it uses; None where it trains itself.
        checkpoint: Which checkpoint it tests.
    """
    fields = counting_fields(config)
    names = {str(value).rpartition(".")[2] for key, value in fields.items() if key.endswith("class_path")}
    names |= {entry[0].rpartition(".")[2] for entry in fields.get("trainer.callbacks") or []}
    return {
        "configuration": fields,
        "reads": dict(reads),
        "seed": seed,
        "threads": threads,
        "training": training,
        "checkpoint": checkpoint,
        "schemas": {name: number for name, number in SCHEMAS.items() if name in names | {""}},
    }


def fingerprint(found: Mapping[str, Any]) -> str:
    """A short name for a document."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]
