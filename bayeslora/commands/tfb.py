"""``bayeslora tfb``: training-free Bayesianisation of a peft adapter that was trained anywhere."""

from __future__ import annotations

from bayeslora.commands.arguments import CONFIG, callback, configs, take_options, the_adapter
from bayeslora.errors import UsageError

HELP = """\
usage: bayeslora tfb --adapter DIR -c CONFIG [-c CONFIG ...] [OPTIONS]

Find how much noise a LoRA adapter bears, without training it, and test the adapter under that noise. The posterior is
written to posterior/tfb in the run folder, the results to test/.

  --adapter DIR   folder of a peft adapter, its id on the hub (owner/name), or posterior/ of a run
  -c CONFIG       the base the adapter belongs to, and the data: anchor questions and test sets

Every other option is one of `bayeslora test`; those of TFB itself are --trainer.callbacks.tolerance and so on:
  bayeslora tfb --adapter runs/quickstart/posterior -c quickstart --trainer.default_root_dir runs/tfb
"""


def main(args: list[str]) -> int:
    """Run the command; returns the exit status.

    Args:
        args: What follows ``tfb``.

    Raises:
        UsageError: no adapter, or whatever ``bayeslora test`` refuses.
    """
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    from bayeslora.commands.lightning import run

    return run(as_test(args))


def as_test(args: list[str]) -> list[str]:
    """The arguments of the ``test`` that this command stands for: configurations, then TFB, then the other options.

    Raises:
        UsageError: no adapter, no configuration, or a checkpoint that would take the adapter's place.
    """
    own, others = take_options(args, (CONFIG, "--adapter", "--ckpt_path"))
    files, adapters, checkpoints = own[CONFIG], own["--adapter"], own["--ckpt_path"]
    if not adapters:
        raise UsageError("bayeslora tfb needs --adapter DIR, the folder of a peft adapter (posterior/ of a run is one)")
    if not files:
        raise UsageError("bayeslora tfb needs -c CONFIG, the base the adapter belongs to and the data")
    if checkpoints:
        raise UsageError(
            f"given are --adapter {adapters[-1]} and --ckpt_path {checkpoints[-1]}; allowed: the adapter alone. For a "
            "checkpoint: bayeslora test --ckpt_path CKPT -c CONFIG -c method/tfb"
        )
    tfb = callback("bayeslora.callbacks.TFB", files)
    return ["test", *configs(files), *tfb, *the_adapter(adapters[-1]), *others]
