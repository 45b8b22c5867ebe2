"""The command line's front door: answers ``--help`` at once and turns errors into one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from bayeslora import __version__
from bayeslora.errors import RunError, UsageError

HELP = """\
usage: bayeslora COMMAND [-c CONFIG ...] [OPTIONS]

Fine-tune a language model with Bayesian LoRA on multiple-choice questions and report how far it can be trusted.

commands:
  fit        train; writes checkpoints/ and posterior/ into the run folder (--trainer.default_root_dir)
  test       predict the test sets with the last checkpoint; writes test/ with predictions, metrics and plots
  validate   accuracy and likelihood on the validation questions
  predict    predict the test sets without metrics; writes predict/predictions.parquet
  ensemble   train what is missing of an ensemble: bayeslora ensemble -c CONFIG --members 5 --mode auto
  laplace    Laplace's Gaussian around a finished run or any adapter: bayeslora laplace -c CONFIG [--adapter DIR]
  tfb        make any LoRA adapter Bayesian without training: bayeslora tfb --adapter DIR -c CONFIG
  compare    one table and its plots of many runs: bayeslora compare RUN [RUN ...]
  score      the metrics of a test for answers whose labels are known: bayeslora score answers.jsonl
  dynamics   what an ensemble knew, doubted and forgot, epoch by epoch: bayeslora dynamics RUN

configuration files combine from left to right, options of the command line come last:
  bayeslora fit  -c configs/quickstart.yaml
  bayeslora test -c configs/quickstart.yaml
  bayeslora fit  -c configs/base/mistral_7b.yaml -c configs/data/arc_easy.yaml -c configs/method/mc_dropout.yaml

  bayeslora COMMAND --help             every option of a command
  bayeslora fit --model.help LoRAModule    the options of a class
  bayeslora fit -c CONFIG --print_config   the configuration that would run
"""
_LIGHTNING = ("fit", "test", "validate", "predict")
_OWN = {
    "ensemble": "bayeslora.commands.ensemble",
    "laplace": "bayeslora.commands.laplace",
    "tfb": "bayeslora.commands.tfb",
    "compare": "bayeslora.commands.compare",
    "score": "bayeslora.commands.score",
    "dynamics": "bayeslora.commands.dynamics",
}


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: The arguments; None takes them from the command line.

    Returns:
        Exit status: 0, 1 where a run had to stop, 2 where what was asked for is not possible.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if args[0] == "--version":
        print(f"bayeslora {__version__}")
        return 0
    try:
        return _command(args[0])(args)
    except UsageError as error:
        return _fail(error, 2)
    except RunError as error:
        return _fail(error, 1)


def console() -> None:
    """Entry point of the installed command."""
    raise SystemExit(main())


def _command(name: str) -> Callable[[list[str]], int]:
    """What runs a command, from all arguments; imported only now."""
    if name in _LIGHTNING:
        return import_module("bayeslora.commands.lightning").run
    if name in _OWN:
        own = import_module(_OWN[name])
        return lambda args: own.main(args[1:])
    raise UsageError(f"unknown command {name!r}; allowed: {', '.join((*_LIGHTNING, *_OWN))}")


def _fail(error: Exception, status: int) -> int:
    print(f"bayeslora: error: {error}", file=sys.stderr)
    return status
