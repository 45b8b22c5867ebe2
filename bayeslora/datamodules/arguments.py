"""Which arguments of a DataModule are allowed, alone and together."""

from __future__ import annotations

from typing import Any

from bayeslora.datamodules.model_side import HEAD, LABEL_TOKEN
from bayeslora.errors import UsageError, require_choice

READOUTS = (LABEL_TOKEN, HEAD)


def check_arguments(data: Any) -> None:
    """Refuse what is out of range or does not go together in a ``MultipleChoiceDataModule``.

    Raises:
        UsageError: which argument it is, and what is allowed.
    """
    if data.given_readout is not None:
        require_choice("readout", data.given_readout, READOUTS)
    at_least = {"batch_size": 1, "eval_batch_size": 1, "permutations": 1, "num_workers": 0, "shots": 0}
    for name, least in at_least.items():
        if getattr(data, name) < least:
            raise UsageError(f"{name} is {getattr(data, name)}; allowed: {least} or more")
    for name, size in (("max_length", data.requested_length), ("max_test", data.max_test)):
        if size is not None and size < 1:
            raise UsageError(f"{name} is {size}; allowed: 1 or more")
    for benchmark in (data.benchmark, *data.ood.values()):
        data.protocol.check_task(benchmark.task)
    prompting = {"shots": data.shots, "chat": data.chat}
    ordering = {"shuffle_options": data.shuffle_options, "permutations": data.permutations - 1}
    for name, value in (prompting | ordering).items():
        if value and not data.protocol.extensible:
            raise UsageError(
                f"{name} is given with protocol {data.protocol.name!r}, which fixes it; use 'default' or your own"
            )
        if value and data.readout == HEAD:
            raise UsageError(f"{name} is given with readout 'head', which has no prompt; use 'label_token'")
        if value and name in ordering:
            data.protocol.refuse_other_orders(name)
    if data.readout == HEAD and data.protocol.saved() != "default":
        raise UsageError(f"readout is 'head' with protocol {data.protocol.name!r}; allowed with 'head': 'default'")
