"""What fits which card: memory of fine-tuning Llama-2-7B by each method on six tasks; a computed table, nothing runs.

    python benchmarks/memory_table.py

Parameters, optimiser, activations and Jacobians in GB = 10^9 bytes, LoRA r = 8 on q and v, batches of 4 as long as the
longest question. Activations a token are what ``size_7b.py`` counts at the model's true width; the rest is arithmetic.
The first lines compare the arithmetic with figures that others have published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from laplace_memory import TASKS

GB, MB = 1e9, 1e6
HIDDEN, LAYERS, VOCABULARY, RANK = 4096, 32, 32000, 8
LINEAR = LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * 11008)  # weights that are quantised
EMBEDDED = 2 * HIDDEN * VOCABULARY  # embedding and head, bfloat16 always
LORA = LAYERS * 2 * RANK * 2 * HIDDEN  # q and v
BYTES = {"bf16": 2.0, "8bit": 1.0, "nf4": 0.516}  # of a weight; nf4 with its doubly quantised scales
KEPT = 156.3e3  # bytes of activations a layer keeps of a token in bfloat16: size_7b.py, two layers less one
MORE = {"bf16": 0.0, "8bit": 43e3, "nf4": 0.0}  # inputs that 8-bit layers keep beside
CONTEXT = 0.5 * GB  # of CUDA itself
WORKSPACE = 2 * HIDDEN * 11008  # one weight, dequantised
LOGITS = 2 * 4 * VOCABULARY  # two float32 copies a token, for whom the head is applied at every position
# Longest training question in Llama-2 tokens, as the DataModules write it (BoolQ's median is 157).
LENGTHS = {"WG-S": 55, "ARC-C": 202, "ARC-E": 210, "WG-M": 62, "OBQA": 139, "BoolQ": 927}
BUDGET = 20 * GB  # Laplace's max_jacobian_bytes: more directions are not kept
CARDS = (24, 48, 80, 141)
BATCH, MEMBERS, SAMPLES, SNAPSHOTS = 4, 5, 10, 20


def weights(base: str) -> float:
    """The base."""
    return LINEAR * BYTES[base] + EMBEDDED * 2


def activations(tokens: int, base: str = "nf4", checkpointed: bool = False) -> float:
    """What is kept for the backward pass of so many tokens: all of it, or layers' inputs and one layer."""
    layer = KEPT + MORE[base]
    return tokens * (LAYERS * 2 * HIDDEN + layer if checkpointed else LAYERS * layer)


def trained(parameters: float) -> float:
    """Parameters, gradients and Adam's two moments, float32."""
    return 4 * 4 * parameters


@dataclass(frozen=True)
class Published:
    """A figure of others: its source, its bytes, and ours for the same run."""

    source: str
    theirs: float
    ours: float


def published() -> list[Published]:
    """Public figures (GB), without CUDA's context, which allocators do not count."""
    every = LOGITS + 2 * VOCABULARY  # full logits, as those libraries compute them
    one, gib = 1304, 2**30
    return [
        Published("litgpt, bf16, weights", 13.52 * GB, weights("bf16")),
        Published("litgpt, nf4-dq, generation", 4.26 * GB, weights("nf4") + WORKSPACE),
        Published(
            "litgpt, bf16, 1304 tokens, no checkpointing",
            21.30 * GB,
            weights("bf16") + activations(one) + one * every + trained(LORA),
        ),
        Published(
            "litgpt, bf16, 2608 tokens, no checkpointing",
            29.07 * GB,
            weights("bf16") + activations(2 * one) + 2 * one * every + trained(LORA),
        ),
        Published(
            "fms-acceleration, bf16, 16384 tokens, checkpointed",
            24.87 * gib,
            13.66 * gib + activations(16384, checkpointed=True) + 16384 * LOGITS,
        ),
        Published(
            "fms-acceleration, nf4-dq, 16384 tokens, checkpointed",
            15.25 * gib,
            4.01 * gib + activations(16384, checkpointed=True) + 16384 * LOGITS,
        ),
    ]


# --- what a method needs above the base ------------------------------------------------------------------------------


def plain(tokens: int, rows: float, checkpointed: bool) -> float:
    """MLE and MAP: one adapter."""
    return trained(LORA) + activations(tokens, checkpointed=checkpointed)


def blob(tokens: int, rows: float, checkpointed: bool) -> float:
    """BLoB: G beside A, a draw of the noise, and a second product at each site with its signs."""
    noise = LORA / 2 * 4 * 2
    signs = LAYERS * 2 * 2 * 2 * HIDDEN * tokens  # inputs times signs, bfloat16, on q and v
    return trained(1.5 * LORA) + noise + activations(tokens, checkpointed=checkpointed) + signs


def ensemble(tokens: int, rows: float, checkpointed: bool) -> float:
    """Five members in one pass."""
    return MEMBERS * (trained(LORA) + activations(tokens, checkpointed=checkpointed))


def swag(tokens: int, rows: float, checkpointed: bool) -> float:
    """SWAG with its moments on the card: mean, squares and twenty deviations; then ten samples."""
    return plain(tokens, rows, checkpointed) + (2 + SNAPSHOTS + SAMPLES) * 4 * LORA


def laplace(tokens: int, rows: float, checkpointed: bool) -> float:
    """Laplace, full: the posterior's directions, bfloat16, up to the budget, and the Jacobian of a batch, float32."""
    return plain(tokens, rows, checkpointed) + min(rows * LORA * 2, BUDGET) + BATCH * 3 * LORA * 4


METHODS: dict[str, Callable[[int, float, bool], float]] = {
    "MLE, MAP, MC dropout": plain,
    "BLoB": blob,
    f"ensemble of {MEMBERS}": ensemble,
    "SWAG, on the card": swag,
    "Laplace, full": laplace,
}


def cell(method: str, task: str, base: str) -> str:
    """GB without and with checkpointing, and the smallest card that holds it."""
    questions, options = TASKS[task]
    tokens, rows = BATCH * LENGTHS[task], questions * (options - 1)
    fixed = weights(base) + WORKSPACE + CONTEXT
    whole, less = (fixed + METHODS[method](tokens, rows, checkpointed) for checkpointed in (False, True))
    return f"{whole / GB:.1f} / {less / GB:.1f}: {card(whole)}"


def card(needed: float) -> str:
    """The smallest card that holds so much."""
    return next((f"{size} GB" for size in CARDS if needed <= size * GB), "none")


def main() -> None:
    """Run the script: see its first lines."""
    print("| public figure | theirs, GB | ours, GB | ours / theirs |\n|---|---|---|---|")
    for one in published():
        print(f"| {one.source} | {one.theirs / GB:.2f} | {one.ours / GB:.2f} | {one.ours / one.theirs:.2f} |")
    for base in ("nf4", "bf16"):
        cards = ", ".join(map(str, CARDS))
        print(f"\n{base}: GB without / with gradient checkpointing: the smallest card of {cards} GB without it\n")
        print(f"| method | {' | '.join(f'{task}, {LENGTHS[task]} tokens' for task in TASKS)} |")
        print("|---" * (1 + len(TASKS)) + "|")
        for method in METHODS:
            print(f"| {method} | {' | '.join(cell(method, task, base) for task in TASKS)} |")


if __name__ == "__main__":
    main()
