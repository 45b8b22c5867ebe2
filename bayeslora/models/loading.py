"""Loading a backbone: quantisation, LoRA through peft, sites in place of its linear maps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bayeslora.errors import UsageError, require, require_choice
from bayeslora.files import read_object
from bayeslora.models.hub import adapter_folder
from bayeslora.models.pretrained import ADAPTER_CONFIG, cannot_load, resolve_pretrained
from bayeslora.models.sites import ADAPTER, SiteContext, install_sites, plain_name
from bayeslora.posteriors.state import check_files
from bayeslora.streams import generator, global_draws, stream

if TYPE_CHECKING:
    from bayeslora.models.answer_model import AnswerModel

_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
CHOICES = {
    "quantization": ("none", "8bit", "4bit"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "readout": ("label_token", "head"),
}
T = TypeVar("T")


@dataclass
class Backbone:
    """The frozen language model under every method.

    Attributes:
        pretrained: Hub name or local folder of a Hugging Face model; ``embedded`` is the tiny one in the package.
        revision: Branch, tag or commit on the hub.
        quantization: ``none``, ``8bit`` (LLM.int8) or ``4bit`` (nf4 with double quantisation), by bitsandbytes.
        dtype: Of the weights that are not quantised; ``auto`` takes the checkpoint's.
        readout: ``label_token`` (causal models: logits of the options' label tokens at the last position) or ``head``
            (encoders: a classification head).
        num_labels: With ``head``: number of classes of a sequence classifier; None scores each option as a row.
        gradient_checkpointing: Recompute layers in the backward pass instead of keeping their activations.
        adapter: An existing peft LoRA adapter to start from instead of a fresh one: its folder, or its id on the hub
            (``owner/name``, ``owner/name@revision``), of which tensors and JSON alone are read.

    Example:
        >>> from bayeslora import Backbone
        >>> Backbone("embedded", dtype="float32").quantization
        'none'
    """

    pretrained: str = "embedded"
    revision: str | None = None
    quantization: str = "none"
    dtype: str = "auto"
    readout: str = "label_token"
    num_labels: int | None = None
    gradient_checkpointing: bool = False
    adapter: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that are not among the allowed ones."""
        for name, allowed in CHOICES.items():
            require_choice(f"backbone.{name}", getattr(self, name), allowed)


@dataclass
class LoRA:
    """The trained low-rank update ``alpha / r * B A`` of each target's weight (Hu et al., 2021, arXiv:2106.09685).

    Attributes:
        r: Rank.
        alpha: Numerator of the scale.
        dropout: Rate of the dropout in front of A.
        target_modules: Names of the linear layers to adapt, or ``all-linear``.

    Example:
        >>> from bayeslora import LoRA
        >>> LoRA(r=4, target_modules=["q_proj", "v_proj"]).alpha
        16.0
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: list[str] | str = "all-linear"

    def __post_init__(self) -> None:
        """Refuse ranks and rates out of range."""
        require("lora.r", self.r, self.r >= 1, "1 or more")
        require("lora.alpha", self.alpha, self.alpha > 0, "above 0")
        require("lora.dropout", self.dropout, 0 <= self.dropout < 1, "0 up to, not including, 1")


def config_of(kind: type[T], value: T | dict[str, Any] | None) -> T:
    """A configuration dataclass from itself, from the plain dict a checkpoint holds, or from nothing.

    Args:
        kind: The dataclass.
        value: What was given.

    Raises:
        UsageError: a key the dataclass does not have.
    """
    if value is None:
        return kind()
    if isinstance(value, kind):
        return value
    values: dict[str, Any] = dict(value)  # type: ignore[arg-type]
    allowed = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        require_choice(f"key of {kind.__name__}", key, allowed)
    return kind(**values)


def load_answer_model(
    backbone: Backbone, lora: LoRA, seed: int, device: torch.device | str = "cpu", own: tuple[str, ...] = ()
) -> AnswerModel:
    """Load the base, put LoRA on it and make it answer questions.

    Args:
        backbone: Which base, and how.
        lora: The adapter, unless ``backbone.adapter`` names an existing one, whose own configuration then holds.
        seed: Seeds the initial weights; the global random state is left alone.
        device: Where a quantised base is put; an unquantised one stays on the CPU until the trainer moves it.
        own: Parts of names that tell what in an adapter's file is not plain LoRA, but read by the caller.

    Raises:
        UsageError: a model or adapter that cannot be found, does not fit, or is of a kind not supported.
    """
    device = torch.device(device)
    # A trainer builds its model within the context of its own device, where a base would be drawn, and put, on the GPU.
    with torch.device("cpu"), global_draws(stream(seed, "head"), device):
        base = _load_base(backbone, device)
    return wrap(base, backbone, lora, seed, own)


def wrap(base: nn.Module, backbone: Backbone, lora: LoRA, seed: int, own: tuple[str, ...] = ()) -> AnswerModel:
    """Put LoRA on a base that is in memory already, and make it answer questions.

    Args:
        base: A Hugging Face model, quantised or not.
        backbone: What the base is; ``adapter``, ``readout`` and ``gradient_checkpointing`` say what becomes of it.
        lora: The adapter, unless ``backbone.adapter`` names an existing one, whose own configuration then holds.
        seed: Seeds the initial weights; the global random state is left alone.
        own: As for :func:`load_answer_model`.

    Raises:
        UsageError: an adapter that does not fit, or a model of a kind not supported.
    """
    from bayeslora.models.answer_model import AnswerModel

    _silence_base_dropout(base)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):  # peft draws weights that `initialise` replaces
        network = _existing_adapter(base, backbone, own) if backbone.adapter else _fresh_adapter(base, backbone, lora)
    context = SiteContext()
    names = install_sites(network, context)
    model = AnswerModel(network, context, names, backbone.readout, backbone.num_labels)
    if not backbone.adapter:
        initialise(model.trainable(), seed)
        model.note_initial(lambda name: ".lora_" not in name)  # an encoder's head
    if backbone.gradient_checkpointing:
        model.checkpoint_gradients()
    model.base_fingerprint = fingerprint(network)
    return model


def initialise(parameters: Mapping[str, Tensor], *seed: int | str) -> None:
    """Draw every A from U(-1/sqrt(d_in), 1/sqrt(d_in)) and set every B to zero, as peft does.

    Each parameter has a stream of its own, named by ``seed`` and its name, so that a member of an ensemble starts the
    same whoever trains beside it.

    Args:
        parameters: Name to parameter, which is written in place.
        *seed: Names the stream of the draws.
    """
    for name, parameter in parameters.items():
        if ".lora_B." in name:
            nn.init.zeros_(parameter)
        elif ".lora_A." in name:
            bound = parameter.shape[-1] ** -0.5
            values = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")  # the same draws on any device
            values.uniform_(-bound, bound, generator=generator(*seed, "init", name))
            parameter.data.copy_(values)


def fingerprint(network: nn.Module) -> str:
    """Sixteen hex digits that tell one base from another, the same whatever its quantisation.

    Hashes the architecture's sizes, the input embedding's first rows and every weight that is never quantised and
    never trained (the norms), each rounded to bfloat16.
    """
    digest = hashlib.sha256()
    config = network.config.to_dict()  # type: ignore[operator, union-attr]
    sizes = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
    digest.update(repr([config.get(key) for key in sizes]).encode())
    for name, parameter in sorted(network.named_parameters(), key=lambda item: plain_name(item[0])):
        if parameter.dim() == 1 and not parameter.requires_grad and name.endswith("norm.weight"):
            digest.update(_bytes(parameter))
    digest.update(_bytes(network.get_input_embeddings().weight[:64]))  # type: ignore[operator]
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()


def _load_base(backbone: Backbone, device: torch.device) -> nn.Module:
    import transformers

    name = resolve_pretrained(backbone.pretrained)
    auto: Any
    extra: dict[str, Any] = {}
    if backbone.readout == "label_token":
        auto = transformers.AutoModelForCausalLM
    elif backbone.num_labels is None:
        auto = transformers.AutoModelForMultipleChoice
    else:
        auto, extra = transformers.AutoModelForSequenceClassification, {"num_labels": backbone.num_labels}
    options: dict[str, Any] = {"dtype": backbone.dtype, "revision": backbone.revision or "main", **extra}
    if backbone.quantization != "none":
        options["quantization_config"] = _quantization(backbone, device)
        options["device_map"] = {"": device}
    try:
        return auto.from_pretrained(name, **options)
    except OSError as error:
        raise cannot_load("model", name, error) from error
    except ValueError as error:
        raise UsageError(f"cannot load {name} for readout {backbone.readout!r}: {_first_line(error)}") from error


def _quantization(backbone: Backbone, device: torch.device) -> Any:
    from transformers import BitsAndBytesConfig

    if backbone.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = half_precision() if device.type == "cuda" else torch.float32
    compute = compute if backbone.dtype == "auto" else getattr(torch, backbone.dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def half_precision() -> torch.dtype:
    """The half precision that the GPU computes in: bfloat16, or float16 on cards from before Ampere, without it."""
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _silence_base_dropout(base: nn.Module) -> None:
    """A base's own dropout would draw from the global generator, which no resumed run can replay: LoRA's remains."""
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010  a plain float on some attention modules


def _fresh_adapter(base: nn.Module, backbone: Backbone, lora: LoRA) -> nn.Module:
    import peft

    task = "CAUSAL_LM" if backbone.readout == "label_token" else "SEQ_CLS"
    config = peft.LoraConfig(
        task_type=task,
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=None if task == "CAUSAL_LM" else _head_names(base),
        revision=backbone.revision,
    )
    _refuse_unmatched(base, lora.target_modules)
    try:
        network = peft.get_peft_model(base, config, adapter_name=ADAPTER)
    except ValueError as error:
        few = "" if lora.target_modules != "all-linear" else "; give names such as [q_proj, v_proj]"
        raise UsageError(f"lora.target_modules {lora.target_modules} do not fit: {_first_line(error)}{few}") from error
    config.base_model_name_or_path = backbone.pretrained  # as the user named it, not where it was found
    return network


def _refuse_unmatched(base: nn.Module, targets: list[str] | str) -> None:
    """Refuse a target that no layer of the base has: peft would train the others without a word."""
    linear = {name.rpartition(".")[2] for name, module in base.named_modules() if isinstance(module, nn.Linear)}
    names = {name for name, _ in base.named_modules()}
    for target in [] if isinstance(targets, str) else targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UsageError(f"lora.target_modules has {target!r}; allowed: {', '.join(sorted(linear))}, or all-linear")


def _head_names(base: nn.Module) -> list[str]:
    """The modules of an encoder that are new, and therefore trained in full."""
    names = {name for name, _ in base.named_children()} & {"classifier", "score", "sequence_summary"}
    if not names:
        raise UsageError(
            f"{type(base).__name__} has no classifier; allowed with readout 'head': encoders that have one"
        )
    return sorted(names)


def _existing_adapter(base: nn.Module, backbone: Backbone, own: tuple[str, ...]) -> nn.Module:
    import peft
    from peft.utils.other import AuxiliaryTrainingWrapper

    folder = str(adapter_folder(str(backbone.adapter)))
    _check_adapter_folder(Path(folder))
    config = peft.PeftConfig.from_pretrained(folder)
    if not isinstance(config, peft.LoraConfig):
        raise UsageError(f"backbone.adapter {folder} is of type {config.peft_type}; allowed: LORA")
    if backbone.readout == "label_token" and config.modules_to_save:
        names = ", ".join(config.modules_to_save)
        raise UsageError(f"backbone.adapter {folder} trains {names} in full; allowed with label tokens: LoRA alone")
    config.inference_mode = False  # it is trained on
    kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(str(config.task_type), peft.PeftModel)
    try:
        network = kind(base, config, ADAPTER)
        found = network.load_adapter(folder, ADAPTER, is_trainable=True)  # unlike from_pretrained, it says what fitted
    except SafetensorError as error:
        raise UsageError(f"backbone.adapter {folder} is damaged ({_first_line(error)}); restore it") from error
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"backbone.adapter {folder} does not fit {backbone.pretrained}: {_first_line(error)}"
        ) from error
    if backbone.readout == "label_token" and isinstance(base.get_output_embeddings(), AuxiliaryTrainingWrapper):  # type: ignore[operator]
        raise UsageError(
            f"backbone.adapter {folder} trains rows of the output layer (trainable_token_indices on a base that ties "
            "it to the input embedding); allowed with label tokens: LoRA alone"
        )
    unread = [key for key in found.unexpected_keys if not any(part in key for part in own)]
    for keys, what in ((found.missing_keys, "are missing"), (unread, "are not plain LoRA's or of another base")):
        if keys:
            raise UsageError(
                f"backbone.adapter {folder} does not fit {backbone.pretrained}: {len(keys)} of its weights {what} "
                f"({keys[0]}, ...); give the base and the module it was trained with"
            )
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and not parameter.isfinite().all():
            raise UsageError(f"backbone.adapter {folder} is damaged: {plain_name(name)} is not finite; restore it")
    return network


def _check_adapter_folder(folder: Path) -> None:
    """Refuse a folder that is no peft adapter, saying what it is instead."""
    if not (folder / ADAPTER_CONFIG).exists():
        inner = sorted(path.parent for path in folder.glob(f"*/{ADAPTER_CONFIG}"))
        where = f"; {inner[0]} has one" if inner else "; give the folder of a peft adapter"
        raise UsageError(f"backbone.adapter {folder} has no {ADAPTER_CONFIG}{where}")
    if not any((folder / name).is_file() for name in _ADAPTER_WEIGHTS):
        raise UsageError(f"backbone.adapter {folder} has no {_ADAPTER_WEIGHTS[0]}, the weights; restore it")
    check_files(folder)
    read_object(folder / ADAPTER_CONFIG, "restore it")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
