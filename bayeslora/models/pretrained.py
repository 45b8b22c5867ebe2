"""Names of pretrained models and tokenizers that the package itself answers to."""

from pathlib import Path

from bayeslora.errors import UsageError

EMBEDDED = "embedded"
ADAPTER_CONFIG = "adapter_config.json"  # what tells a peft adapter's folder


def resolve_pretrained(name: str) -> str:
    """The folder of the package's tiny base for ``embedded``, any other name as it is."""
    if name == EMBEDDED:
        return str(Path(__file__).parent.parent / "assets" / "tiny")
    return name


def cannot_load(what: str, name: str, error: Exception) -> UsageError:
    """The refusal of a model or tokenizer that does not load: damaged where it lies, or not found anywhere.

    Args:
        what: ``model`` or ``tokenizer``.
        name: Its name or folder, as given.
        error: What the library raised.
    """
    if (Path(name) / ADAPTER_CONFIG).exists() and not (Path(name) / "config.json").exists():
        return UsageError(
            f"{name} is a peft adapter, not a {what}; give it as backbone.adapter "
            f"(--model.backbone.adapter {name}), and as backbone.pretrained the base it was trained on"
        )
    if Path(name).exists():
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return UsageError(f"cannot load a {what} from {name}: {reason}")
    return UsageError(
        f"cannot find the {what} {name!r} in the local cache or on the hub; give a local folder, or download it "
        "once with network and set HF_HUB_OFFLINE=1 (cache: HF_HOME)"
    )
