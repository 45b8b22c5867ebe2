"""Models with contextual LoRA modules."""

import torch

from bayeslora.models.answer_model import AnswerModel
from bayeslora.models.c_lora import ContextualSites
from bayeslora.models.loading import Backbone, LoRA, load_answer_model

RANK = 4
ALL = ["q_proj", "v_proj", "up_proj", "down_proj", "lm_head"]


def contextual(
    path: str, context: str = "token", kind: str = "release", spread: float = 0.5, **backbone: object
) -> tuple[AnswerModel, ContextualSites]:
    """A model with contextual modules whose B is not zero any more."""
    targets = ["query", "value"] if backbone.get("readout") == "head" else ALL
    model = load_answer_model(Backbone(path, **backbone), LoRA(r=RANK, alpha=8, target_modules=targets), seed=0)
    sites = ContextualSites(model, context, width=16)
    sites.initialise(kind, 0.05, 0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.trainable().items():
        if ".lora_B." in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        elif ".lora_E." in name:
            parameter.data.add_(spread * torch.randn(parameter.shape, generator=generator))
    return model, sites
