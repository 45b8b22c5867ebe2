"""The opponent: LoRA fine-tuning as one writes it with transformers, peft and torch alone, and written well.

Shuffled batches padded on the left to their longest row, the model's own full-vocabulary forward, the last position's
logits of the options' label tokens, cross-entropy, AdamW with linear warm-up and decay. Nothing is logged or checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from measure import Meter, Round
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import get_linear_schedule_with_warmup

from bayeslora.datamodules.encode import Encoded
from bayeslora.models.loading import LoRA


class PlainLoop:
    """A model, an optimiser and an endless stream of batches.

    Args:
        base: A Hugging Face causal model, which LoRA is put on.
        lora: The adapter.
        encoded: The training questions as tokens, the same the other side gets.
        batch_size: Questions in a batch.
        steps: Optimiser steps there will be in all, for the schedule.
        device: Where the base is.
        autocast: Run forward passes under bfloat16 autocast.
    """

    def __init__(
        self,
        base: nn.Module,
        lora: LoRA,
        encoded: Sequence[Encoded],
        batch_size: int,
        steps: int,
        device: torch.device,
        autocast: bool = False,
        learning_rate: float = 1e-4,
    ) -> None:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.r,
            lora_alpha=int(lora.alpha),
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
        )
        self.network: PeftModel = get_peft_model(base, config).train()
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
        self.scheduler = get_linear_schedule_with_warmup(self.optimizer, round(0.06 * steps), steps)
        self.device, self.autocast, self.meter = device, autocast, Meter(device)
        self.loader = DataLoader(
            encoded,  # type: ignore[arg-type]
            batch_size=batch_size,
            shuffle=True,
            collate_fn=pad,
            pin_memory=device.type == "cuda",
            generator=torch.Generator().manual_seed(0),
        )
        self.batches = self._endless()

    def run(self, steps: int) -> Round:
        """Train for so many steps."""
        self.meter.start()
        for _ in range(steps):
            ids, mask, answers, exists, label = (t.to(self.device, non_blocking=True) for t in next(self.batches))
            loss = self.loss(ids, mask, answers, exists, label)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.meter.add(mask)
        return self.meter.stop()

    def loss(self, ids: Tensor, mask: Tensor, answers: Tensor, exists: Tensor, label: Tensor) -> Tensor:
        """Cross-entropy over the options' label tokens at the last position."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            logits = self.network(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -1]
        options = logits.float().gather(1, answers).masked_fill(~exists, -torch.inf)
        return nn.functional.cross_entropy(options, label)

    def _endless(self) -> Iterator[tuple[Tensor, ...]]:
        while True:
            yield from self.loader


def pad(items: Sequence[Encoded]) -> tuple[Tensor, ...]:
    """Token ids, attention mask, label tokens, which of them exist, and the right one's index."""
    rows = [item.rows[0] for item in items]
    width, most = max(map(len, rows)), max(len(item.answers) for item in items)
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    answers = torch.tensor([[*item.answers, *[0] * (most - len(item.answers))] for item in items])
    exists = torch.arange(most) < torch.tensor([[len(item.answers)] for item in items])
    return ids, mask, answers, exists, torch.tensor([item.label for item in items])
