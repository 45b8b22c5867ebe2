"""The model card of a run: what it is, how to use it, what its test measured, and what was promised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

from bayeslora.decisions.rule import describe
from bayeslora.files import read_object
from bayeslora.models.pretrained import EMBEDDED
from bayeslora.serving.kept import Kept

FIGURE = "reliability.png"
METRICS = "metrics.json"
_SHOWN = {
    "n": "questions",
    "accuracy": "accuracy",
    "nll": "NLL (nats)",
    "brier": "Brier",
    "ece_15": "ECE (15 bins)",
    "aurc": "area under risk-coverage",
    "epistemic": "epistemic (nats)",
}
_USE = """\
```python
from bayeslora import Predictor

predictor = Predictor.from_hub("{repo}")
answer = predictor({{"question": "...", "options": ["...", "..."]}})
print(answer.text, answer.confidence, answer.epistemic, answer.abstain, answer.reason)
```
"""
_PEFT = """
The adapter at the top of this repository is plain peft: the mean of the posterior, without its uncertainty.
"""
_LIMITS = """\
What was measured holds for questions like those of its test sets, and what is promised for questions like those that it
was calibrated on. For others the promise is void, and uncertainty is a hint.
"""


def metrics_of(run: Path | str | None) -> dict[str, Any] | None:
    """The metrics of a run's test with datasets named without folders of the machine they were on; None without."""
    file = Path(run or ".") / "test" / METRICS
    if run is None or not file.is_file():
        return None
    found = read_object(file, "test the run again")
    parts = [found, found.get("decision", {})]
    public = public_names([name for part in parts for kind in ("datasets", "ood") for name in part.get(kind, ())])
    for part in parts:
        for kind in ("datasets", "ood"):
            if kind in part:
                part[kind] = {public[name]: values for name, values in part[kind].items()}
    return found


def card(
    kept: Kept, repo: str, metrics: Mapping[str, Any] | None, figure: bool, plain: bool, license: str | None
) -> str:
    """The text of README.md, its metadata in front.

    Args:
        kept: What answers questions; its base by its id on the hub.
        repo: The repository, ``owner/name``.
        metrics: The metrics of its test, see :func:`metrics_of`.
        figure: Whether a picture of its calibration lies beside the card.
        plain: Whether a plain adapter does.
        license: Of the weights, as the hub names licences; None says nothing.
    """
    base = kept.arguments["backbone"]["pretrained"]
    parts = [
        _metadata(kept, repo, metrics, license),
        f"# {repo.rpartition('/')[2]}\n\nMultiple-choice questions answered with uncertainty by {kept.method} on "
        f"LoRA, over the base `{base}` (fingerprint `{kept.base}`). Made with bayeslora.\n",
        "## How to use it\n\n" + _USE.format(repo=repo) + (_PEFT if plain else ""),
        _measured(metrics),
        f"![Calibration: accuracy over confidence]({FIGURE})\n" if figure else "",
        _decision(kept),
        "## How questions are asked\n\n" + _asked(kept),
        "## Limits\n\n" + _LIMITS,
    ]
    return "\n".join(part for part in parts if part)


def _metadata(kept: Kept, repo: str, metrics: Mapping[str, Any] | None, license: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    base = kept.arguments["backbone"]["pretrained"]
    results = [
        EvalResult("multiple-choice", name, name, metric, round(values[metric], 6), metric_name=_SHOWN[metric])
        for name, values in (metrics or {"datasets": {}})["datasets"].items()
        for metric in ("accuracy", "nll", "brier", "ece_15")
        if values.get(metric) is not None
    ]
    data = ModelCardData(
        base_model=None if base == EMBEDDED else base,  # the hub refuses what is none of its ids
        library_name="bayeslora",
        license=license,
        tags=["bayeslora", "peft", "lora", "uncertainty", "calibration", "multiple-choice", kept.method],
        model_name=repo.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _measured(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return ""
    names = list(metrics["datasets"])
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    for key, label in _SHOWN.items():
        cells = [_cell(metrics["datasets"][name].get(key)) for name in names]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "## What its test measured\n\n" + "\n".join(lines) + "\n"


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _decision(kept: Kept) -> str:
    if kept.rule is None:
        return "## When it abstains\n\nNever: it has no decision rule. `answer.abstain` is None.\n"
    lines = "\n".join(f"- {line}" for line in describe(kept.rule))
    return f"## When it abstains\n\nAt a risk of {100 * kept.rule.risk:g} %; its rule promises:\n\n{lines}\n"


def _asked(kept: Kept) -> str:
    asked = kept.prompting
    name = asked.protocol if isinstance(asked.protocol, str) else asked.protocol.get("name", "its own")
    text = f"Protocol `{name}`, at most {asked.max_length} tokens, {asked.shots} worked examples"
    if asked.shots:
        text += f"; {len(asked.examples)} training questions are therefore part of `serving/serving.json`"
    chat = ", in the tokenizer's chat template" if asked.chat else ""
    orders = f", averaged over {asked.permutations} orders of the options" if asked.permutations > 1 else ""
    return f"{text}{chat}{orders}. Logits are divided by a temperature of {kept.temperature:.4g}.\n"


def public_names(names: Iterable[str]) -> dict[str, str]:
    """Names of datasets without the folders that files of one's own are in; those that would be alike are numbered.

    Args:
        names: The datasets.

    Example:
        >>> public_names(["arc_easy", "jsonl:/home/a/x.jsonl", "jsonl:/home/b/x.jsonl"])
        {'arc_easy': 'arc_easy', 'jsonl:/home/a/x.jsonl': 'jsonl:x.jsonl', 'jsonl:/home/b/x.jsonl': 'jsonl:x.jsonl (2)'}
    """
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        kind, colon, place = name.partition(":")
        short = f"{kind}{colon}{place.rstrip('/').rpartition('/')[2]}" if "/" in place else name
        others = (f"{short} ({number})" for number in count(2))
        found[name] = next(one for one in chain([short], others) if one not in found.values())
    return found
