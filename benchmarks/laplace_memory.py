"""What Laplace posteriors of Llama-2-7B's LoRA need: a computed table, nothing is run.

    python benchmarks/laplace_memory.py

LoRA r = 8 on q_proj, v_proj and lm_head. With N questions of C options there are m = N (C - 1) rows of P numbers. The
full matrix keeps the rows in RAM or on disk (bfloat16), six Gram matrices of m x m (float64) and three more of that
size while they are decomposed; what it predicts with are directions, at most m of them, P numbers each (bfloat16). A
card holds the base in nf4, the Jacobian and the activations of a batch, and the Gram matrices or the directions.
"""

from __future__ import annotations

from bayeslora.curvature.kfac import RANK as RANK_OF_FACTORS
from bayeslora.posteriors.laplace.factors import OVERSAMPLING

GB = 1e9
RANK, HIDDEN, LAYERS, VOCABULARY = 8, 4096, 32, 32000
SITES = [(HIDDEN, HIDDEN)] * (2 * LAYERS) + [(HIDDEN, VOCABULARY)]  # inputs and outputs of q and v, then of the head
P = sum(RANK * (inputs + outputs) for inputs, outputs in SITES)
TASKS = {  # training questions and options
    "WG-S": (640, 2),
    "ARC-C": (1119, 4),
    "ARC-E": (2251, 4),
    "WG-M": (2558, 2),
    "OBQA": (4957, 4),
    "BoolQ": (9427, 2),
}
CARDS = (24, 48, 141)
BASE = 4.0 * GB  # nf4 layers with their scales, bfloat16 embedding and head
BATCH, TOKENS = 4, 300
ACTIVATIONS = BATCH * TOKENS * LAYERS * 2 * (12 * HIDDEN + 4 * 11008)  # of one forward pass with its graph, bfloat16
CELLS, COPIES = 6, 3


def rows_bytes(questions: int, options: int) -> float:
    """The Jacobians of the training questions, bfloat16."""
    return questions * (options - 1) * P * 2


def gram_bytes(m: int) -> float:
    """Gram matrices by cell, and what their decomposition needs."""
    return (CELLS + COPIES) * m**2 * 8


def kronecker_bytes() -> float:
    """Sums for Kronecker factors: sketches of the long sides, the short sides in full; float64."""
    long = (size for pair in SITES for size in pair)
    return sum(8 * (size * (RANK_OF_FACTORS + OVERSAMPLING) + RANK**2) for size in long)


def working_bytes(options: int) -> float:
    """Base, activations and a batch's Jacobian (float32) on the card."""
    return BASE + ACTIVATIONS + BATCH * (options - 1) * P * 4


def row(task: str) -> str:
    """One line of the table."""
    questions, options = TASKS[task]
    m = questions * (options - 1)
    cells = [task, f"{m}", f"{rows_bytes(questions, options) / GB:.1f}", f"{gram_bytes(m) / GB:.2f}"]
    for card in CARDS:
        free = card * GB - working_bytes(options)
        if gram_bytes(m) > free:
            cells.append("Gram on the CPU")
            continue
        directions = min(m, int(free // (2 * P)))
        cells.append("all" if directions == m else f"{directions} ({100 * directions / m:.0f} %)")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run the script: see its first lines."""
    two, four = (working_bytes(options) / GB for options in (2, 4))
    print(f"P = {P}; base, activations and a batch's Jacobian: {two:.1f} GB for C = 2, {four:.1f} for C = 4")
    kronecker, diagonal = kronecker_bytes() / GB, 8 * P / GB
    print(f"for any N: Kronecker sums at rank {RANK_OF_FACTORS} {kronecker:.2f} GB, diagonal {diagonal:.2f} GB\n")
    heads = " | ".join(f"directions on {card} GB" for card in CARDS)
    print(f"| task | m | rows, GB | Gram and eigenvectors, GB | {heads} |")
    print("|---" * (4 + len(CARDS)) + "|")
    for task in TASKS:
        print(row(task))


if __name__ == "__main__":
    main()
