"""IVON on LoRA (Shen et al., 2024; Cong et al., 2024): an optimiser whose own state is a Gaussian over the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import UsageError, require
from bayeslora.lightning_modules.gaussian import GaussianModule
from bayeslora.lightning_modules.grad_scaler import may_overflow
from bayeslora.models.loading import Backbone, LoRA
from bayeslora.posteriors.mean_field import MeanField
from bayeslora.posteriors.state import parameters_of, state_of
from bayeslora.streams import global_draws, stream
from bayeslora.types import Posterior, Samples

__all__ = ["IVONModule"]

_STEPS = "current_step"  # IVON's bias correction depends on it, and its own state leaves it out


class IVONModule(GaussianModule):
    r"""LoRA trained by the improved variational online Newton method (Shen et al., 2024, arXiv:2402.17641).

    On LoRA: Cong et al., 2024, arXiv:2411.04421. All of LoRA's entries are Gaussian, with mean m and variance
    :math:`v = 1 / (\lambda (h + \delta))`, and minimised is

    .. math:: \lambda\, E_{q}\left[ \frac1N \sum_n -\log p(y_n \mid x_n, \theta) \right] + KL\left(q \,\|\,
        N(0, 1 / (\lambda \delta))\right)

    by natural gradients: an optimiser step draws one :math:`\theta`, and its gradient g moves m along
    :math:`(g + \delta m) / (h + \delta)`, and h towards :math:`g (\theta - m) / v`. With :math:`\lambda = N`, the
    number of training questions, that is the evidence lower bound; above it, the posterior is colder. The optimiser is
    that of the package ``ivon-opt``; its state is in every checkpoint.

    ``optimisation`` gives its learning rate with warm-up and decay; ``optimisation.weight_decay`` is :math:`\delta`,
    which is a prior here. Its rates are far above AdamW's, since a step is clipped at ``learning_rate`` times
    ``clip_radius``.

    Args:
        backbone: The frozen base model; ``adapter`` may be the ``posterior/`` folder of an IVON run.
        lora: The low-rank update.
        ess: Effective sample size :math:`\lambda`; None is N. The authors take 1e6 to 1e8 on LoRA.
        hess_init: What h starts from, above 0.
        beta1: Decay of the average of gradients, 0 up to, not including, 1.
        beta2: Decay of h, 0 up to 1.
        clip_radius: Largest size of an entry of the preconditioned gradient.
        common: ``samples`` and ``predict``, as for :class:`GaussianModule`; ``optimisation``, ``support``, ``chunk``
            and ``seed``, as for :class:`MultipleChoiceModule`.

    Raises:
        UsageError: a value out of range; to train, a missing ``ivon-opt``.

    Example:
        >>> from bayeslora import IVONModule, Optimisation
        >>> module = IVONModule(optimisation=Optimisation(learning_rate=0.03, weight_decay=1e-4), ess=1e4)
        >>> module.method
        'ivon_10'
    """

    def __init__(
        self,
        backbone: Backbone | None = None,
        lora: LoRA | None = None,
        *,
        ess: float | None = None,
        hess_init: float = 1.0,
        beta1: float = 0.9,
        beta2: float = 0.99999,
        clip_radius: float = 1e-3,
        **common: Any,
    ) -> None:
        super().__init__(backbone, lora, **common)
        require("ess", ess, ess is None or ess > 0, "above 0, or none for the number of training questions")
        require("hess_init", hess_init, hess_init > 0, "above 0")
        require("beta1", beta1, 0 <= beta1 < 1, "0 up to, not including, 1")
        require("beta2", beta2, 0 <= beta2 <= 1, "0 to 1")
        require("clip_radius", clip_radius, clip_radius > 0, "above 0")
        self.ess, self.hess_init, self.beta1, self.beta2, self.clip_radius = ess, hess_init, beta1, beta2, clip_radius
        self._ivon: Any = None  # the optimiser, while there is one
        self._std: dict[str, Tensor] = {}  # of a run that has ended, or was read

    # --- the posterior -------------------------------------------------------------------------------------------

    def take_posterior(self, posterior: Posterior, folder: Path) -> None:
        """Take the standard deviations of an IVON run; training would start anew from ``hess_init``."""
        if isinstance(posterior, MeanField):
            self._std, self._learned = posterior.std(), True

    def posterior(self) -> MeanField:
        """The Gaussian as it stands: a point where nothing was trained or read."""
        state = None if self._ivon is None else self._ivon.param_groups[0]
        return MeanField(self.trainable(), self._std if state is None else _std_of(state, self.trainable()))

    def on_test_start(self) -> None:
        """Draw the bank of this evaluation.

        Raises:
            UsageError: nothing was trained or read that has standard deviations.
        """
        if self.samples and not self.backbone.adapter and not (self._std or self._ivon):
            raise UsageError("IVON has no posterior to sample from yet; fit first, give a checkpoint, or samples 0")
        super().on_test_start()

    # --- training ------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """IVON, with the warm-up and decay of every run.

        Raises:
            UsageError: ``ivon-opt`` is not installed.
        """
        self.trainer.fit_loop.setup_data()  # the loader whose questions are counted
        self._ivon = resumable(
            _ivon()(
                list(self.trainable().values()),
                lr=self.optimisation.learning_rate,
                ess=self.training_size if self.ess is None else self.ess,
                hess_init=self.hess_init,
                beta1=self.beta1,
                beta2=self.beta2,
                weight_decay=self.optimisation.weight_decay,
                clip_radius=self.clip_radius,
                rescale_lr=False,
            )
        )
        return self.scheduled(self._ivon)

    @contextmanager
    def _drawn(self, train: bool) -> Iterator[None]:
        """Within the block the weights are a draw of the posterior, the same one until the next optimiser step."""
        device = next(iter(self.trainable().values())).device
        seed = stream(self.seed, "ivon", self._ivon.current_step)
        with global_draws(seed, device), self._ivon.sampled_params(train):
            yield

    def training_noise(self) -> Samples:
        """One draw of the weights, the same for all micro-batches and processes of an optimiser step.

        The weights themselves stay at the mean: gradients reach them through the draw, and what is saved in the middle
        of a step, or asked by a callback, is the mean.
        """
        parameters = self.trainable()
        with self._drawn(train=False):
            drawn = {name: value.detach().clone() for name, value in parameters.items()}
        weights = {name: (value + (drawn[name] - value.detach()))[None] for name, value in parameters.items()}
        return replace(super().training_noise(), weights=weights)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of a step if asked to, then show IVON what they are at its draw."""
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        parameters = self.trainable().values()
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if may_overflow(self.trainer) and not all(bool(p.grad.isfinite().all()) for p in parameters):  # type: ignore[union-attr]
            return  # the scaler will skip this step
        with self._drawn(train=True):
            pass

    def on_train_end(self) -> None:
        """Keep the standard deviations that the run has ended with."""
        self._std, self._ivon = self.posterior().std(), None
        for parameter in self.trainable().values():
            parameter.data = parameter.detach().clone()  # IVON leaves views of one tensor, which safetensors refuses

    def as_served(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """As for every module, with the standard deviations, which are no parameters."""
        arguments, weights = super().as_served()
        return arguments, weights | state_of("std", self.posterior().std())

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load parameters by their plain names, and the standard deviations of :meth:`as_served`."""
        std = parameters_of("std", state_dict)
        self._std = std or self._std
        own = {name: value for name, value in state_dict.items() if not name.startswith("std/")}
        return super().load_state_dict(own, strict, assign)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits, and take the standard deviations from the optimiser's state.

        Raises:
            UsageError: it belongs to another base or other parameters, or holds no state of IVON.
        """
        super().on_load_checkpoint(checkpoint)
        states = checkpoint.get("optimizer_states") or [{}]
        groups = states[0].get("param_groups") or [{}]
        if "hess" not in groups[0]:
            raise UsageError("the checkpoint holds no state of IVON; give one that was saved whole by an IVON run")
        self._std = _std_of(groups[0], self.trainable())


def _ivon() -> Any:
    try:
        from ivon import IVON
    except ImportError as error:
        raise UsageError("IVON needs the package ivon-opt; install it with: pip install 'bayeslora[ivon]'") from error
    return IVON


def _std_of(group: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    r"""Standard deviations :math:`1 / \sqrt{\lambda (h + \delta)}` of a group of IVON's, by name of the weight."""
    variance = 1 / (group["ess"] * (group["hess"] + group["weight_decay"]))
    parts = variance.sqrt().split([value.numel() for value in parameters.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(parameters.items(), parts, strict=True)}


def resumable(optimizer: Any) -> Any:
    """An IVON whose saved state is whole: with its number of steps, and on the device of the weights once read.

    Args:
        optimizer: Of ``ivon-opt``, which leaves the former out and the latter where the file was read to.
    """

    def read(own: Any, state: dict[str, Any]) -> None:
        """Take the number of steps from a saved state."""
        own.current_step = state[_STEPS]

    def move(own: Any) -> None:
        """Put the state that was read where the weights are."""
        for group in own.param_groups:
            for key in ("momentum", "hess"):
                group[key] = group[key].to(group["params"][0])

    optimizer.register_state_dict_post_hook(lambda own, state: {**state, _STEPS: own.current_step})
    optimizer.register_load_state_dict_pre_hook(read)
    optimizer.register_load_state_dict_post_hook(move)
    return optimizer
