"""C-LoRA (Rahmati et al., 2025): contextual low-rank adaptation, whose uncertainty depends on the question."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import UsageError, require, require_choice
from bayeslora.lightning_modules.grad_scaler import one_update
from bayeslora.lightning_modules.kl_schedule import KINDS, RELEASE, KLSchedule, release_schedule
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.models.c_lora import CONTEXTS, INITS, ContextualSites
from bayeslora.models.hub import adapter_folder
from bayeslora.models.loading import Backbone, LoRA
from bayeslora.posteriors.c_lora import ContextualPosterior
from bayeslora.posteriors.state import load_posterior
from bayeslora.streams import stream
from bayeslora.types import AnswerBatch, Samples

__all__ = ["CLoRAModule"]

OPTIMISERS = ("one", "two")
KL_OVER = ("mean", "draws")
RELEASE_FACTOR = 1e-6  # on the KL, beside one over the number of sites


class CLoRAModule(MultipleChoiceModule):
    r"""LoRA with a random r x r matrix E between B and A, whose law a small network sets from the input.

    Contextual low-rank adaptation (Rahmati et al., 2025, arXiv:2505.17773).

    The loss of a batch b is

    .. math:: L = \frac{1}{|b|} \sum_{i \in b} -\log p(y_i \mid x_i, E) + w \sum_l KL(q(E^l \mid x) \| N(0, \beta^2))

    under one draw of every E. Its gradient reaches the contextual modules alone: A and B follow the likelihood, as the
    paper has it. Every question has E's of its own, so that the evidence lower bound holds the divergence of each E
    that is drawn once: with ``context`` ``sequence`` and ``last`` that is one a site, and w = 1 is the bound. With
    ``token`` and ``free`` every one of T tokens draws its own, and ``kl_over`` says what a row's divergence is:
    ``mean`` over its real tokens, which at w = 1 is the bound with a divergence tempered by 1/T and no bound on the
    evidence, or ``draws``, their sum, with which w = 1 is the bound here too. An encoder that scores every option as a
    row draws E's for each of them: its divergence is the mean over rows, with ``draws`` the sum over a question's. w is
    ``kl_weight`` (``constant``), or moves about that within every epoch (``cyclic``, see
    :func:`~bayeslora.lightning_modules.kl_schedule.cyclic_share`). ``release`` is what its authors' code does: the sum
    over all tokens, padding included, times 1e-6 over the number of sites, in the release's own cycle, with a gradient
    that reaches A and B too.

    Prediction averages ``samples`` draws of E in one pass, or takes its mean where ``samples`` is 0. The uncertainty of
    a question is that of the E its own tokens ask for; ``context="free"`` takes this away (the paper's ablation FE).

    Args:
        backbone: The frozen base model; ``adapter`` may be the ``posterior/`` folder of a C-LoRA run.
        lora: The trained low-rank update.
        contextual_learning_rate: That of the contextual modules; None for the same, with ``two`` optimisers 0.01.
        context: What E depends on: ``token`` (every token draws an E of its own), ``sequence`` (the mean over the row's
            tokens), ``last`` (its last token), ``free`` (nothing).
        width: Hidden width of a contextual module.
        init: ``lora`` starts at plain LoRA, E the identity; ``release`` as the authors' code.
        init_std: Standard deviation of E's entries at the start, with ``lora``; between 0 and 1.
        beta: Standard deviation of the prior on E's entries.
        kl_weight: Factor w on a question's divergence; what 1 means depends on ``context`` and ``kl_over``, see above.
        kl_over: ``mean`` or ``draws``: a row's divergence where every token draws an E of its own.
        kl_schedule: ``constant``, ``cyclic`` or ``release``.
        nll_scale: Factor on the negative log-likelihood; the release doubles or quadruples it for some tasks.
        optimisers: ``one``: AdamW for all. ``two``, as released: AdamW for A and B, SGD for the contextual modules,
            both in one step.
        samples: Number of draws of E at test time; 0 predicts with its mean.
        coherent: A draw at test time is one function: the same noise for all questions and tokens.
        common: ``optimisation``, ``support``, ``chunk`` and ``seed``, as for :class:`MultipleChoiceModule`.

    Example:
        >>> from bayeslora import CLoRAModule, LoRA
        >>> module = CLoRAModule(lora=LoRA(r=4), context="sequence")
        >>> module.configure_model()
        >>> any(".lora_E." in name for name in module.trainable())
        True
    """

    own_entries = (".lora_E.",)

    def __init__(
        self,
        backbone: Backbone | None = None,
        lora: LoRA | None = None,
        *,
        contextual_learning_rate: float | None = None,
        context: str = "token",
        width: int = 64,
        init: str = "lora",
        init_std: float = 0.05,
        beta: float = 0.2,
        kl_weight: float = 1.0,
        kl_over: str = "mean",
        kl_schedule: str = "constant",
        nll_scale: float = 1.0,
        optimisers: str = "one",
        samples: int = 10,
        coherent: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(backbone, lora, **common)
        require_choice("context", context, CONTEXTS)
        require_choice("init", init, INITS)
        require_choice("kl_schedule", kl_schedule, (*KINDS, RELEASE))
        require_choice("kl_over", kl_over, KL_OVER)
        require_choice("optimisers", optimisers, OPTIMISERS)
        require("width", width, width >= 1, "1 or more")
        require("init_std", init_std, 0 < init_std < 1, "between 0 and 1")
        require("beta", beta, beta > 0, "above 0")
        require("kl_weight", kl_weight, kl_weight >= 0, "0 or more")
        require("nll_scale", nll_scale, nll_scale > 0, "above 0")
        require("samples", samples, samples >= 0, "0 (the mean of E) or more")
        usual = 0.01 if optimisers == "two" else self.optimisation.learning_rate
        rate = usual if contextual_learning_rate is None else contextual_learning_rate
        require("contextual_learning_rate", rate, rate > 0, "above 0")
        self.contextual_learning_rate, self.context, self.width = rate, context, width
        self.init, self.init_std, self.beta = init, init_std, beta
        self.kl_kind, self.kl_weight, self.nll_scale = kl_schedule, kl_weight, nll_scale
        self.kl_over = RELEASE if kl_schedule == RELEASE else kl_over
        self.samples, self.coherent = samples, coherent
        self.optimisers, self.automatic_optimization = optimisers, optimisers == "one"
        self.contextual: ContextualSites = None  # type: ignore[assignment]  # until configure_model

    def configure_model(self) -> None:
        """Load the base and put LoRA and the contextual modules on it, once: those of ``backbone.adapter``, if any.

        Raises:
            UsageError: an adapter whose contextual modules are of another kind.
        """
        if self.model is not None:
            return
        super().configure_model()
        self.contextual = ContextualSites(self.model, self.context, self.width)
        self.contextual.initialise(self.init, self.init_std, self.seed)
        if self.backbone.adapter is None:
            self.model.note_initial(lambda name: ".lora_E." in name)
            return
        folder = adapter_folder(self.backbone.adapter)
        if (folder / "posterior.json").exists():
            saved = load_posterior(folder, self.model.base_fingerprint)
            state = saved.parameters if isinstance(saved, ContextualPosterior) else saved.mean()
            if any(".lora_E." in name for name in state):
                self.load_state_dict(state)

    @property
    def method(self) -> str:
        """What a table calls this method."""
        name = "c_lora_fe" if self.context == "free" else "c_lora"
        return f"{name}_{self.samples}" if self.samples else f"{name}_mean"

    def posterior(self) -> ContextualPosterior:
        """The current parameters, and the plain adapter with the mean of E in the empty context folded into A."""
        parameters = self.trainable()
        adapter = {name: value.detach() for name, value in parameters.items() if ".lora_E." not in name}
        for name, module in self.contextual.modules.items():
            down = name.removesuffix("lora_E") + "lora_A.weight"
            adapter[down] = module.mean_at_zero() @ adapter[down]
        return ContextualPosterior(adapter, parameters)

    # --- prediction ----------------------------------------------------------------------------------------------

    def on_test_start(self) -> None:
        """Refuse contextual modules as they were drawn.

        Raises:
            UsageError: an adapter without contextual modules, and none were trained.
        """
        if self.backbone.adapter and not self._learned:
            raise UsageError(
                f"backbone.adapter {self.backbone.adapter} has no contextual modules; give a checkpoint, or the "
                "posterior/ folder of a C-LoRA run, or test it with LoRAModule"
            )

        super().on_test_start()

    def test_samples(self) -> Samples | None:
        """``samples`` draws of E, or none where prediction is at its mean."""
        if self.samples == 0:
            return None
        draws, seed = torch.arange(self.samples, device="cpu"), stream(self.seed, "test")
        return Samples(draws=draws, seed=seed, coherent=self.coherent, dropout=False)

    # --- training ------------------------------------------------------------------------------------------------

    @property
    def kl_schedule(self) -> KLSchedule:
        """The weights of the divergence in this run."""
        trainer: Any = self.trainer
        if self.kl_kind == RELEASE:
            factor = self.kl_weight * RELEASE_FACTOR / len(self.contextual)
            return release_schedule(trainer, self.training_size, factor)
        batches = trainer.num_training_batches
        return KLSchedule(self.kl_kind, batches, self.kl_weight * batches)

    def loss(self, batch: AnswerBatch) -> Tensor:
        """Negative log-likelihood under one draw of E, and the weighted divergence from the prior."""
        with self.contextual.recording():
            nll = self.nll(batch, self.training_noise())
        kl = self.contextual.divergence(batch.attention_mask, self.beta, self.kl_over, len(batch))
        self.log("train/kl", kl.detach(), batch_size=len(batch))
        return self.nll_scale * nll + self.kl_schedule.weight(self._micro_step) * kl

    def training_step(self, batch: AnswerBatch, batch_idx: int) -> Tensor:
        """The loss of one micro-batch; with two optimisers, the step of both."""
        loss = super().training_step(batch, batch_idx)
        if not self.automatic_optimization:
            adam, sgd = self.optimizers()  # type: ignore[misc, attr-defined]
            self.manual_backward(loss)
            step = self.trainer.strategy.optimizer_step  # not the trainer's own, which would count a second step
            with one_update(self.trainer):
                adam.step()
                step(sgd.optimizer, lambda: None, self)
            for optimiser, scheduler in zip((adam, sgd), self.lr_schedulers(), strict=True):  # type: ignore[arg-type]
                optimiser.zero_grad()
                scheduler.step()  # type: ignore[call-arg, union-attr]
        return loss

    def parameter_groups(self) -> list[dict[str, Any]]:
        """A and B, and the contextual modules at their own learning rate."""
        named = self.trainable().items()
        plain = [parameter for name, parameter in named if ".lora_E." not in name]
        contextual = [parameter for name, parameter in named if ".lora_E." in name]
        return [{"params": plain}, {"params": contextual, "lr": self.contextual_learning_rate}]

    def configure_optimizers(self) -> Any:
        """AdamW for all; or AdamW for A and B, and SGD for the contextual modules, as released."""
        if self.optimisers == "one":
            return super().configure_optimizers()
        plain, contextual = self.parameter_groups()
        adam = self.adamw([plain], eps=1e-6)
        return [self.scheduled(adam), self.scheduled(torch.optim.SGD([contextual]))]
