"""What a base model cannot go beyond, known from its configuration alone: token ids, positions, how far it attends."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from bayeslora.models.pretrained import cannot_load, resolve_pretrained


class Limits(NamedTuple):
    """What a base cannot go beyond.

    Attributes:
        tokens: Number of rows of its input embedding.
        positions: Longest row that its table of positions takes; None where positions are computed (rotary and the
            like).
        kind: Of model, as transformers names it.
        window: How many tokens back attention reaches; None where it reaches all.
    """

    tokens: int
    positions: int | None
    kind: str = ""
    window: int | None = None


@lru_cache(maxsize=16)
def limits_of(pretrained: str, revision: str | None = None) -> Limits:
    """The limits of a base, without loading its weights.

    Args:
        pretrained: Hub name or local folder; ``embedded`` is the one in the package.
        revision: On the hub.

    Raises:
        UsageError: no such model.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    name = resolve_pretrained(pretrained)
    try:
        config: Any = AutoConfig.from_pretrained(name, revision=revision or "main").get_text_config()
    except (OSError, ValueError) as error:
        raise cannot_load("model", name, error) from error
    attention = config.model_type, getattr(config, "sliding_window", None)
    if getattr(config, "rope_parameters", None) or getattr(config, "rope_theta", None):
        return Limits(config.vocab_size, None, *attention)
    with torch.device("meta"):
        network = AutoModel.from_config(config)
    found = [positions for name, module in network.named_modules() if (positions := _positions(name, module))]
    return Limits(config.vocab_size, min(found, default=None), *attention)


def _positions(name: str, module: Any) -> int | None:
    """Usable rows of a table of positions; RoBERTa's starts behind its padding token, OPT's at an offset."""
    last = name.rpartition(".")[2]
    if not (last == "wpe" or "position" in last) or not hasattr(module, "num_embeddings"):
        return None
    lost = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
    return module.num_embeddings - lost
