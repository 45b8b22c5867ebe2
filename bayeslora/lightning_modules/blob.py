"""BLoB: a mean-field Gaussian over LoRA's A, learned by backpropagation; and Bayes by Backprop on both factors."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

from bayeslora.errors import UsageError, require, require_choice
from bayeslora.lightning_modules.grad_scaler import one_update
from bayeslora.lightning_modules.variational import VariationalModule
from bayeslora.models.blob import FACTORS, ROOT, add_spread, draw_perturbations, squares
from bayeslora.models.in_place import write_weights
from bayeslora.models.loading import Backbone, LoRA
from bayeslora.posteriors.mean_field import MeanField, normal_kl
from bayeslora.streams import stream
from bayeslora.types import AnswerBatch, Posterior, Samples

__all__ = ["BLoBModule"]

OPTIMISERS = ("one", "two")


class BLoBModule(VariationalModule):
    r"""Bayesian LoRA by backpropagation (Wang et al., 2024, arXiv:2406.11675).

    A is Gaussian, entry by entry, with mean M and standard deviation :math:`\Omega = G \circ G`; B is a point. The loss
    of micro-batch i is

    .. math:: L_i = \frac{1}{|b|} \sum_{n \in b} -\log p(y_n \mid x_n, A, B)
        + w_i \sum \left[ \log \frac{\sigma_p}{\Omega} + \frac{\Omega^2 + M^2}{2 \sigma_p^2} - \frac12 \right]

    under one draw of A by flipout: :math:`A x + ((\Omega \circ \epsilon)(x \circ r)) \circ q` with one
    :math:`\epsilon` a micro-batch and signs r, q for every token. The weights w of an epoch's M batches add up to
    ``kl_weight`` M / N: with 1, an epoch's loss is the evidence lower bound. ``cyclic`` doubles them from batch to
    batch (section 3.4), ``release`` takes the release's own cycle.

    Prediction averages ``samples`` networks: ``weights`` draws one bank of A's for a whole evaluation, so that all
    questions meet the same networks; ``flipout`` takes signs of their own for every token, as released; ``linearised``
    is Gaussian in the logits and draws nothing. ``samples: 0`` predicts with the mean.

    With ``factors: AB``, B is Gaussian too: Bayes by Backprop (Blundell et al., 2015) on LoRA.

    Args:
        backbone: The frozen base model.
        lora: The low-rank update.
        prior_std: Standard deviation of the prior on every entry that has a posterior.
        init_std: Largest initial standard deviation; the smallest is half of it.
        factors: ``A``, or ``AB``.
        optimisers: ``one``: AdamW minimises the whole loss. ``two``, as published: AdamW steps M and B down the
            likelihood, then SGD steps M down the KL and G down both. They count as one step.
        std_learning_rate: Peak learning rate of G, with ``two`` that of SGD; None is that of the
            means, or 0.01.
        common: ``kl_schedule`` and ``kl_weight``, as for :class:`VariationalModule`; ``samples`` and ``predict``, as
            for :class:`GaussianModule`, or ``flipout``; ``optimisation``, ``support``, ``chunk`` and ``seed``, as for
            :class:`MultipleChoiceModule`.

    Example:
        >>> from bayeslora import Backbone, BLoBModule, LoRA
        >>> module = BLoBModule(Backbone("embedded"), LoRA(r=4), init_std=0.01)
        >>> module.configure_model()
        >>> any(name.endswith("std_root") for name in module.trainable())
        True
    """

    predictions = ("weights", "flipout", "linearised")

    def __init__(
        self,
        backbone: Backbone | None = None,
        lora: LoRA | None = None,
        *,
        prior_std: float = 0.2,
        init_std: float = 0.0025,
        factors: str = "A",
        optimisers: str = "one",
        std_learning_rate: float | None = None,
        **common: Any,
    ) -> None:
        super().__init__(backbone, lora, **common)
        require_choice("factors", factors, FACTORS)
        require_choice("optimisers", optimisers, OPTIMISERS)
        usual = 0.01 if optimisers == "two" else self.optimisation.learning_rate
        self.std_learning_rate = usual if std_learning_rate is None else std_learning_rate
        require("prior_std", prior_std, prior_std > 0, "above 0")
        require("init_std", init_std, init_std > 0, "above 0")
        require("std_learning_rate", self.std_learning_rate, self.std_learning_rate > 0, "above 0")
        self.prior_std, self.init_std, self.factors, self.optimisers = prior_std, init_std, factors, optimisers
        self.automatic_optimization = optimisers == "one"
        self._roots: dict[str, torch.nn.Parameter] = {}  # G by the name of its weight
        self._means: dict[str, torch.nn.Parameter] = {}  # the weights that have one

    # --- the posterior -------------------------------------------------------------------------------------------

    def add_parameters(self) -> None:
        """Give the factors a standard deviation."""
        self._roots = add_spread(self.model, self.factors, self.init_std, self.seed)
        parameters = self.trainable()
        self._means = {name: parameters[name] for name in self._roots}

    def take_posterior(self, posterior: Posterior, folder: Path) -> None:
        """Take the standard deviations of a BLoB run.

        Raises:
            UsageError: they are on other factors.
        """
        if not isinstance(posterior, MeanField):
            return
        std = posterior.std()
        if std.keys() != self._roots.keys():
            raise UsageError(
                f"{folder} has a spread on {len(std)} weights, factors {self.factors} on {len(self._roots)}; give "
                f"factors as in training ({' or '.join(FACTORS)})"
            )
        write_weights(self._roots, {name: value.sqrt() for name, value in std.items()})
        self._learned = True

    def weight_sets(self) -> list[dict[str, Tensor]]:
        """The means: what other posteriors may be put over."""
        return [{name: value for name, value in self.trainable().items() if not name.endswith(f".{ROOT}")}]

    def std(self) -> dict[str, Tensor]:
        r"""Standard deviations :math:`\Omega` by the name of their weight."""
        return {name: root.square() for name, root in self._roots.items()}

    def posterior(self) -> MeanField:
        """The Gaussian as it stands."""
        return MeanField(self.weight_sets()[0], self.std())

    def kl(self) -> Tensor:
        """Divergence of the posterior from the prior, in nats."""
        means = torch.cat([mean.float().flatten() for mean in self._means.values()])
        roots = torch.cat([root.flatten() for root in self._roots.values()])
        return normal_kl(means, roots.square(), self.prior_std).sum()

    # --- training ------------------------------------------------------------------------------------------------

    def training_noise(self) -> Samples:
        """One draw of the weights, by flipout, that belongs to this micro-batch of this run."""
        plain = super().training_noise()
        assert plain.draws is not None
        return draw_perturbations(squares(self._roots), plain.draws, plain.seed)

    def training_step(self, batch: AnswerBatch, batch_idx: int) -> Tensor:
        """The loss of one micro-batch; with two optimisers, both of their steps."""
        step = self._micro_step
        loss = super().training_step(batch, batch_idx)
        if not self.automatic_optimization:
            with one_update(self.trainer):
                self._two_steps(loss, step)
        return loss

    def _two_steps(self, nll: Tensor, step: int) -> None:
        """AdamW down the likelihood, SGD down the KL; the trainer counts the first alone."""
        adam, sgd = self.optimizers()  # type: ignore[misc, attr-defined]
        self.manual_backward(nll)
        adam.step()
        adam.zero_grad()  # of means and points; G keeps its gradient for SGD
        strategy = self.trainer.strategy
        alone = strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()
        with alone:  # the KL is the same on every process, and does not reach the parameters DDP would wait for
            self.manual_backward(self.weighted_kl(step))
        self.trainer.strategy.optimizer_step(sgd.optimizer, lambda: None, self)
        sgd.zero_grad()
        for scheduler in self.lr_schedulers():  # type: ignore[union-attr]
            scheduler.step()  # type: ignore[call-arg]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Means and points, then G, which no decay shrinks."""
        roots = list(self._roots.values())
        return [
            {"params": list(self.weight_sets()[0].values())},
            {"params": roots, "lr": self.std_learning_rate, "weight_decay": 0.0},
        ]

    def configure_optimizers(self) -> Any:
        """AdamW for all; or AdamW for means and points, and SGD for all, as released."""
        if self.optimisers == "one":
            return super().configure_optimizers()
        means, _ = self.parameter_groups()
        adam = self.adamw([means], eps=1e-6)
        sgd = torch.optim.SGD(self.trainable().values(), lr=self.std_learning_rate)
        return [self.scheduled(adam), self.scheduled(sgd)]

    # --- prediction ----------------------------------------------------------------------------------------------

    @property
    def short_name(self) -> str:
        """BLoB, or Bayes by Backprop."""
        return "blob" if self.factors == "A" else "bbb"

    def random_weights(self) -> list[str]:
        """The weights that have a standard deviation."""
        return list(self._roots)

    def test_samples(self) -> Samples | None:
        """``samples`` networks: a bank of weights, or draws whose every token has signs of its own (flipout)."""
        if self.samples and self.predict == "flipout":
            std = {name: value.detach() for name, value in self.std().items()}
            draws = torch.arange(self.samples, device="cpu")
            return replace(draw_perturbations(std, draws, stream(self.seed, "test")), dropout=False)
        return super().test_samples()
