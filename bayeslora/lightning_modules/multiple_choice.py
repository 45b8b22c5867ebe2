"""What every LightningModule of the package shares: the model, the prediction path, the optimiser, the checkpoint."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import MeanMetric

from bayeslora.errors import UsageError, require
from bayeslora.lightning_modules.cut_steps import places_in_data, run_length, take_up, unfinished_gradients
from bayeslora.lightning_modules.optimisation import Optimisation
from bayeslora.lightning_modules.prediction_path import PredictionPath
from bayeslora.lightning_modules.progress import bar_is_shown
from bayeslora.lightning_modules.refusals import check_parameters, refuse_shards, stop_at_nan
from bayeslora.lightning_modules.step_share import StepShare, shares
from bayeslora.metrics.calibration import ECE
from bayeslora.metrics.means import Brier, Mean
from bayeslora.models.answer_model import AnswerModel, Vocabulary
from bayeslora.models.in_place import write_weights
from bayeslora.models.loading import Backbone, LoRA, config_of, load_answer_model
from bayeslora.posteriors.point import Point
from bayeslora.streams import stream
from bayeslora.types import AnswerBatch, AnswerOutput, Posterior, Predictive, Samples

__all__ = ["MultipleChoiceModule"]

SUPPORTS = ("options", "full_vocab")


class MultipleChoiceModule(L.LightningModule):
    """Fine-tunes LoRA on multiple-choice questions and predicts them; methods change the loss or the samples.

    Args:
        backbone: The frozen base model.
        lora: The trained low-rank update.
        optimisation: How it is optimised: learning rate, weight decay, warm-up.
        support: What the loss normalises over: the ``options``' labels, or the ``full_vocab``. None takes what the
            data's protocol asks for.
        chunk: How many samples to predict in one pass; None fits them to memory.
        seed: Seeds initial weights and noise.
        flat: Fields of ``optimisation`` by their own names, as before there was one; deprecated.
    """

    load_on = torch.device("cpu")  # where a quantised base is put, unless a trainer says where
    own_entries: tuple[str, ...] = ()  # parts of names in an adapter's file that are this method's, not plain LoRA's

    def __init__(
        self,
        backbone: Backbone | None = None,
        lora: LoRA | None = None,
        *,
        optimisation: Optimisation | None = None,
        support: str | None = None,
        chunk: int | None = None,
        seed: int = 0,
        **flat: Any,
    ) -> None:
        super().__init__()
        self.backbone, self.lora = config_of(Backbone, backbone), config_of(LoRA, lora)
        require("support", support, support in (None, *SUPPORTS), ", ".join(SUPPORTS))
        self.optimisation = Optimisation.of(optimisation, flat)
        self.support, self.chunk, self.seed = support, chunk, seed
        self.save_hyperparameters()
        self.hparams["optimisation"] = self.optimisation
        for name in flat:
            del self.hparams[name]
        for name, value in self.hparams.items():  # checkpoints load with weights_only: plain types alone
            if is_dataclass(value) and not isinstance(value, type):
                self.hparams[name] = asdict(value)
        self.strict_loading = False  # checkpoints hold trainable parameters only; check_parameters is the strict part
        self.model: AnswerModel = None  # type: ignore[assignment]  # until configure_model
        self.prediction = PredictionPath(self.predictive)
        self.val_nll, self.val_accuracy = MeanMetric(), MeanMetric()
        self.val_ece, self.val_brier, self.val_entropy = ECE(), Brier(), Mean()
        self._micro_step = 0
        self._learned = False  # parameters that were trained or read, not just initial
        self._gradients: dict[str, Tensor] = {}
        self._places: list[dict[str, int]] = []  # in the data
        self._length_before: dict[str, float] = {}
        self._bank: Samples | None = None  # of the evaluation that runs

    @property
    def learning_rate(self) -> float:
        """Peak learning rate, where Lightning's learning rate finder looks for it."""
        return self.optimisation.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        """Set it, as the finder does."""
        self.optimisation.learning_rate = value

    # --- the model -----------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load the base and put LoRA on it, once.

        Raises:
            UsageError: a strategy that shards weights, a precision that converts those of LoRA.
        """
        if self.model is not None:
            return
        device = self.load_on
        if self._trainer is not None:
            refuse_shards(self.trainer, "LoRA")
            precision = self.trainer.precision
            if precision in ("16-true", "bf16-true", "64-true"):
                raise UsageError(
                    f"precision {precision} would convert LoRA's weights; allowed: 32-true, bf16-mixed, 16-mixed"
                )
            device = self.trainer.strategy.root_device
        self.model = load_answer_model(self.backbone, self.lora, self.seed, device, self.own_entries)

    @property
    def method(self) -> str:
        """What a table calls this method."""
        return type(self).__name__.removesuffix("Module").lower()

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The trainable parameters by the names a posterior knows them by."""
        return self.model.trainable()

    def weight_sets(self) -> list[dict[str, Tensor]]:
        """The networks that are trained side by side, as parameters by plain name: one, or the members of a stack."""
        return [dict(self.trainable())]

    def active_members(self) -> tuple[int, ...]:
        """Which of :meth:`weight_sets` still train."""
        return (0,)

    def usable_members(self) -> tuple[int, ...]:
        """Which of :meth:`weight_sets` have not failed."""
        return (0,)

    def posterior(self) -> Posterior:
        """What training has found, as a run folder keeps it: here the current weights as a point."""
        return Point(self.trainable())

    def as_served(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Constructor arguments and parameters of a module that predicts as this one does now.

        They are plain values and tensors, which a run keeps so that new questions can be asked.
        """
        arguments = {name: value for name, value in self.hparams.items() if not name.startswith("_")}
        return arguments, self.state_dict()

    # --- prediction ----------------------------------------------------------------------------------------------

    def default_samples(self) -> Samples | None:
        """The functions that are meant wherever no samples are given; None for the current weights alone.

        A method whose model is several functions at once (a stack of members, say) gives them here, and every way to
        ask the model follows: answers, validation, prediction, the whole vocabulary.
        """
        return None

    def test_samples(self) -> Samples | None:
        """The bank of samples that every question of an evaluation meets; None for :meth:`default_samples`.

        It is drawn once, when testing or predicting starts, so that all questions meet the same S functions. A method
        that predicts with samples draws them here, from streams named after its ``seed``.
        """
        return None

    def on_test_start(self) -> None:
        """Draw the bank of this evaluation."""
        self._bank = self.test_samples()

    def on_test_end(self) -> None:
        """Let go of it."""
        self._bank = None

    def on_predict_start(self) -> None:
        """As for a test."""
        self.on_test_start()

    def on_predict_end(self) -> None:
        """As for a test."""
        self.on_test_end()

    def answers(
        self, batch: AnswerBatch, samples: Samples | None = None, vocabulary: Vocabulary = "none"
    ) -> AnswerOutput:
        """What S functions answer, ``[S, B, ...]``: the one way from a batch to the model, in training as in testing.

        Args:
            batch: B questions.
            samples: The S functions; None for :meth:`default_samples`, S = 1 where these are the current weights.
            vocabulary: Whether the log-sum-exp over the vocabulary, or its logits too, are wanted.
        """
        samples = self.default_samples() if samples is None else samples
        output = self.model(batch, samples, vocabulary, self.chunk)
        if samples is not None:
            return output
        parts = (output.logits, output.logsumexp, output.vocab_logits)
        return AnswerOutput(*(None if part is None else part[None] for part in parts))  # type: ignore[arg-type]

    def answer_logits(self, batch: AnswerBatch, samples: Samples | None = None) -> Tensor:
        """Logits ``[S, B, C]`` of S samples, or of :meth:`default_samples`.

        Args:
            batch: The questions.
            samples: The S functions to evaluate; None takes :meth:`default_samples`.
        """
        return self.answers(batch, samples).logits

    def predictive(self, batch: AnswerBatch) -> Predictive:
        """What this module predicts without a posterior callback: the mean over the bank of samples."""
        return self.sampled(batch, self._bank or self.test_samples())

    def sampled(self, batch: AnswerBatch, samples: Samples | None = None) -> Predictive:
        """The prediction of S samples as equally weighted members; their log-sum-exp is kept for label tokens.

        Args:
            batch: The questions.
            samples: The S functions to evaluate; None takes :meth:`default_samples`.
        """
        output = self.answers(batch, samples, "logsumexp" if self.backbone.readout == "label_token" else "none")
        stop_at_nan(output.logits.masked_fill(~batch.answer_mask, 0.0), batch, "a logit")
        return Predictive.from_logits(output.logits, output.logsumexp)

    def vocabulary_logits(self, batch: AnswerBatch) -> Tensor:
        """Logits ``[S, B, V]`` of the whole vocabulary at the answer position, of :meth:`default_samples`."""
        return self.answers(batch, None, "logits").vocab_logits  # type: ignore[return-value]

    def test_step(self, batch: AnswerBatch, batch_idx: int, dataloader_idx: int = 0) -> Predictive:  # type: ignore[override]
        """The prediction path's answer, for callbacks to read."""
        return self.prediction(batch)

    def predict_step(self, batch: AnswerBatch, batch_idx: int, dataloader_idx: int = 0) -> Predictive:  # type: ignore[override]
        """The prediction path's answer, for callbacks to read."""
        return self.prediction(batch)

    def validation_step(self, batch: AnswerBatch, batch_idx: int) -> None:
        """What the current weights are worth on the validation questions: likelihood, accuracy and calibration."""
        self._log_validation(self.sampled(batch), batch)

    def _log_validation(self, predictive: Predictive, batch: AnswerBatch) -> None:
        """Log NLL, accuracy, ECE (15 bins), Brier score and mean entropy (nats), each over all validation questions.

        Their names are ``val/nll`` and so on, and any of them can be monitored.
        """
        self.val_nll.update(predictive.nll(batch.label).float())
        self.val_accuracy.update((predictive.probs.argmax(-1) == batch.label).float())
        self.val_ece.update(predictive.probs, batch.label)
        self.val_brier.update(predictive.probs, batch.label)
        self.val_entropy.update(predictive.total)
        self.log("val/nll", self.val_nll, prog_bar=True)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)
        self.log_dict({"val/ece": self.val_ece, "val/brier": self.val_brier, "val/entropy": self.val_entropy})

    # --- training ------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Put the model in train mode, which Hugging Face models are not in by default."""
        self.model.train()
        if self.support is None:
            self.support = getattr(self.trainer.datamodule, "support", None) or "options"  # type: ignore[attr-defined]

    @property
    def training_size(self) -> int:
        """Number of training questions, of all processes."""
        return len(self.trainer.train_dataloader.dataset)  # type: ignore[union-attr]

    def training_noise(self) -> Samples:
        """One draw of noise that belongs to this micro-batch of this run."""
        return Samples(draws=torch.tensor([self._micro_step], device="cpu"), seed=stream(self.seed, "train"))

    def training_step(self, batch: AnswerBatch, batch_idx: int) -> Tensor:
        """The loss of one micro-batch."""
        loss, penalty = self.loss(batch), self.penalty()
        seen = loss if penalty is None else loss + penalty
        stop_at_nan(seen, batch, f"the loss at step {self.global_step}")
        self._micro_step += 1
        self.log("train/loss", seen.detach(), prog_bar=bar_is_shown(self._trainer), batch_size=len(batch))
        share = shares(self.trainer, batch_idx)[0]
        return seen if share == StepShare() else share.of(loss, penalty)

    def loss(self, batch: AnswerBatch) -> Tensor:
        """What is minimised, as a mean over a batch's questions: here the negative log-likelihood."""
        return self.nll(batch, self.training_noise())

    def penalty(self) -> Tensor | None:
        """What is minimised beside :meth:`loss` and does not depend on a batch's questions, such as a prior; or None.

        It is apart because a micro-batch of few questions counts less in its optimiser step, a prior does not
        (:class:`~bayeslora.lightning_modules.step_share.StepShare`).
        """
        return None

    def nll(self, batch: AnswerBatch, samples: Samples) -> Tensor:
        """Mean negative log-likelihood of the labels under one sample, over the support of the loss.

        Args:
            batch: The questions.
            samples: The S functions to evaluate; None takes :meth:`default_samples`.
        """
        if self.support == "full_vocab":
            output = self.answers(batch, samples, "logsumexp")
            if output.logsumexp is None:
                raise UsageError(
                    "support is full_vocab, but label scores divided by lengths are no probabilities; use options"
                )
            chosen = output.logits[0].gather(-1, batch.label[:, None]).squeeze(-1)
            return (output.logsumexp[0] - chosen).mean()
        return torch.nn.functional.cross_entropy(self.answers(batch, samples).logits[0], batch.label)

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and linear decay to zero, stepped every optimiser step."""
        return self.scheduled(self.adamw(self.parameter_groups()))

    def adamw(self, groups: list[dict[str, Any]], eps: float = 1e-8) -> torch.optim.AdamW:
        """AdamW at this run's rate and decay, where a group has none of its own.

        Args:
            groups: Parameter groups, as torch's optimisers take them.
            eps: Added to the denominator of AdamW's step.
        """
        own = self.optimisation
        return torch.optim.AdamW(groups, lr=own.learning_rate, weight_decay=own.weight_decay, eps=eps)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser trains, as its parameter groups."""
        return [{"params": list(self.trainable().values())}]

    def scheduled(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """An optimiser with the warm-up and decay of this run, as the trainer takes it."""
        total = self.trainer.estimated_stepping_batches
        if total == float("inf"):
            raise UsageError(
                "the learning rate's decay needs the length of the run, which max_epochs -1 does not tell; give "
                "max_epochs or max_steps (max_time may end it earlier)"
            )
        scheduler = self.optimisation.schedule(optimizer, int(total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The trainable parameters under their plain names; never the base."""
        return {prefix + name: parameter.detach() for name, parameter in self.trainable().items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what the parameters belong to, where the noise stands, and gradients still adding up."""
        checkpoint["bayeslora"] = {
            "base": self.model.base_fingerprint,
            "micro_step": self._micro_step,
            "gradients": unfinished_gradients(self.trainer, self.trainable()),
            "run": run_length(self.trainer),
        }

    def on_train_start(self) -> None:
        """Take up the gradients of an optimiser step that a checkpoint cut in two; say if the run's length changed."""
        self._learned = True
        now = run_length(self.trainer)
        for what, before in self._length_before.items():
            if before != now[what]:
                rank_zero_warn(
                    f"this run has {now[what]:g} {what}, the one whose checkpoint it goes on from had {before:g}: "
                    "learning rates and other schedules go on as those of the run as it is now"
                )
        self._length_before = {}
        take_up(self.trainer, self.trainable(), self._gradients, self._places)
        self._gradients, self._places = {}, []

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits this model, parameter by parameter.

        Raises:
            UsageError: another base, another rank, a missing or unexpected parameter.
        """
        if "bayeslora" not in checkpoint:
            raise UsageError("this checkpoint was not written by bayeslora; allowed: checkpoints of this package")
        own = checkpoint["bayeslora"]
        base = self.model.base_fingerprint
        if own["base"] != base:
            raise UsageError(
                f"the checkpoint was trained on another base (fingerprint {own['base']}) than "
                f"{self.backbone.pretrained} ({base}); give backbone.pretrained the base it was trained on",
            )
        check_parameters(checkpoint["state_dict"], self.trainable())
        self._micro_step, self._gradients = own["micro_step"], own["gradients"]
        self._places = places_in_data(checkpoint)
        self._length_before = own.get("run", {})  # checkpoints of version 0.1.0 have none

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load trainable parameters by their plain names, into a model that is loaded first where there is none.

        There is none in the process that started ranks by fork or spawn and takes what they have trained.
        """
        self.configure_model()
        trainable = self.trainable()
        check_parameters(state_dict, trainable)
        write_weights(trainable, {name: state_dict[name] for name in trainable})
        self._learned = True
        return torch.nn.modules.module._IncompatibleKeys([], [])
