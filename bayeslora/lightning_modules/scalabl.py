"""ScalaBL (Samplawski et al., 2025): a Gaussian in the r-dimensional space between LoRA's factors, learned too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.errors import UsageError, require
from bayeslora.lightning_modules.variational import VariationalModule
from bayeslora.models.in_place import write_weights
from bayeslora.models.loading import Backbone, LoRA
from bayeslora.models.sites import SiteLinear
from bayeslora.posteriors.mean_field import normal_kl
from bayeslora.posteriors.scalabl import ScalaBLPosterior, scaled_rows
from bayeslora.streams import generator
from bayeslora.types import Posterior, Samples

__all__ = ["ScalaBLModule"]

LOG_MEAN, LOG_STD = "log_scale_mean", "log_scale_std"  # last parts of names, where A's is "weight"


class ScalaBLModule(VariationalModule):
    r"""Variational inference in the subspace that LoRA's factors span (Samplawski et al., 2025, arXiv:2506.21408).

    The update of a weight is :math:`\Delta W = B\,\mathrm{diag}(s)\,V` with
    :math:`s \sim N(\mu, \mathrm{diag}(\sigma^2))` of dimension r: 2r numbers more than LoRA for each adapted layer. The
    loss of micro-batch i is

    .. math:: L_i = \frac{1}{|b|} \sum_{n \in b} -\log p(y_n \mid x_n, s) + w_i \sum_{\text{layers}} \sum_{j = 1}^r
        \left[ \log \frac{\sigma_p}{\sigma_j} + \frac{\sigma_j^2 + \mu_j^2}{2 \sigma_p^2} - \frac12 \right]

    under one draw of every s a micro-batch; its gradient reaches :math:`B, V, \mu` and :math:`\sigma`. What is trained
    and saved as LoRA's A is the mean :math:`A = \mathrm{diag}(\mu) V`, so that a draw is
    :math:`\mathrm{diag}(s) V = \mathrm{diag}(1 + \frac{\sigma}{\mu} \epsilon) A` and the adapter is a plain one.

    V starts with orthonormal rows and :math:`\mu` as the singular values of the A that LoRA would start from; around
    ``backbone.adapter``, :math:`\mu` is the norms of A's rows and the adapter stays as it is.

    Args:
        backbone: The frozen base model; ``adapter`` may be the ``posterior/`` folder of a ScalaBL run.
        lora: The low-rank update.
        prior_std: Standard deviation :math:`\sigma_p` of the prior on every s.
        init_std: Largest initial :math:`\sigma`; the smallest is :math:`1 / \sqrt 2` of it.
        scale_learning_rate: Peak learning rate of :math:`\log \mu` and :math:`\log \sigma`; None is that of A and B.
        common: ``kl_schedule`` and ``kl_weight``, as for :class:`VariationalModule`; ``samples`` and ``predict``, as
            for :class:`GaussianModule`; ``optimisation``, ``support``, ``chunk`` and ``seed``, as for
            :class:`MultipleChoiceModule`.

    Raises:
        UsageError: a value out of range.

    Example:
        >>> from bayeslora import Backbone, LoRA, ScalaBLModule
        >>> module = ScalaBLModule(Backbone("embedded"), LoRA(r=4, target_modules=["q_proj"]))
        >>> module.configure_model()
        >>> [tuple(scale.shape) for scale in module.posterior().scale_std().values()]
        [(4,), (4,)]
        >>> module.method
        'scalabl_10'
    """

    def __init__(
        self,
        backbone: Backbone | None = None,
        lora: LoRA | None = None,
        *,
        prior_std: float = 1.0,
        init_std: float = 0.05,
        scale_learning_rate: float | None = None,
        **common: Any,
    ) -> None:
        super().__init__(backbone, lora, **common)
        rate = self.optimisation.learning_rate if scale_learning_rate is None else scale_learning_rate
        require("prior_std", prior_std, prior_std > 0, "above 0")
        require("init_std", init_std, init_std > 0, "above 0")
        require("scale_learning_rate", rate, rate > 0, "above 0")
        self.prior_std, self.init_std, self.scale_learning_rate = prior_std, init_std, rate
        self._log_mean: dict[str, nn.Parameter] = {}  # by the name of their A
        self._log_std: dict[str, nn.Parameter] = {}

    # --- the posterior -------------------------------------------------------------------------------------------

    def add_parameters(self) -> None:
        """Give the rows of every A scales with a law; without an adapter, rotate A so that its rows are orthogonal.

        Raises:
            UsageError: a rank above the width of a layer's input.
        """
        for site in self.model.network.modules():
            if not (isinstance(site, SiteLinear) and site.name.endswith(".lora_A")):
                continue
            name, (rank, width) = f"{site.name}.weight", site.weight.shape
            if rank > width:
                raise UsageError(f"lora.r is {rank}, but {site.name} has {width} inputs; allowed for ScalaBL: as many")
            if not self.backbone.adapter:
                write_weights({name: site.weight}, {name: orthogonal_rows(site.weight)})
            norms = site.weight.detach().float().norm(dim=1)
            low = torch.empty(rank, device="cpu")  # the same draws on any device
            low.uniform_(self.init_std / 2**0.5, self.init_std, generator=generator(self.seed, "init", site.name))
            self._log_mean[name] = nn.Parameter(torch.where(norms > 0, norms, self.prior_std).log())
            self._log_std[name] = nn.Parameter(low.log().to(norms.device))
            site.register_parameter(LOG_MEAN, self._log_mean[name])
            site.register_parameter(LOG_STD, self._log_std[name])
        if not self.backbone.adapter:
            self.model.note_initial(self._log_mean.__contains__)  # as it was rotated

    def take_posterior(self, posterior: Posterior, folder: Path) -> None:
        """Take the scales' law of a ScalaBL run; A and B are read as any adapter's."""
        if isinstance(posterior, ScalaBLPosterior):
            write_weights(self._log_mean, {name: value.log() for name, value in posterior.scale_mean().items()})
            write_weights(self._log_std, {name: value.log() for name, value in posterior.scale_std().items()})
            self._learned = True

    def weight_sets(self) -> list[dict[str, Tensor]]:
        """The mean, a plain LoRA adapter: what other posteriors may be put over."""
        own = (f".{LOG_MEAN}", f".{LOG_STD}")
        return [{name: value for name, value in self.trainable().items() if not name.endswith(own)}]

    def posterior(self) -> ScalaBLPosterior:
        """The Gaussian as it stands."""
        mean, std = ({name: value.exp() for name, value in logs.items()} for logs in (self._log_mean, self._log_std))
        return ScalaBLPosterior(self.weight_sets()[0], mean, std)

    def random_weights(self) -> list[str]:
        """Every A."""
        return list(self._log_std)

    def kl(self) -> Tensor:
        """Divergence of the scales' law from the prior, in nats."""
        mean, std = (torch.cat(list(logs.values())).exp() for logs in (self._log_mean, self._log_std))
        return normal_kl(mean, std, self.prior_std).sum()

    # --- training ------------------------------------------------------------------------------------------------

    def training_noise(self) -> Samples:
        """One draw of every s, that belongs to this micro-batch of this run."""
        plain, parameters = super().training_noise(), self.trainable()
        assert plain.draws is not None
        log_mean, log_std = (torch.cat(list(logs.values())) for logs in (self._log_mean, self._log_std))
        source = generator(plain.seed, "scales", int(plain.draws), device=log_std.device)
        noise = torch.randn(log_std.shape, generator=source, device=log_std.device)
        deviations = ((log_std - log_mean).exp() * noise).split([len(value) for value in self._log_std.values()])
        drawn = zip(self._log_std, deviations, strict=True)
        return replace(plain, weights={name: scaled_rows(parameters[name], part)[None] for name, part in drawn})

    def parameter_groups(self) -> list[dict[str, Any]]:
        """A and B, then the scales' law, which no decay shrinks."""
        scales = [*self._log_mean.values(), *self._log_std.values()]
        return [
            {"params": list(self.weight_sets()[0].values())},
            {"params": scales, "lr": self.scale_learning_rate, "weight_decay": 0.0},
        ]


def orthogonal_rows(weight: Tensor) -> Tensor:
    r"""The matrix ``[r, in]`` rotated so that its rows are orthogonal: :math:`S V^T` of :math:`W = U S V^T`.

    Signs are set so that the largest entry of every row is positive: they do not depend on the library that decomposes.
    """
    _, values, rows = torch.linalg.svd(weight.detach().cpu().double(), full_matrices=False)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return (values[:, None] * rows * largest.sign()).to(weight)
