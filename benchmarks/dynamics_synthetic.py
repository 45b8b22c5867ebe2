"""Do entropy and mutual information over a training tell noisy questions from hard ones, where it is known which are?

    OMP_NUM_THREADS=1 python benchmarks/dynamics_synthetic.py --seeds 10 --out runs/dynamics_synthetic

A LoRA ensemble of five members, trained as ``quickstart`` has it, is followed on draws of the embedded
benchmark's domains. Easy questions are learnable. Noisy ones are as learnable, but their answers are uncertain whoever
answers. The answers of hard ones are certain, but a sum modulo 4 that this base cannot learn. A seed draws training
questions, orders and initial weights. What is there is not made again, so that a study that was cut short goes on.

The rule, chosen on seeds 100 to 102 and to be reported on others: at the best epoch e* (by validation NLL) the domain
that has kept the largest part of the base model's entropy is the hard one; of the other two, the noisy one is that of
the larger mutual information. Contrasts, named before the run: hard - noisy and noisy - easy of each signal; mutual
information out of distribution - in distribution at every epoch; AUROC of each score at every epoch.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from measure import machine, quiet

from bayeslora.callbacks.dynamics import Dynamics
from bayeslora.commands.dynamics import analyse
from bayeslora.datamodules.synthetic import SyntheticDataModule
from bayeslora.files import replacing, write_json
from bayeslora.lightning_modules.ensemble import LoRAEnsemble
from bayeslora.metrics.intervals import over_seeds
from bayeslora.models.loading import LoRA
from bayeslora.results.dynamics.course import read_course
from bayeslora.results.dynamics.plots import detection, signature, uncertainty
from bayeslora.results.dynamics.tables import Row, markdown_text
from bayeslora.results.plots import save

DOMAINS = ("easy", "noisy", "hard")
SETS = ("ood", *DOMAINS)
EPOCHS = [5, 10, 15, 20, 30, 50, 100]
UNCERTAINTIES = ("total", "aleatoric", "epistemic")
SIGNALS = (
    "entropy_left", "aleatoric_best", "epistemic_best", "share_best", "aleatoric_last", "epistemic_last", "share_last",
)  # fmt: skip
SCORES = ("one_minus_confidence", "total", "epistemic")
MEANS = {
    "uncertainty": (*UNCERTAINTIES, "disagreement"),
    "detection": (*SCORES, "epistemic_difference"),
    "quality": ("accuracy", "accuracy_member", "nll", "nll_member", "ece_15", "ece_15_member"),
    "retention": ("retained", "acquired", "forgotten", "never", "kept", "flips"),
    "diversity": ("cosine",),
}


def main() -> None:
    """Run the script: see its first lines."""
    options = arguments()
    quiet()
    print(machine(), flush=True)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for seed in seeds:
        follow(options, seed)
        print(f"seed {seed} done", flush=True)
    found = [json.loads(result(options, seed).read_text()) for seed in seeds]
    report(found, options.out / f"seeds-{seeds[0]}-{seeds[-1]}")


def arguments() -> argparse.Namespace:
    """The options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/dynamics_synthetic"))
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--labels", type=int, default=120)
    parser.add_argument("--questions", type=int, default=400, help="of each set")
    return parser.parse_args()


def result(options: argparse.Namespace, seed: int) -> Path:
    """The file of a seed's numbers."""
    return options.out / f"seed-{seed}" / "dynamics.json"


