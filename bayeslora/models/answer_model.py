"""A language model that answers multiple-choice questions, for one sample or for S at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bayeslora.errors import UsageError
from bayeslora.models.fan_out import FanOut, fitting_chunk, tail_state
from bayeslora.models.masks import causal_mask, finish_encoder_mask
from bayeslora.models.members import join_batches, joined_state
from bayeslora.models.sites import ADAPTER, SiteContext, plain_name
from bayeslora.types import AnswerBatch, AnswerOutput, Samples, WholeLabels

Vocabulary = Literal["none", "logsumexp", "logits"]
_VOCABULARY_CHUNK = 8192  # rows of the head that are held in float32 at a time
_RESCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


class AnswerModel(nn.Module):
    """Answer logits of a peft model whose linear maps are LoRA sites.

    Read-outs: ``label_token`` takes the last position of a causal model through the rows of its head that belong to
    the options' labels, in float32 and outside autocast, LoRA on the head included; ``head`` takes an encoder's
    classification head, one row per option or, with ``num_labels``, one row per question. A tensor over positions and
    vocabulary exists in neither.

    Args:
        network: The peft model.
        context: The state its sites share.
        sites: Names of the sites' modules.
        readout: ``label_token`` or ``head``.
        num_labels: Number of classes of a sequence classifier; None where options are rows.
    """

    base_fingerprint: str = ""

    def __init__(
        self, network: nn.Module, context: SiteContext, sites: list[str], readout: str, num_labels: int | None = None
    ) -> None:
        super().__init__()
        self.network, self.context, self.sites = network, context, sites
        self.readout, self.num_labels = readout, num_labels
        self.initial: dict[str, Tensor] = {}  # values training begins with, where a stream of LoRA's does not give them
        self._quantised = [m for m in network.modules() if type(m).__module__.startswith("bitsandbytes.")]
        self.fan_out = FanOut(self._trunk, context)
        if readout == "label_token":
            _refuse_rescaled_logits(network)
        else:
            self._trunk.register_forward_pre_hook(finish_encoder_mask, with_kwargs=True)
        self.train(self.training)

    @property
    def _base(self) -> Any:
        return self.network.get_base_model()  # type: ignore[operator]

    @property
    def _trunk(self) -> Any:
        return self._base.base_model

    def train(self, mode: bool = True) -> AnswerModel:
        """Set train or eval mode. Quantised layers stay in train mode for life.

        On CPUs with bfloat16 instructions, a 4-bit layer in eval mode repacks its weights for inference; from then on
        the gradients below it are silently lost.
        """
        super().train(mode)
        for module in self._quantised:
            module.training = True
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> AnswerModel:
        """Move the model, whatever of it a parent is asked to move.

        From their first forward pass on, 8-bit layers keep their weight and its scales in a state of their own, which
        a move of the layer's parents leaves behind: a copy of the base would stay on the GPU, and be used.
        """
        super()._apply(fn, recurse)
        for module in self._quantised:
            state = getattr(module, "state", None)
            if state is not None and state.CB is not None:
                state.CB = module.weight.data  # what they share before the move
                state.SCB = fn(state.SCB)
        return self

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by their plain names, in the order of the network."""
        return {plain_name(name): p for name, p in self.network.named_parameters() if p.requires_grad}

    def note_initial(self, which: Callable[[str], bool]) -> None:
        """Keep the present values of some trainable parameters as those that training begins with.

        :func:`~bayeslora.models.loading.initialise` gives A and B again from their names; this is for all others, and
        for those that a method changes before it trains.

        Args:
            which: Whether a parameter of this name is meant.
        """
        self.initial |= {name: p.detach().cpu().clone() for name, p in self.trainable().items() if which(name)}

    @property
    def has_noise(self) -> bool:
        """Whether a draw of noise changes anything: dropout in the adapter, or a law inside its update."""
        return any(getattr(module, "noisy", False) for module in self.network.modules())

    @property
    def adapter_config(self) -> dict[str, Any]:
        """The configuration of the adapter as plain peft reads it from disk."""
        configs: Any = self.network.peft_config
        return {**configs[ADAPTER].to_dict(), "inference_mode": True}

    def checkpoint_gradients(self) -> None:
        """Recompute layers in the backward pass, with the state the sites had in the forward pass."""
        enable = getattr(self._base, "activation_checkpointing_enable", None)
        enable = enable or self._base.gradient_checkpointing_enable
        enable({"use_reentrant": False, "context_fn": self._recompute_context})

    def _recompute_context(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), self.context.using(self.context.state)

    def forward(
        self,
        batch: AnswerBatch,
        samples: Samples | None = None,
        vocabulary: Vocabulary = "none",
        chunk: int | None = None,
    ) -> AnswerOutput:
        """Answer logits of B questions.

        Args:
            batch: The questions.
            samples: S functions to evaluate; None evaluates the current weights without noise.
            vocabulary: Whether the log-sum-exp over the vocabulary, or its logits too, are wanted (label tokens only).
            chunk: How many samples to run at a time; None runs all with gradients, and what fits memory without.

        Returns:
            Logits ``[B, C]`` without samples, ``[S, B, C]`` with.

        Raises:
            UsageError: samples of a parameter that no site has.
        """
        if samples is None:
            with self.fan_out.active(batch, None):
                return self._read(batch, vocabulary)
        self._refuse_others(samples)
        if chunk is None:
            whole = torch.is_grad_enabled() or len(samples) == 1  # memory is asked for where the answer counts
            chunk = len(samples) if whole else fitting_chunk(batch, samples, self._bytes_per_token)
        parts = []
        for start in range(0, len(samples), chunk):
            part = samples[start : start + chunk]
            with self.fan_out.active(batch, part):
                parts.append(_unfold(self._read(batch, vocabulary), len(part)))
        return _concatenate(parts)

    def forward_each(
        self, batches: Sequence[AnswerBatch], samples: Samples, vocabulary: Vocabulary = "none"
    ) -> AnswerOutput:
        """Sample s answers the questions of batch s, all in one pass.

        Args:
            batches: S batches of equally many questions and rows.
            samples: Their S functions.
            vocabulary: Whether the log-sum-exp over the vocabulary, or its logits too, are wanted (label tokens only).

        Returns:
            Logits ``[S, B, C]``, C the largest option count of any batch.
        """
        left = self.readout == "label_token"
        batch = join_batches(batches, left, getattr(self.network.config, "pad_token_id", None) or 0)
        with self.fan_out.apart(joined_state(batch, samples)):
            return _unfold(self._read(batch, vocabulary), len(batches))

    def _refuse_others(self, samples: Samples) -> None:
        """Refuse values of parameters that no site has: the pass would go on with the model's own, without a word."""
        sites = set(self.sites)
        for name in samples.weights:
            site, _, kind = name.rpartition(".")
            if kind not in ("weight", "bias") or site not in sites:
                raise UsageError(
                    f"{name} is trained, and is no linear map's of LoRA or a head, so that it cannot be drawn beside "
                    "the others in one pass; start from an adapter of LoRA alone (bias none, no trained tokens)"
                )

    @property
    def _bytes_per_token(self) -> int:
        config: Any = self.network.config
        wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        return 4 * (6 * config.hidden_size + 3 * wide)  # float32 upper bound on what one layer holds at once

    def _read(self, batch: AnswerBatch, vocabulary: Vocabulary) -> AnswerOutput:
        if self.readout == "head":
            return AnswerOutput(self._classify(batch))
        whole = batch.whole_labels
        positions = (batch.prompt_mask.cumsum(-1) - 1).clamp(min=0)
        hidden = self._hidden(batch, positions if whole is None else positions + whole.offsets)
        if whole is None:
            return self._answer(self.fan_out.expand(hidden[:, -1]), batch, vocabulary)
        return self._score(self.fan_out.expand(hidden[:, -whole.reach :]), batch, whole, vocabulary)

    def _hidden(self, batch: AnswerBatch, positions: Tensor) -> Tensor:
        """The last layer's hidden states ``[R, T, D]``."""
        trunk, segments = self._trunk, None if batch.whole_labels is None else batch.whole_labels.segments
        dtype = trunk.get_input_embeddings().weight.dtype
        mask = causal_mask(trunk.config, batch.attention_mask, dtype, segments)
        found = trunk(input_ids=batch.input_ids, attention_mask=mask, position_ids=positions, use_cache=False)
        return found.last_hidden_state  # type: ignore[no-any-return]

    def _classify(self, batch: AnswerBatch) -> Tensor:
        """Logits ``[S * B, C]`` of an encoder's head."""
        one_row_each = self.num_labels is None
        extra = {} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **extra}
        if one_row_each:
            inputs = {name: value[:, None] for name, value in inputs.items()}
        scores = _wide(self._base(**inputs).logits)
        groups = self.fan_out.copies
        if not one_row_each:
            return scores.masked_fill(~batch.answer_mask.repeat(groups, 1), -torch.inf)
        logits = scores.new_full((groups, *batch.answer_mask.shape), -torch.inf)
        rows = (torch.arange(groups, device=scores.device)[:, None], batch.example_of_row, batch.option_of_row)
        return logits.index_put(rows, scores.view(groups, -1)).flatten(0, 1)

    def _answer(self, hidden: Tensor, batch: AnswerBatch, vocabulary: Vocabulary) -> AnswerOutput:
        """Answer logits ``[S * B, C]`` of the hidden states ``[S * B, D]`` at the answer position."""
        head = _Head(self._base.get_output_embeddings())
        answer_ids = batch.answer_ids.repeat(self.fan_out.copies, 1)
        absent = ~batch.answer_mask.repeat(self.fan_out.copies, 1)
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = _wide(hidden)
            rows, place = answer_ids.unique(return_inverse=True)
            logits = head(hidden, rows).gather(-1, place).masked_fill(absent, -torch.inf)
            if vocabulary == "none":
                return AnswerOutput(logits)
            if vocabulary == "logits":
                vocab_logits = torch.cat([head(hidden, rows) for rows in head.pieces(hidden.device)], -1)
                return AnswerOutput(logits, vocab_logits.logsumexp(-1), vocab_logits)
            return AnswerOutput(logits, head.logsumexp(hidden))

    def _score(self, hidden: Tensor, batch: AnswerBatch, whole: WholeLabels, vocabulary: Vocabulary) -> AnswerOutput:
        """Scores ``[S * B, C]`` of labels of several tokens, from hidden states at their places ``[S * B, K, D]``."""
        head, copies = _Head(self._base.get_output_embeddings()), self.fan_out.copies
        _refuse_vocabulary(vocabulary)
        ids, places, weights = (t.repeat(copies, 1, 1) for t in (whole.ids, whole.places, whole.weights))
        own = self.context.using(tail_state(self.context.state, batch, whole))
        with own, torch.autocast(hidden.device.type, enabled=False):
            hidden = _wide(hidden)
            rows, row = ids.unique(return_inverse=True)
            question = torch.arange(len(hidden), device=hidden.device)[:, None, None]
            place = hidden.shape[1] - places
            logsumexp = head.logsumexp(hidden)
            chosen = head(hidden, rows)[question, place, row] - logsumexp[question, place]
            scores = (chosen * weights.to(chosen.dtype)).sum(-1)
            scores = scores.masked_fill(~batch.answer_mask.repeat(copies, 1), -torch.inf)
        every = vocabulary == "logsumexp" and not whole.normalised
        return AnswerOutput(scores, scores.new_zeros(len(scores)) if every else None)


