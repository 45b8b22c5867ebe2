"""The last layer of a Llama-like model at the answer position, for S adapters at once, its inputs cached per question.

With LoRA on the query and value projections of the last layer alone, everything below that layer, its keys, and all
positions but the last are the same whatever the weights. What is left of question n under adapter s is

    q = R (W_q + c B_q A_q) x_T,   a_t = softmax_t(q_h . k_t / sqrt(d)),   z_h = sum_t a_t x_t,
    o = h_T + sum_h W_o,h (W_v,h + c B_v,h A_v) z_h,   f = o + MLP(norm(o)),   logits = U norm(f)

with the normed inputs x_t of the layer, rotated keys k_t, the rotation R of the last position, heads h and the rows U
of the output embedding that belong to the options. It equals the package's own forward pass (a test says so) at a small
part of the price of :class:`gold.network.WholeModel`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from gold.network import Network, Weights
from torch import Tensor, nn
from torch.nn import functional as F

from bayeslora.models.answer_model import AnswerModel
from bayeslora.types import AnswerBatch

FACTORS = ("q_proj.lora_A", "q_proj.lora_B", "v_proj.lora_A", "v_proj.lora_B")  # in the order of Adapters


@dataclass(frozen=True)
class Adapters:
    """S adapters of the last layer's query and value projections.

    Attributes:
        q_down: A of the query projection ``[S, r, D]``.
        q_up: Its B ``[S, D, r]``.
        v_down: A of the value projection ``[S, r, D]``.
        v_up: Its B ``[S, D, r]``.
    """

    q_down: Tensor
    q_up: Tensor
    v_down: Tensor
    v_up: Tensor

    @classmethod
    def from_names(cls, weights: Weights) -> Adapters:
        """From parameters by their names in the model, ``[S, *shape]`` each."""
        return cls(*(next(w for name, w in weights.items() if factor in name) for factor in FACTORS))


@dataclass(frozen=True)
class LastLayer(Network):
    """The frozen part of the layer and what reaches it from N questions.

    Attributes:
        inputs: Normed inputs of the layer ``[N, T, D]``.
        last: Those at the answer position ``[N, D]``.
        residual: Inputs at the answer position before the norm ``[N, D]``.
        keys: Rotated keys, divided by sqrt(d) ``[H, N, d, T]``.
        absent: Minus infinity at padding, else zero ``[N, T]``.
        cos: Of the rotation of the answer position ``[N, d]``.
        sin: Likewise ``[N, d]``.
        query: Frozen query, not rotated ``[N, D]``.
        values: ``W_o,h W_v,h`` side by side ``[H * D, D]``.
        out: ``W_o`` by heads ``[H, D, d]``.
        mlp: Gate, up and down projections.
        norms: Weights of the norms before the MLP and before the head.
        eps: Of the norms.
        head: Rows of the output embedding ``[N, C, D]``.
        options: Which options exist ``[N, C]``.
        label: The right options ``[N]``.
        scaling: Of LoRA, alpha / r.
    """

    inputs: Tensor
    last: Tensor
    residual: Tensor
    keys: Tensor
    absent: Tensor
    cos: Tensor
    sin: Tensor
    query: Tensor
    values: Tensor
    out: Tensor
    mlp: tuple[Tensor, Tensor, Tensor]
    norms: tuple[Tensor, Tensor]
    eps: float
    head: Tensor
    options: Tensor
    label: Tensor
    scaling: float

    def logits(self, weights: Weights) -> Tensor:
        """Answer logits ``[S, N, C]``; minus infinity at absent options."""
        hidden = self.residual + self.attention(Adapters.from_names(weights))
        normed = _norm(hidden, self.norms[0], self.eps)
        gate, up, down = self.mlp
        hidden = hidden + (F.silu(normed @ gate.T) * (normed @ up.T)) @ down.T
        logits = torch.einsum("snd,ncd->snc", _norm(hidden, self.norms[1], self.eps), self.head)
        return logits.masked_fill(~self.options, -torch.inf)

    def attention(self, adapters: Adapters) -> Tensor:
        """What attention adds to the residual ``[S, N, D]``."""
        heads, count, width, _ = self.keys.shape
        draws = len(adapters.q_up)
        inner = self.last @ adapters.q_down.mT  # [S, N, r]
        query = self.query + self.scaling * inner @ adapters.q_up.mT
        query = query.view(draws, count, heads, width)
        turned = torch.cat([-query[..., width // 2 :], query[..., : width // 2]], -1)
        query = query * self.cos[:, None] + turned * self.sin[:, None]
        scores = query.permute(2, 1, 0, 3) @ self.keys + self.absent[:, None]  # [H, N, S, T]
        mixed = scores.softmax(-1) @ self.inputs  # [H, N, S, D]
        mixed = mixed.permute(2, 1, 0, 3)  # [S, N, H, D]
        frozen = mixed.reshape(draws, count, -1) @ self.values
        up = self.out @ adapters.v_up.view(draws, heads, width, -1)  # [S, H, D, r]
        down = torch.einsum("snhd,srd->snhr", mixed, adapters.v_down)
        return frozen + self.scaling * torch.einsum("snhr,shdr->snd", down, up)


def _norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(hidden, weight.shape, weight, eps)


def widen(model: AnswerModel) -> AnswerModel:
    """The model in float64 throughout, its norms too, which transformers computes in float32 whatever comes in."""
    model.double()
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, dtype=torch.float64)
            norm.weight = module.weight
            model.get_submodule(name.rpartition(".")[0]).register_module(name.rpartition(".")[2], norm)
    return model.eval()


def cache(model: AnswerModel, batches: Sequence[AnswerBatch]) -> LastLayer:
    """The last layer of ``model``, in the model's dtype, and what reaches it from the questions of ``batches``.

    Args:
        model: A Llama-like model, widened, with LoRA on nothing but ``q_proj`` and ``v_proj`` of its last layer.
        batches: The questions, padded to one length.

    Raises:
        ValueError: trainable parameters elsewhere, or attention with grouped keys.
    """
    trunk: Any = _base(model).model
    layer, attention = trunk.layers[-1], trunk.layers[-1].self_attn
    place = f"layers.{len(trunk.layers) - 1}.self_attn."
    if sorted(name for name in model.trainable() if place not in name) or attention.num_key_value_groups != 1:
        raise ValueError("allowed: LoRA on q_proj and v_proj of the last layer, and as many keys as queries")
    with torch.no_grad():
        found = [_questions(model, layer, batch) for batch in batches]
        parts = {name: torch.cat([one[name] for one in found]) for name in found[0]}
        width = attention.head_dim
        base = {name: getattr(attention, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
        weights = {name: getattr(m, "base_layer", m).weight for name, m in base.items()}
        keys = (parts["inputs"] @ weights["k_proj"].T).unflatten(-1, (-1, width))  # [N, T, H, d]
        cos, sin = parts.pop("cos"), parts.pop("sin")
        turned = torch.cat([-keys[..., width // 2 :], keys[..., : width // 2]], -1)
        keys = (keys * cos[:, :, None] + turned * sin[:, :, None]) * attention.scaling
        out = weights["o_proj"].unflatten(-1, (-1, width)).movedim(1, 0)  # [H, D, d]
        values = weights["v_proj"].unflatten(0, (-1, width))  # [H, d, D]
        return LastLayer(
            **parts,
            last=parts["inputs"][:, -1],
            keys=keys.permute(2, 0, 3, 1).contiguous(),
            cos=cos[:, -1],
            sin=sin[:, -1],
            query=parts["inputs"][:, -1] @ weights["q_proj"].T,
            values=(out @ values).mT.flatten(0, 1).contiguous(),
            out=out.contiguous(),
            mlp=tuple(getattr(layer.mlp, name).weight.detach() for name in ("gate_proj", "up_proj", "down_proj")),
            norms=(layer.post_attention_layernorm.weight.detach(), trunk.norm.weight.detach()),
            eps=trunk.norm.eps,
            scaling=next(iter(attention.q_proj.scaling.values())),
        )


def _questions(model: AnswerModel, layer: Any, batch: AnswerBatch) -> dict[str, Tensor]:
    """What a batch brings to the layer."""
    with _arriving(layer) as found:
        model(batch)
    hidden, (cos, sin) = found["hidden"], found["rotation"]
    return {
        "inputs": layer.input_layernorm(hidden),
        "residual": hidden[:, -1],
        "cos": cos.expand(len(hidden), -1, -1),
        "sin": sin.expand(len(hidden), -1, -1),
        "absent": torch.zeros_like(hidden[..., 0]).masked_fill(~batch.attention_mask.bool(), -torch.inf),
        "head": _base(model).get_output_embeddings().weight[batch.answer_ids],
        "options": batch.answer_mask,
        "label": batch.label,
    }


def _base(model: AnswerModel) -> Any:
    return model.network.get_base_model()  # type: ignore[operator]


@contextmanager
def _arriving(layer: Any) -> Iterator[dict[str, Any]]:
    """What the layer is called with within the block."""
    found: dict[str, Any] = {}

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note what the layer is called with."""
        found["hidden"] = args[0] if args else kwargs["hidden_states"]
        found["rotation"] = kwargs["position_embeddings"]

    handle = layer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()