def follow(options: argparse.Namespace, seed: int) -> None:
    """Train an ensemble and analyse its course, unless that has been done."""
    if result(options, seed).exists():
        return
    data = SyntheticDataModule(
        labels=options.labels,
        batch_size=16,
        eval_batch_size=256,
        max_test=options.questions,
        ood=[f"synthetic:{name}" for name in SETS],
        seed=seed,
    )
    module = LoRAEnsemble(members=options.members, lora=LoRA(r=8, alpha=16), learning_rate=5e-4, seed=seed)
    root = result(options, seed).parent
    L.Trainer(
        accelerator="cpu",
        max_epochs=options.epochs,
        limit_val_batches=0,
        callbacks=[Dynamics(EPOCHS, overwrite=True)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=root,
    ).fit(module, datamodule=data)
    course = read_course(root)
    truth = {name: float(torch.special.entr(answers.true_probs).sum(-1).mean()) for name, answers in known(course)}
    write_json(result(options, seed), analyse(course) | {"true_entropy": truth})


def known(course: Any) -> Iterator[tuple[str, Any]]:
    """The sets whose true probabilities are known."""
    return ((name, a) for name, a in course.epochs[0].datasets.items() if a.true_probs is not None)


def report(found: Sequence[dict[str, Any]], out: Path) -> None:
    """Means over seeds with half of their 95 % t intervals, as JSON and Markdown, and plots of the means."""
    verdicts = [named(run) for run in found]
    tables = {"signals": signals(found), "mutual information is higher": higher(found)}
    tables |= {name: means(found, name, columns) for name, columns in MEANS.items()}
    head = {
        "seeds": len(found),
        "best_epochs": [run["best_epoch"] for run in found],
        "true_entropy": found[0]["true_entropy"],
        "hard_found": sum(hard for hard, _ in verdicts),
        "noisy_found_too": sum(hard and noisy for hard, noisy in verdicts),
    }
    write_json(out / "results.json", head | {"tables": tables})
    lines = [f"{name}: {value}\n" for name, value in head.items()]
    text = "\n".join(lines + [f"## {name}\n\n{markdown_text(rows)}" for name, rows in tables.items()])
    with replacing(out / "results.md") as temporary:
        temporary.write_text(text)
    print(text)
    best = statistics.median_low(head["best_epochs"])
    shown = [with_ends(row, UNCERTAINTIES) for row in tables["uncertainty"] if row["dataset"] != "validation"]
    detected = [with_ends(row, MEANS["detection"]) for row in tables["detection"]]
    figures = {
        "uncertainty": uncertainty(shown, best),
        "signature": signature(shown),
        "detection": detection(detected, best),
    }
    for name, figure in figures.items():
        save(figure, out / f"{name}.png")


def means(found: Sequence[dict[str, Any]], table: str, columns: Sequence[str]) -> list[Row]:
    """A table of every seed, averaged row by row over the seeds in which its numbers are defined."""
    rows = []
    for same in zip(*(run["tables"][table] for run in found), strict=True):
        row: Row = {name: same[0][name] for name in ("dataset", "against", "epoch") if name in same[0]}
        for column in columns:
            row |= averaged(column, [one[column] for one in same if one[column] is not None])
        rows.append(row)
    return rows


def higher(found: Sequence[dict[str, Any]]) -> list[Row]:
    """In how many seeds mutual information is clearly higher or lower than in distribution (intervals without zero)."""
    rows: list[Row] = []
    for same in zip(*(run["tables"]["detection"] for run in found), strict=True):
        ends = [(one["epistemic_difference_low"], one["epistemic_difference_high"]) for one in same]
        row: Row = {"dataset": same[0]["dataset"], "epoch": same[0]["epoch"], "seeds": len(found)}
        rows.append(row | {"higher": sum(low > 0 for low, _ in ends), "lower": sum(high < 0 for _, high in ends)})
    return rows


def averaged(name: str, values: Sequence[float]) -> Row:
    """Mean and half of its interval; neither where nothing is defined."""
    mean, half = over_seeds(values) if values else (None, None)
    return {name: mean, f"{name}_half": half}


def with_ends(row: Row, columns: Sequence[str]) -> Row:
    """The row as the plots of a single run want it: with the ends of its intervals in place of their halves."""
    ends: Row = dict(row)
    for name in columns:
        mean, half = float(row[name] or 0), float(row[f"{name}_half"] or 0)
        ends |= {f"{name}_low": mean - half, f"{name}_high": mean + half, f"{name}_se": half}
    return ends


def of_domains(run: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The signals of each domain."""
    rows = {row["dataset"].removeprefix("synthetic:"): row for row in run["tables"]["difficulty"]}
    for row in rows.values():
        row |= {f"aleatoric_{when}": row[f"entropy_{when}"] - row[f"epistemic_{when}"] for when in ("best", "last")}
    return {domain: rows[domain] for domain in DOMAINS}


def named(run: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the rule finds the hard domain, and the noisy one among those it leaves."""
    of = of_domains(run)
    hard = max(of, key=lambda domain: of[domain]["entropy_left"])
    noisy = max(of.keys() - {hard}, key=lambda domain: of[domain]["epistemic_best"])
    return hard == "hard", noisy == "noisy"


def signals(found: Sequence[dict[str, Any]]) -> list[Row]:
    """Every signal of every domain, its two contrasts, and in how many seeds each contrast is above zero."""
    rows = []
    for signal in SIGNALS:
        of = [{domain: values[signal] for domain, values in of_domains(run).items()} for run in found]
        row: Row = {"signal": signal} | {domain: over_seeds([one[domain] for one in of])[0] for domain in DOMAINS}
        for high, low in (("hard", "noisy"), ("noisy", "easy")):
            apart = [one[high] - one[low] for one in of]
            row |= averaged(f"{high} - {low}", apart) | {f"{high} > {low}": sum(value > 0 for value in apart)}
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