class _Head:
    """The output embedding, with or without LoRA, restricted to some rows: ``h W[rows]^T + s (A h) B[rows]^T``."""

    def __init__(self, layer: nn.Module) -> None:
        base: Any = getattr(layer, "base_layer", layer)
        self.weight, self.bias = base.weight, base.bias
        adapted = hasattr(layer, "lora_A") and not layer.disable_adapters
        self.layer: Any = layer if adapted else None

    def pieces(self, device: torch.device) -> tuple[Tensor, ...]:
        """The numbers of all rows, in pieces that are held at a time."""
        return torch.arange(self.weight.shape[0], device=device).split(_VOCABULARY_CHUNK)

    def logsumexp(self, hidden: Tensor) -> Tensor:
        """Log-sum-exp over the whole vocabulary ``[...]`` of hidden states ``[..., D]``."""
        pieces = [self(hidden, rows).logsumexp(-1) for rows in self.pieces(hidden.device)]
        return torch.stack(pieces).logsumexp(0)

    def __call__(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """``hidden [..., D]`` and row numbers ``[K]`` to logits ``[..., K]``."""
        bias = None if self.bias is None else _wide(self.bias[rows])
        logits = nn.functional.linear(hidden, _wide(self.weight[rows]), bias)
        if self.layer is None:
            return logits
        down, up = self.layer.lora_A[ADAPTER], self.layer.lora_B[ADAPTER]
        inner = down(self.layer.lora_dropout[ADAPTER](hidden.to(down.weight.dtype)))
        return logits + self.layer.scaling[ADAPTER] * _wide(up(inner, rows))


def _wide(tensor: Tensor) -> Tensor:
    """At least float32: a model in float64 keeps it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _unfold(output: AnswerOutput, groups: int) -> AnswerOutput:
    """Split the leading ``[S * B]`` of every tensor into ``[S, B]``."""
    parts = (output.logits, output.logsumexp, output.vocab_logits)
    return AnswerOutput(*(None if t is None else t.unflatten(0, (groups, -1)) for t in parts))  # type: ignore[arg-type]


def _concatenate(outputs: list[AnswerOutput]) -> AnswerOutput:
    columns = zip(*((o.logits, o.logsumexp, o.vocab_logits) for o in outputs), strict=True)
    return AnswerOutput(*(None if c[0] is None else torch.cat(c) for c in columns))  # type: ignore[arg-type]


def _refuse_vocabulary(vocabulary: Vocabulary) -> None:
    """Refuse what needs one answer position a row, which labels of several tokens do not have."""
    if vocabulary == "logits":
        raise UsageError(
            "labels of several tokens have no one answer position, so that the vocabulary's logits there are not "
            "known; give the protocol words of one token (end: null), or leave out what asks for them"
        )


def _refuse_rescaled_logits(network: nn.Module) -> None:
    config = network.config.to_dict()  # type: ignore[operator, union-attr]
    found = [key for key in _RESCALED_LOGITS if config.get(key) not in (None, 1, 1.0)]
    if found:
        raise UsageError(f"this model rescales its logits ({', '.join(found)}); allowed: models whose head is linear")
