"""The base model without an adapter: what every method is compared with."""

from __future__ import annotations

from torch import Tensor

from bayeslora.errors import UsageError
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule


class BareBase(MultipleChoiceModule):
    """Answers with the pretrained model alone; there is nothing to train and nothing to sample.

    ``bayeslora test --ckpt_path base`` puts it in the place of whatever method a configuration names, so that no method
    needs to know of it.

    Example:
        >>> from bayeslora.lightning_modules.bare_base import BareBase
        >>> base = BareBase(chunk=4)
        >>> base.configure_model()
        >>> base.method, len(base.trainable())
        ('base', 0)
    """

    @classmethod
    def of(cls, module: MultipleChoiceModule) -> BareBase:
        """The base under a method's module, which need not have been loaded."""
        return cls(module.backbone, module.lora, support=module.support, chunk=module.chunk, seed=module.seed)

    @property
    def method(self) -> str:
        """What a table calls it."""
        return "base"

    def configure_model(self) -> None:
        """Load the base, and take its adapter out of use and out of training."""
        if self.model is not None:
            return
        super().configure_model()
        self.model.network.base_model.disable_adapter_layers()  # type: ignore[operator, union-attr]
        self.model.network.requires_grad_(False)

    def weight_sets(self) -> list[dict[str, Tensor]]:
        """There is none.

        Raises:
            UsageError: always: a posterior has nothing to be put over.
        """
        raise UsageError(
            "a posterior predicts with adapters, the bare base has none; give a run's checkpoint, or "
            "an adapter as backbone.adapter, --model.backbone.adapter DIR (any of the posteriors)"
        )
