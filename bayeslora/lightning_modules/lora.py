"""Plain LoRA fine-tuning: maximum likelihood, maximum a posteriori, and MC dropout at test time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.models.loading import Backbone, LoRA
from bayeslora.streams import stream
from bayeslora.types import Samples

__all__ = ["LoRAModule"]


class LoRAModule(MultipleChoiceModule):
    r"""LoRA fine-tuning (Hu et al., 2021, arXiv:2106.09685) by maximum likelihood or maximum a posteriori.

    The loss of a batch b is

    .. math:: L = \frac{1}{|b|} \sum_{i \in b} -\log p(y_i \mid x_i, \theta) + \frac{\|\theta\|^2}{2 \sigma^2 N}

    whose second term is a prior N(0, sigma^2) on every trainable parameter, present if ``prior_std`` is given; N is
    the number of training questions. Its gradient passes through Adam's preconditioner. ``weight_decay`` does not: it
    shrinks all weights at the same rate, is no Gaussian prior, and hardly acts at LoRA's usual learning rates.

    With ``samples`` above zero and ``lora.dropout`` above zero, prediction averages that many dropout draws in one pass
    (MC dropout, Gal & Ghahramani 2016). A draw is a mask per question, site and token position, whatever the batch.

    Args:
        backbone: The frozen base model.
        lora: The trained low-rank update.
        prior_std: Standard deviation sigma of the Gaussian prior in the loss; None for maximum likelihood.
        samples: Number of dropout draws at test time; 0 predicts with the weights alone.
        common: ``optimisation``, ``support``, ``chunk`` and ``seed``, as for :class:`MultipleChoiceModule`.

    Example:
        >>> from bayeslora import Backbone, LoRA, LoRAModule
        >>> LoRAModule(Backbone("embedded"), LoRA(r=4, dropout=0.1), samples=10).method
        'mc_dropout_10'
    """

    def __init__(
        self,
        backbone: Backbone | None = None,
        lora: LoRA | None = None,
        *,
        prior_std: float | None = None,
        samples: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, lora, **common)
        if prior_std is not None and prior_std <= 0:
            raise UsageError(f"prior_std is {prior_std}; allowed: above 0, or none for maximum likelihood")
        if samples < 0 or (samples > 0 and self.lora.dropout == 0):
            raise UsageError(
                f"samples is {samples} with lora.dropout {self.lora.dropout}; MC dropout needs both above 0"
            )
        self.prior_std, self.samples = prior_std, samples

    @property
    def method(self) -> str:
        """What a table calls this method."""
        name = "mle" if self.prior_std is None and self.optimisation.weight_decay == 0 else "map"
        return name if self.samples == 0 else f"mc_dropout_{self.samples}"

    def penalty(self) -> Tensor | None:
        """The prior's share of the loss."""
        if self.prior_std is None:
            return None
        square = torch.stack([p.float().square().sum() for p in self.trainable().values()]).sum()
        return square / (2 * self.prior_std**2 * self.training_size)

    def test_samples(self) -> Samples | None:
        """``samples`` draws of dropout, if asked for.

        Raises:
            UsageError: an adapter that was made without dropout.
        """
        if self.samples == 0:
            return None
        if not self.model.has_noise:
            raise UsageError(
                f"samples is {self.samples}, but backbone.adapter {self.backbone.adapter} has no dropout, and its own "
                "configuration holds, not lora.dropout; give samples 0, or an adapter with lora_dropout above 0"
            )
        return Samples(draws=torch.arange(self.samples, device="cpu"), seed=stream(self.seed, "test"))
