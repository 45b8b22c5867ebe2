"""Attention masks that are finished before the model sees them, so that nobody has to look into them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayeslora.errors import UsageError

# Kinds of models that take a finished mask as it is and read nothing else from a mask [R, T]; each is in a test.
FINISHED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3")
IMPLEMENTATIONS = ("sdpa", "eager")  # of attention, that take one
ENCODERS = ("bert", "roberta", "xlm-roberta", "electra")


def causal_mask(config: Any, mask: Tensor, dtype: torch.dtype, segments: Tensor | None = None) -> Tensor:
    r"""What a causal model is to be given as its ``attention_mask``.

    Of a mask ``[R, T]`` transformers asks whether any token is padding at all, and a GPU's host waits for the answer
    in every forward pass (`transformers #43088 <https://github.com/huggingface/transformers/issues/43088>`_). So
    models of known kinds get the mask that transformers would make of it, finished: query i of row n may attend to key
    j where :math:`j \le i` and token j of the row is real.

    Args:
        config: Of the model: its kind, its implementation of attention, and how far attention reaches.
        mask: Which tokens are real ``[R, T]``.
        dtype: Of the model's activations.
        segments: Where tokens in several segments stand behind a prompt, the segment of each, zero for the prompt
            ``[R, T]``: they attend to the prompt and to their own segment alone.

    Returns:
        ``[R, 1, T, T]``: bool for ``sdpa``, a summand of the scores for ``eager``. Or the mask ``[R, T]`` as it is: for
        other kinds of models and other implementations, and for rows longer than a sliding window, beyond which
        attention does not reach.

    Raises:
        UsageError: there are segments, and the model is one of these others.
    """
    length = mask.shape[-1]
    window = getattr(config, "sliding_window", None)
    if segments is not None:
        check_segments(getattr(config, "model_type", ""), getattr(config, "_attn_implementation", ""), window, length)
    elif not _takes_finished(config, FINISHED) or length >= (window or length + 1):
        return mask
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    allowed = causal & mask.bool()[:, None, None, :]
    if segments is not None:
        keys, queries = segments[:, None, None, :], segments[:, None, :, None]
        allowed = allowed & ((keys == 0) | (keys == queries))
    return _finished(config, allowed, dtype)


def encoder_mask(config: Any, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What an encoder is to be given as its ``attention_mask``: as :func:`causal_mask`, but to keys on both sides.

    Args:
        config: Of the model: its kind, and its implementation of attention.
        mask: Which tokens are real ``[R, T]``.
        dtype: Of the model's activations.

    Returns:
        ``[R, 1, T, T]``, or the mask ``[R, T]`` as it is for other kinds of models and other implementations.
    """
    if not _takes_finished(config, ENCODERS) or mask.dim() != 2:
        return mask
    return _finished(config, mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[-1], -1), dtype)


def finish_encoder_mask(trunk: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A hook in front of an encoder: the model around it makes ``[R, T]`` of whatever mask it is given.

    Args:
        trunk: The encoder.
        args: What it is called with by position.
        kwargs: What it is called with by name, the mask among it.
    """
    mask = kwargs.get("attention_mask")
    if mask is None:
        return None
    dtype = trunk.get_input_embeddings().weight.dtype
    return args, {**kwargs, "attention_mask": encoder_mask(trunk.config, mask, dtype)}


def _takes_finished(config: Any, kinds: tuple[str, ...]) -> bool:
    known = getattr(config, "model_type", "") in kinds
    return known and getattr(config, "_attn_implementation", None) in IMPLEMENTATIONS


def _finished(config: Any, allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """In the form that the implementation of attention takes."""
    if config._attn_implementation == "sdpa":
        return allowed
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)


def check_segments(kind: str, attention: str, window: int | None, length: int = 0) -> None:
    """Refuse a model that does not attend as labels of several tokens behind one prompt need it.

    Args:
        kind: Of model, as transformers names it.
        attention: Its implementation of attention.
        window: How many tokens back attention reaches; None where it reaches all.
        length: Tokens of the longest row, labels included.

    Raises:
        UsageError: it takes no finished mask, or a row is longer than its window.
    """
    if kind not in FINISHED or attention not in IMPLEMENTATIONS:
        raise UsageError(
            f"labels of several tokens need a mask of their own, which a {kind} with attention {attention!r} is not "
            f"known to take; allowed: {', '.join(FINISHED)} with sdpa or eager, or words of one token (end: null)"
        )
    if window and length >= window:
        raise UsageError(
            f"a question with its labels behind it has {length} tokens, and attention of this model reaches {window}; "
            "give max_length and words that leave room, or words of one token (end: null)"
        )
