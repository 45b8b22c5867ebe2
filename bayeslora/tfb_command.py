"""``bayeslora tfb``: training-free Bayesianisation of a peft adapter that was trained anywhere."""

from __future__ import annotations

from bayeslora.arguments import CONFIG, configs, taken
from bayeslora.errors import UsageError

HELP = """\
usage: bayeslora tfb --adapter DIR -c CONFIG [-c CONFIG ...] [OPTIONS]

Find how much noise a LoRA adapter bears, without training it, and test the adapter under that noise. The posterior is
written to posterior/tfb in the run folder, the results to test/.

  --adapter DIR   folder of a peft adapter, or posterior/ of a run
  -c CONFIG       the base the adapter belongs to, and the data: anchor questions and test sets

Every other option is one of `bayeslora test`; those of TFB itself are --trainer.callbacks.tolerance and so on:
  bayeslora tfb --adapter runs/quickstart/posterior -c configs/quickstart.yaml --trainer.default_root_dir runs/tfb
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
    from bayeslora.lightning_cli import run

    return run(as_test(args))


def as_test(args: list[str]) -> list[str]:
    """The arguments of the ``test`` that this command stands for: configurations, then TFB, then the other options.

    Raises:
        UsageError: no adapter is given.
    """
    own, others = taken(args, (CONFIG, "--adapter"))
    if not own["--adapter"]:
        raise UsageError("bayeslora tfb needs --adapter DIR, the folder of a peft adapter (posterior/ of a run is one)")
    callback = ["--trainer.callbacks+=bayeslora.callbacks.TFB"]
    adapter = f"--model.init_args.backbone.adapter={own['--adapter'][-1]}"
    return ["test", *configs(own[CONFIG]), *callback, adapter, *others]
