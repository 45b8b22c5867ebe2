"""LoRA ensembles: members trained together on one frozen base, each as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from bayeslora.errors import RunError, UsageError
from bayeslora.lightning_modules.grad_scaler import may_overflow
from bayeslora.lightning_modules.member_states import FAILED, STOPPED, TRAINING, MemberStates
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.lightning_modules.progress import bar_is_shown
from bayeslora.lightning_modules.step_share import StepShare, shares
from bayeslora.models.answer_model import Vocabulary
from bayeslora.models.in_place import write_weights
from bayeslora.models.loading import Backbone, LoRA, initialise
from bayeslora.models.members import (
    backpropagate,
    batch_of_each,
    divergence_from_base,
    gradient_norms,
    product_norms,
    rows_of,
    stack_members,
)
from bayeslora.posteriors.members.store import DAMAGED, MemberStore, ids_of
from bayeslora.posteriors.mixture import Mixture
from bayeslora.posteriors.point import Point
from bayeslora.posteriors.state import check_same_parameters
from bayeslora.streams import stream
from bayeslora.types import AnswerBatch, AnswerOutput, Predictive, Samples

__all__ = ["LoRAEnsemble"]


class LoRAEnsemble(MultipleChoiceModule):
    r"""M LoRA members on one frozen base.

    Balabanov & Linander, 2024, arXiv:2402.12264; Wang, Aitchison & Rudolph, 2023, arXiv:2310.00035.

    The members are stacked: every trainable parameter is ``[M, *shape]`` under its usual name, and one forward and one
    backward pass train them all. The loss is the sum of the members' own losses

    .. math:: L_m = \frac{1}{|b_m|} \sum_{i \in b_m} -\log p(y_i \mid x_i, \theta_m)
        + \lambda \sum_l \|B_l A_l\|_F^2 + \beta \, KL(p_{\theta_m} \| p_{base})

    on batches :math:`b_m` of their own. A member's initial weights, order of the data and dropout are functions of
    (configuration, seed, its id) alone, its gradient is clipped by its own norm, and AdamW acts entry by entry: so a
    member is the same whoever trains beside it, up to the rounding of matrix products of another size.

    A member whose loss or gradient is not finite fails: it keeps its last finite weights and leaves prediction, and the
    others go on. With ``patience``, a member that no longer improves on the validation questions returns to its best
    weights and stops; to stop all by the ensemble's likelihood instead, add Lightning's ``EarlyStopping`` on
    ``val/nll``. The weights and the optimiser's state of a member that trains no more do not change.

    Members differ in the initial A, not in the function they start from (B is zero), nor in the initial weights of a
    classification head or of ``backbone.adapter``.

    Args:
        backbone: The frozen base model.
        lora: The trained low-rank update.
        members: How many members, or their ids: 5 is ``[0, 1, 2, 3, 4]``.
        l2_product: Weight :math:`\lambda` of the squared Frobenius norm of every update BA, without LoRA's scale.
        kl_to_base: Weight :math:`\beta` of the divergence from the base model's answers, averaged over a batch.
        patience: Number of validations without a better likelihood after which a member stops; None for never.
        share_init: Give all members the initial weights of member 0.
        share_data_order: Give all members the batches of member 0.
        members_per_pass: How many members to train in one pass, to save memory; None trains all.
        common: ``optimisation``, ``support``, ``chunk`` and ``seed``, as for :class:`MultipleChoiceModule`.

    Example:
        >>> from bayeslora import LoRA, LoRAEnsemble
        >>> ensemble = LoRAEnsemble(lora=LoRA(r=4), members=3)
        >>> ensemble.configure_model()
        >>> {len(parameter) for parameter in ensemble.trainable().values()}
        {3}
    """

    store: Path | str | None = None  # folder of finished members to predict with
    available: bool = False  # whether members of the store that are damaged are left out, instead of refused
    left_out: tuple[int, ...] = ()  # which were

    def __init__(
        self,
        backbone: Backbone | None = None,
        lora: LoRA | None = None,
        members: int | list[int] = 5,
        *,
        l2_product: float = 0.0,
        kl_to_base: float = 0.0,
        patience: int | None = None,
        share_init: bool = False,
        share_data_order: bool = False,
        members_per_pass: int | None = None,
        **common: Any,
    ) -> None:
        super().__init__(backbone, lora, **common)
        ids = ids_of(members)
        for name, value in {"l2_product": l2_product, "kl_to_base": kl_to_base}.items():
            if not value >= 0:
                raise UsageError(f"{name} is {value}; allowed: 0 or more")
        for name, number in {"patience": patience, "members_per_pass": members_per_pass}.items():
            if number is not None and number < 1:
                raise UsageError(f"{name} is {number}; allowed: 1 or more, or none")
        if kl_to_base and self.backbone.readout == "head":
            raise UsageError("kl_to_base is given with readout 'head', whose base has no answers; use 'label_token'")
        self.l2_product, self.kl_to_base, self.members_per_pass = l2_product, kl_to_base, members_per_pass
        self.share_init, self.share_data_order = share_init, share_data_order
        self.states = MemberStates(ids, patience)
        self.member_nll = nn.ModuleList(MeanMetric() for _ in ids)
        self._shares: list[StepShare] = []  # of the members' batches in their steps
        self._held: list[tuple[Tensor, list[int], Tensor]] = []  # rows that an optimiser step must not change

    # --- the members ---------------------------------------------------------------------------------------------

    @property
    def method(self) -> str:
        """What a table calls this method; members that were left out are named."""
        return "ensemble" + (f" without damaged {', '.join(map(str, self.left_out))}" if self.left_out else "")

    @property
    def member_ids(self) -> tuple[int, ...]:
        """Ids of the members, in the order of the stack."""
        return self.states.ids

    def member_parameters(self, index: int) -> dict[str, Tensor]:
        """The parameters of the member at place ``index``, name to ``[*shape]``: views, to read or to assign to."""
        return {name: parameter.detach()[index] for name, parameter in self.trainable().items()}

    def weight_sets(self) -> list[dict[str, Tensor]]:
        """The parameters of every member, as :meth:`member_parameters` has them."""
        return [self.member_parameters(index) for index in range(len(self.member_ids))]

    def active_members(self) -> tuple[int, ...]:
        """Places of the members that still train."""
        return self.states.places(TRAINING)

    def usable_members(self) -> tuple[int, ...]:
        """Places of the members that predict: all that have not failed.

        Raises:
            RunError: there is none.
        """
        usable = self.states.places(TRAINING, STOPPED)
        if not usable:
            raise RunError(f"every member has failed: {'; '.join(sorted(set(self.states.reason)))}")
        return usable

    def posterior(self) -> Mixture:  # type: ignore[override]
        """The members that have not failed, as points of a mixture."""
        return Mixture([Point(self.member_parameters(index)) for index in self.usable_members()])

    def as_served(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """As for every module, with the members that predict alone."""
        places = self.usable_members()
        arguments, _ = super().as_served()
        return arguments | {"members": [self.member_ids[place] for place in places]}, self._stack(places)

    def configure_model(self) -> None:
        """Load the base, put LoRA on it and stack the members.

        Raises:
            UsageError: more than one process, or a trainable parameter that cannot be stacked.
        """
        if self.model is not None:
            return
        if self._trainer is not None and self.trainer.world_size > 1:
            raise UsageError(
                f"{self.trainer.world_size} processes would average the gradients of members that must stay apart; "
                "give the trainer devices=1 (--trainer.devices 1), and start `bayeslora ensemble` once for each "
                "device: the processes share the members of one run folder among them"
            )
        super().configure_model()
        self.stack()

    def stack(self) -> None:
        """Stack the members on the model, with the weights they start from, or with those they have in ``store``."""
        found = {} if self.store is None else MemberStore(self.store).load(self.model.base_fingerprint, self.available)
        if self.store is not None:
            self.left_out = MemberStore(self.store).members(DAMAGED)
        if found:
            self.states = MemberStates(list(found), self.states.patience)
            self.member_nll = nn.ModuleList(MeanMetric() for _ in found)
        stack_members(self.model.network, len(self.member_ids))
        for index, member in enumerate(self.member_ids):
            own = self.member_parameters(index)
            if found:
                values = found[member].mean()
                check_same_parameters(values, own, f"member {member}")
                write_weights(own, values)
            elif not self.backbone.adapter:
                initialise(own, self.seed, "member", 0 if self.share_init else member)

    def setup(self, stage: str) -> None:
        """Ask the data for every member's batches."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and datamodule is not None:
            datamodule.members = (0,) if self.share_data_order else self.member_ids

    def _stack(self, places: Sequence[int]) -> dict[str, Tensor]:
        """The stacked parameters of the members at some places; views where these follow one another."""
        first, last = places[0], places[-1]
        together = list(places) == list(range(first, last + 1))
        index: Any = slice(first, last + 1) if together else list(places)
        return {name: parameter[index] for name, parameter in self.trainable().items()}

    # --- prediction ----------------------------------------------------------------------------------------------

    def default_samples(self) -> Samples:
        """The members that have not failed."""
        return Samples(self._stack(self.usable_members()))

    def answers(
        self, batch: AnswerBatch, samples: Samples | None = None, vocabulary: Vocabulary = "none"
    ) -> AnswerOutput:
        """What S samples answer, or the members where none are given.

        Raises:
            UsageError: samples without weights for every parameter: its own are stacked.
        """
        if samples is not None and samples.weights.keys() != self.trainable().keys():
            raise UsageError("samples of an ensemble need weights for every parameter: its own are stacked")
        return super().answers(batch, samples, vocabulary)

    # --- training ------------------------------------------------------------------------------------------------

    def training_step(self, batch: AnswerBatch | list[AnswerBatch], batch_idx: int) -> Tensor:  # type: ignore[override]
        """The sum of the losses of the members that train."""
        batches = batch_of_each(batch, len(self.member_ids), self.share_data_order)
        own = shares(self.trainer, batch_idx)
        self._shares = own if len(own) == len(batches) else own[:1] * len(batches)
        losses = [partial(self._loss_of, places, batches) for places in self._passes(batches)]
        loss = losses[0]() if len(losses) == 1 else backpropagate(losses, list(self.trainable().values()))
        self._micro_step += 1
        mean = loss.detach() / max(1, len(self.active_members()))
        self.log("train/loss", mean, prog_bar=bar_is_shown(self._trainer), batch_size=len(batches[0]))
        self._stop_if_none_trains()
        return loss

    def _passes(self, batches: Sequence[AnswerBatch]) -> list[list[int]]:
        """Places of the members of every pass.

        A failed member stays in, though its loss does not count: products of another size would round differently, and
        the others are to end bit for bit as if nothing had happened. One that stopped early saves its share.
        """
        places = list(self.states.places(TRAINING, FAILED)) if self.active_members() else []
        rows = {len(batches[place].input_ids) for place in places}
        size = (self.members_per_pass or len(batches)) if len(rows) == 1 else 1
        return [places[start : start + size] for start in range(0, len(places), size)]

    def _loss_of(self, places: Sequence[int], batches: Sequence[AnswerBatch]) -> Tensor:
        """The sum of the losses of the members at some places, without those that fail."""
        own, taken = [self._shares[place] for place in places], [batches[place] for place in places]
        even = all(share == StepShare() for share in own)
        losses = self.member_losses(places, taken) if even else self.member_losses(places, taken, own)
        for place, fine in zip(places, losses.detach().isfinite().tolist(), strict=True):
            if not fine and place in self.active_members():
                rows = batches[place].example_id.tolist()
                self._fail(place, f"its loss at step {self.global_step} is not finite, rows {rows}")
        active = [index for index, place in enumerate(places) if place in self.active_members()]
        if len(active) == len(places):
            return losses.sum()  # a list as an index would make a GPU's host wait
        return losses[active].sum() if active else 0 * next(iter(self.trainable().values())).sum()

    def member_losses(
        self, places: Sequence[int], batches: Sequence[AnswerBatch], own: Sequence[StepShare] = ()
    ) -> Tensor:
        """The loss of each of S members on a batch of its own, ``[S]``.

        Args:
            places: Of the members.
            batches: Their S batches.
            own: What each of these counts for in its step; none where all count the same.
        """
        weights = self._stack(places)
        whole = self.support == "full_vocab"
        output = self.model.forward_each(batches, self._noisy(places, weights), "logsumexp" if whole else "none")
        label = torch.stack([batch.label for batch in batches])
        chosen = output.logits.gather(-1, label[:, :, None]).squeeze(-1)
        normaliser = output.logsumexp if whole else output.logits.logsumexp(-1)
        losses = (normaliser - chosen).mean(-1)  # type: ignore[operator]
        if self.kl_to_base:
            losses = losses + self.kl_to_base * divergence_from_base(self.model, output.logits, batches, weights)
        if own:
            losses = losses * losses.new_tensor([share.questions for share in own])
        if self.l2_product:
            norms = self.l2_product * product_norms(weights)
            losses = losses + (norms * own[0].batches if own else norms)
        return losses

    def _noisy(self, places: Sequence[int], weights: dict[str, Tensor]) -> Samples:
        """Members under noise that belongs to each and to this micro-batch."""
        draws = torch.tensor([stream(self.member_ids[place], self._micro_step) for place in places], device="cpu")
        return Samples(weights, draws, stream(self.seed, "train"))

    # --- members that train no more ------------------------------------------------------------------------------

    def _fail(self, place: int, reason: str) -> None:
        self.states.fail(place, reason)
        rank_zero_warn(f"member {self.member_ids[place]} has failed: {reason}")

    def _stop_if_none_trains(self) -> None:
        """End training where every member has stopped or failed; refuse to go on where all have failed."""
        if not self.active_members():
            self.usable_members()
            self.trainer.should_stop = True

    def on_after_backward(self) -> None:
        """Leave no gradient to members that train no more; before a scaler looks for overflow, which is for all."""
        if frozen := list(self.states.places(STOPPED, FAILED)):
            for parameter in self.trainable().values():
                if parameter.grad is not None:
                    parameter.grad[frozen] = 0

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip every member's gradient by its own norm; members whose gradient is not finite fail before the step."""
        parameters = [p for p in self.trainable().values() if p.grad is not None]
        norms = gradient_norms([p.grad for p in parameters])  # type: ignore[misc]
        broken = [place for place, fine in enumerate(norms.isfinite().tolist()) if not fine]
        for place in broken if broken and not may_overflow(self.trainer) else []:
            if place in self.active_members():
                self._fail(place, f"its gradient at step {self.global_step} is not finite")
        self.on_after_backward()
        frozen = list(self.states.places(STOPPED, FAILED))
        if gradient_clip_val and gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            factors = (gradient_clip_val / (norms + 1e-6)).clamp(max=1.0)
            for parameter in parameters:
                parameter.grad.mul_(factors.view(-1, *[1] * (parameter.dim() - 1)).to(parameter))  # type: ignore[union-attr]
        self._held = rows_of(optimizer, frozen)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and put back what momentum and decay did to members that train no more."""
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            for tensor, rows, value in self._held:
                tensor[rows] = value
        self._held = []

    # --- validation ----------------------------------------------------------------------------------------------

    def validation_step(self, batch: AnswerBatch, batch_idx: int) -> None:
        """Likelihood and accuracy of the ensemble on the validation questions, and the likelihood of every member."""
        places = self.usable_members()
        logits = self.answer_logits(batch)
        fine = logits.masked_fill(~batch.answer_mask, 0.0).isfinite().flatten(1).all(1).tolist()
        for place in (place for place, finite in zip(places, fine, strict=True) if not finite):
            self._fail(place, f"a logit on the validation questions at step {self.global_step} is not finite")
        places = self.usable_members()
        predictive = Predictive.from_logits(logits[fine])
        nll = -predictive.log_probs.gather(-1, batch.label.expand(len(places), -1)[:, :, None]).squeeze(-1).float()
        for place, own in zip(places, nll, strict=True):
            metric = self.member_nll[place]
            metric.update(own)  # type: ignore[operator]
            self.log(f"m{self.member_ids[place]}/nll", metric)  # type: ignore[arg-type]
        self._log_validation(predictive, batch)

    def on_validation_epoch_end(self) -> None:
        """Let the members that have run out of patience stop."""
        if self.trainer.sanity_checking or self.trainer.state.fn != "fit":
            return
        for place in self.active_members():
            self.states.validated(place, float(self.member_nll[place].compute()), self.trainable())  # type: ignore[operator]
        self._stop_if_none_trains()

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note where every member stands."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["bayeslora"]["members"] = self.states.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint holds these members, and take up where they stand.

        Raises:
            UsageError: no ensemble, other members, another base, another rank.
        """
        states = checkpoint.get("bayeslora", {}).get("members")
        if states is None:
            raise UsageError(
                "this checkpoint holds no ensemble; give one that LoRAEnsemble wrote, or the module it is of"
            )
        self.states.load_state_dict(states)
        super().on_load_checkpoint(checkpoint)
