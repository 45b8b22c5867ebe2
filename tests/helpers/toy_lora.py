"""Small float64 networks of LoRA layers on vectors, with plain formulas to hold against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.models.sites import SiteContext, SiteLinear
from bayeslora.types import AnswerBatch, AnswerOutput

RANK = 2


class LoRALinear(nn.Module):
    """``W x + 2 B A x`` with a fixed W."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
        self.A = nn.Linear(inputs, RANK, bias=False)
        self.B = nn.Linear(RANK, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * self.B(self.A(x))


class MeanPool(nn.Module):
    """The mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-2)


class ToyModel(nn.Module):
    """An AnswerModel for vectors: a batch's ids pick rows of ``inputs [N, D]`` or ``[N, T, D]``."""

    def __init__(self, network: nn.Sequential, inputs: Tensor) -> None:
        super().__init__()
        self.network, self.inputs = network, inputs
        context = SiteContext()
        for index, (path, module) in enumerate(list(network.named_modules())):
            if type(module) is nn.Linear and module.weight.requires_grad:
                network.set_submodule(path, SiteLinear.adopt(module, path, index, context))

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}

    def forward(self, batch: AnswerBatch) -> AnswerOutput:
        return AnswerOutput(self.network(self.inputs[batch.example_id]))


def lora_mlp(size: int = 8, options: int = 3, seed: int = 0) -> nn.Sequential:
    """Two LoRA layers on vectors."""
    torch.manual_seed(seed)
    return nn.Sequential(LoRALinear(size, size), nn.Tanh(), LoRALinear(size, options)).double()


def batch_of(rows: Tensor, options: int, tokens: int = 1, label: Tensor | None = None) -> AnswerBatch:
    """Questions by the number of their row."""
    zeros = torch.zeros_like(rows)
    ids = zeros[:, None].expand(-1, tokens)
    fields: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    order = torch.arange(len(rows))
    return AnswerBatch(
        **fields,
        example_of_row=order,
        option_of_row=zeros,
        answer_ids=torch.arange(options).expand(len(rows), -1),
        answer_mask=torch.ones(len(rows), options, dtype=torch.bool),
        label=zeros if label is None else label,
        example_id=rows,
        dataset="toy",
    )
