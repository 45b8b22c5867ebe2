"""Files of the story in docs/story.md, out of CLINC150 (Larson et al., 2019; CC-BY 3.0, github.com/clinc/oos-eval).

    python benchmarks/intents.py data_full.json data/intents      # writes the files
    python benchmarks/intents.py --answers answers.jsonl          # what became of the promise

Messages of the banking domain, 15 intents with 150 messages each, shuffled once: 200 to train on, 200 to calibrate on,
300 to test on, and 1,000 to be answered, whose intent stays beside them so that errors can be counted afterwards.
``elsewhere.jsonl`` holds 1,200 messages that belong to none of the intents.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path

INTENTS = (
    "account_blocked", "balance", "bill_balance", "bill_due", "freeze_account", "interest_rate", "min_payment",
    "order_checks", "pay_bill", "pin_change", "report_fraud", "routing", "spending_history", "transactions", "transfer",
)  # fmt: skip
PARTS = {"train": 200, "calibration": 200, "test": 300, "new": 1000}


def write(source: Path, folder: Path) -> None:
    """Write the files; the same ones every time."""
    found = json.loads(source.read_text())
    splits = ("train", "val", "test")
    messages = sorted({(text, intent) for split in splits for text, intent in found[split] if intent in INTENTS})
    random.Random(0).shuffle(messages)
    folder.mkdir(parents=True, exist_ok=True)
    rest = iter(messages)
    for part, count in PARTS.items():
        label = "intent" if part == "new" else "label"
        chosen = [next(rest) for _ in range(count)]
        _lines(folder / f"{part}.jsonl", ({"sentence": text, label: intent} for text, intent in chosen))
    elsewhere = [text for split in splits for text, _ in found[f"oos_{split}"]]
    _lines(folder / "elsewhere.jsonl", ({"sentence": text, "intent": None} for text in elsewhere))
    for name in ("new", "elsewhere"):  # a folder that is trained on holds its own parts alone
        (folder / f"{name}.jsonl").rename(folder.parent / f"{name}.jsonl")


def _lines(file: Path, rows: Iterable[dict[str, str | None]]) -> None:
    numbered = ({"id": f"{file.stem}-{number}", **row} for number, row in enumerate(rows))
    file.write_text("".join(json.dumps(row) + "\n" for row in numbered))


def outcome(answers: Path) -> dict[str, int]:
    """How many messages were answered, and how many of those wrongly."""
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    answered = [row for row in rows if not row["abstain"]]
    return {
        "messages": len(rows),
        "answered": len(answered),
        "wrong": sum(row["options"][row["choice"]] != row["intent"] for row in answered),
        "wrong if all were answered": sum(row["options"][row["choice"]] != row["intent"] for row in rows),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--answers", type=Path)
    given = parser.parse_args()
    if given.answers is not None:
        print(json.dumps(outcome(given.answers)))
    elif given.source is None or given.folder is None:
        parser.error("give data_full.json and the folder to write, or --answers")
    else:
        write(given.source, given.folder)
