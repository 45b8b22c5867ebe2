r"""Kronecker factors from gradients and inputs token by token, for comparison and replication.

Where the rows of the Jacobian are at hand, as LoRA's are, :mod:`bayeslora.curvature.kfac` is closer to the exact
blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bayeslora.curvature.jacobian import Call, contrast_gradients
from bayeslora.curvature.kfac import RANK, KroneckerAccumulator
from bayeslora.errors import UsageError
from bayeslora.models.answer_model import AnswerModel
from bayeslora.posteriors.laplace.kronecker import KroneckerBlock
from bayeslora.posteriors.laplace.softmax import softmax_root
from bayeslora.types import AnswerBatch


class TokenAccumulator(KroneckerAccumulator):
    r"""KFAC from gradients g and inputs x token by token, in one of three ways to share weights over T tokens.

    - ``expand``: :math:`S_o = \sum_{n,t} g g^T`, :math:`S_i = \sum_{n,t} x x^T` divided by the number of all tokens;
    - ``reduce``: :math:`S_o` of :math:`\sum_t g_{nt}`, :math:`S_i` of the mean of :math:`x_{nt}` over t, divided by the
      number of rows;
    - ``release``: as ``expand``, but padding counts as tokens and the division is by N alone, which makes the curvature
      too large by about the padded length. This is what the code of Yang et al. (2024) computes.

    The first two are Eschenhagen et al., "Kronecker-factored approximate curvature for modern neural network
    architectures" (2023).

    Args:
        sharing: ``expand``, ``reduce`` or ``release``.
        shapes: As in :class:`KroneckerAccumulator`.
        rank: As in :class:`KroneckerAccumulator`.
        device: As in :class:`KroneckerAccumulator`.
    """

    def __init__(
        self,
        sharing: str,
        shapes: Mapping[str, Sequence[int]],
        rank: int | None = RANK,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(shapes, rank, device)
        self.sharing = sharing
        self.counts = dict.fromkeys(self.sums, 0)

    def update(self, model: AnswerModel, batch: AnswerBatch) -> Tensor:
        """Take in B questions; returns their logits ``[B, C]``."""

        def add(call: Call, index: int, gradient: Tensor) -> None:
            """Take in one contrast's gradient at one use."""
            self._add(call, index, gradient, batch)

        return contrast_gradients(model, batch, list(self.sums), add, softmax_root)

    @torch.no_grad()
    def _add(self, call: Call, index: int, gradient: Tensor, batch: AnswerBatch) -> None:
        if batch.whole_labels is not None:
            raise UsageError(
                "Kronecker factors token by token need labels of one token each; take structure kfac, or words of one "
                "token (end: null)"
            )
        outer, inner = call.sides(gradient)
        with torch.autocast(gradient.device.type, enabled=False):
            for name, inputs in (
                (f"{call.site.name}.weight", inner),
                (f"{call.site.name}.bias", torch.ones_like(inner[..., :1])),
            ):
                if name in self.sums:
                    self.sums[name].outer.add(self._shared(outer, batch, mean=False))
                    if index == 0:
                        self.sums[name].inner.add(self._shared(inputs, batch, mean=True))
                        self.counts[name] += self._count(inputs, batch)

    def _shared(self, values: Tensor, batch: AnswerBatch, mean: bool) -> Tensor:
        """Tokens ``[R, T, D]`` as vectors ``[M, D]``: each by itself, or one a row."""
        if self.sharing == "release":
            return values.flatten(0, 1)
        mask = _token_mask(values, batch)
        if self.sharing == "expand":
            return values[mask]
        total = (values * mask[..., None]).sum(1)
        return total / mask.sum(1, keepdim=True) if mean else total

    def _count(self, values: Tensor, batch: AnswerBatch) -> int:
        """What the sum over inputs is divided by."""
        counts = {"expand": int(_token_mask(values, batch).sum()), "reduce": len(values), "release": len(batch)}
        return counts[self.sharing]

    def blocks(self) -> dict[str, KroneckerBlock]:
        """Every parameter's block."""
        return {name: sums.block(self.counts[name]) for name, sums in self.sums.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The sums, and what inputs are divided by."""
        counts = {f"{name}/count": torch.tensor(count, device="cpu") for name, count in self.counts.items()}
        return {**super().state_dict(), **counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state_dict`` described."""
        super().load_state_dict(state)
        self.counts = {name: int(state[f"{name}/count"]) for name in self.counts}


def _token_mask(values: Tensor, batch: AnswerBatch) -> Tensor:
    """Which of the tokens ``[R, T, D]`` are real, bool ``[R, T]``; all where there is one a row."""
    if values.shape[1] == batch.attention_mask.shape[1]:
        return batch.attention_mask.bool()
    return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
