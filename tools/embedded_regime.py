"""Is the embedded default overconfident? Plain peft LoRA on the synthetic benchmark, seed by seed.

    python tools/embedded_regime.py bayeslora/assets/tiny

Expectations under p*, mean of seeds 0, 1, 2 (96 of 120 labels for training, 100 epochs, batch 16, learning rate 5e-4):

                    accuracy  Bayes-optimal  confidence  ECE (15)   NLL    KL
    base, test        0.25        0.86          0.44       0.19     1.48   1.12
    test              0.43        0.86          0.92       0.49     3.88   3.53
      easy            0.55        0.95          0.94       0.39     2.79   2.67
      noisy           0.33        0.61          0.91       0.58     4.71   3.83
      hard            0.26        0.97          0.89       0.63     5.27   5.11
    shifted           0.40        0.89          0.92       0.53     4.26   3.97
    ood               0.24        0.85          0.90       0.66     5.55   5.18

The labels of the training questions are all hit. A learning rate of 1e-3 ends in the same place, 2e-4 at confidence
0.83.
What is not overconfident (seed 0): stopping after 15 epochs (accuracy 0.39, confidence 0.45); 800 labels and 3 epochs
(0.47, 0.45); 800 labels and 12 epochs are slightly so (0.49, 0.59).
"""

from __future__ import annotations

import argparse
import random
import time

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from bayeslora.datamodules.synthetic_process import SyntheticQuestion, questions

LETTERS = "ABCD"
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SETS = ("test", "shifted", "ood")


class Reader:
    """Questions to answer logits ``[B, 4]``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._letters = [tokenizer(f"Answer: {letter}")["input_ids"][-1] for letter in LETTERS]

    def __call__(self, model: nn.Module, batch: list[SyntheticQuestion]) -> Tensor:
        """Answer logits of a batch, padded left."""
        prompts = [
            "\n".join(
                (f"Question: {q.question}", *(f"{x}. {o}" for x, o in zip(LETTERS, q.options, strict=True)), "Answer:")
            )
            for q in batch
        ]
        inputs = self._tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        positions = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
        logits = model(**inputs, position_ids=positions, logits_to_keep=1).logits
        return logits[:, -1, self._letters].float()

    @torch.no_grad()
    def probabilities(self, model: nn.Module, pool: list[SyntheticQuestion]) -> Tensor:
        """Answer probabilities ``[N, 4]``, evaluated in order of length."""
        model.eval()
        order = sorted(range(len(pool)), key=lambda i: len(pool[i].question))
        logits = torch.cat([self(model, [pool[i] for i in order[j : j + 256]]) for j in range(0, len(order), 256)])
        return logits[torch.tensor(order).argsort()].softmax(-1)


def measure(probs: Tensor, pool: list[SyntheticQuestion]) -> dict[str, float]:
    """Expectations under p*: no label noise in any of them. Entropy, NLL and KL in nats."""
    truth = torch.tensor([question.true_probs for question in pool])
    confidence, answer = probs.max(1)
    right = truth.gather(1, answer[:, None]).squeeze(1)
    bins = (confidence * 15).ceil().long().clamp(1, 15) - 1
    gaps = torch.zeros(15).index_add(0, bins, confidence - right)
    nll = -(truth * probs.clamp_min(1e-12).log()).sum(1)
    labels = torch.tensor([question.label for question in pool])
    return {
        "labels hit": (answer == labels).float().mean().item(),
        "accuracy": right.mean().item(),
        "Bayes": truth.max(1).values.mean().item(),
        "confidence": confidence.mean().item(),
        "ECE": gaps.abs().sum().item() / len(pool),
        "NLL": nll.mean().item(),
        "KL": (nll + torch.special.xlogy(truth, truth).sum(1)).mean().item(),
        "entropy": torch.special.entr(probs).sum(1).mean().item(),
        "entropy*": torch.special.entr(truth).sum(1).mean().item(),
    }


def finetune(model: nn.Module, read: Reader, pool: list[SyntheticQuestion], epochs: int, lr: float, batch: int) -> None:
    """AdamW with a linear schedule, 6 % of it warm-up."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    steps = epochs * -(-len(pool) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.06 * steps), 1 - step / steps)
    )
    labels = torch.tensor([question.label for question in pool])
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(pool)).split(batch):
            loss = F.cross_entropy(read(model, [pool[i] for i in rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def show(title: str, model: nn.Module, read: Reader, sets: dict[str, list[SyntheticQuestion]]) -> None:
    """One line per set, and per domain of the test set."""
    print(title)
    for name, pool in sets.items():
        probs = read.probabilities(model, pool)
        parts = {name: list(range(len(pool)))}
        if name == "test":
            parts |= {d: [i for i, q in enumerate(pool) if q.domain == d] for d in ("easy", "noisy", "hard")}
        for part, rows in parts.items():
            numbers = measure(probs[rows], [pool[i] for i in rows])
            print(f"  {part:8}", *(f"{key} {value:.3f} " for key, value in numbers.items()), flush=True)


def main() -> None:
    """Base first, then one fine-tuned model per seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--labels", type=int, default=120, help="a fifth of them is left for validation")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=5000, help="questions per set")
    args = parser.parse_args()
    read = Reader(AutoTokenizer.from_pretrained(args.folder))
    sets = {name: questions(name)[: args.limit] for name in SETS}
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32)
        if seed == 0:
            show("base", base, read, sets)
        model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=LINEARS))
        pool = random.Random(seed).sample(questions("train"), args.labels - args.labels // 5)
        start = time.perf_counter()
        finetune(model, read, pool, args.epochs, args.lr, args.batch)
        trained = time.perf_counter()
        show(f"seed {seed}", model, read, {"train": pool, **sets})
        print(f"  trained in {trained - start:.0f} s, evaluated in {time.perf_counter() - trained:.0f} s")


if __name__ == "__main__":
    main()
