"""The command line's front door: answers ``--help`` at once and turns errors into one line."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from importlib import import_module

from bayeslora import __version__
from bayeslora.commands.parsers import PARSERS
from bayeslora.configs import with_files
from bayeslora.errors import RunError, UsageError, in_one_line
from bayeslora.signals import Stopped, signals_stop_the_command

HELP = """\
usage: bayeslora COMMAND [-c CONFIG ...] [OPTIONS]

Fine-tune a language model with Bayesian LoRA on multiple-choice questions and report how far it can be trusted.

commands:
  fit        train; writes checkpoints/ and posterior/ into the run folder (--trainer.default_root_dir)
  test       predict the test sets with the last checkpoint; writes test/ with predictions, metrics and plots
  validate   accuracy and likelihood on the validation questions
  predict    answer new questions with a run that was tested:
             bayeslora predict --run DIR --questions my.jsonl --out answers.jsonl
             or, with -c CONFIG, predict the test sets without metrics; writes predict/predictions.parquet
  ensemble   train what is missing of an ensemble: bayeslora ensemble -c CONFIG --members 5 --mode auto
  laplace    Laplace's Gaussian around a finished run or any adapter: bayeslora laplace -c CONFIG [--adapter DIR]
  tfb        make any LoRA adapter Bayesian without training: bayeslora tfb --adapter DIR -c CONFIG
  compare    one table and its plots of many runs: bayeslora compare RUN [RUN ...]
  benchmark  methods x datasets x seeds as one resumable grid, and its tables: bayeslora benchmark -c GRID
  tune       find values of options by validation likelihood: bayeslora tune -c CONFIG --space SPACE --out DIR
  score      the metrics of a test for answers whose labels are known: bayeslora score answers.jsonl
  serve      answer questions over HTTP: bayeslora serve --run DIR
  push       upload a run to the Hugging Face hub, with a model card: bayeslora push --run DIR --repo OWNER/NAME
  configs    list the configurations that -c takes by name, or copy them: bayeslora configs [NAME ...]
  dynamics   what an ensemble knew, doubted and forgot, epoch by epoch: bayeslora dynamics RUN

configurations, files or names, combine from left to right, options of the command line come last:
  bayeslora fit  -c quickstart
  bayeslora test -c quickstart
  bayeslora fit  -c base/mistral_7b -c data/arc_easy -c method/mc_dropout

  bayeslora COMMAND --help             every option of a command
  bayeslora fit --model.help               the classes that --model takes; --data.help likewise
  bayeslora fit --model.help LoRAModule    the options of a class
  bayeslora fit -c CONFIG --print_config   the configuration that would run
  bayeslora COMMAND ... --debug            the traceback of whatever goes wrong
"""
DEBUG = "--debug"  # shows the traceback of whatever goes wrong
_LIGHTNING = ("fit", "test", "validate", "predict")
_OWN = {
    "ensemble": "bayeslora.commands.ensemble",
    "laplace": "bayeslora.commands.laplace",
    "tfb": "bayeslora.commands.tfb",
    "compare": "bayeslora.commands.compare",
    "benchmark": "bayeslora.commands.benchmark",
    "tune": "bayeslora.commands.tune",
    "score": "bayeslora.commands.score",
    "serve": "bayeslora.commands.serve",
    "push": "bayeslora.commands.push",
    "configs": "bayeslora.commands.configs",
    "dynamics": "bayeslora.commands.dynamics",
}

_AT_ONCE = ("configs",)  # what answers before it could say that it loads


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: The arguments; None takes them from the command line. With ``--debug``, or with
            ``BAYESLORA_TRACEBACK=1`` in the environment, an error shows its traceback as well.

    Returns:
        Exit status 0, 1 where a run had to stop, 2 where what was asked for is not possible, 130 or 143 where SIGINT
        or SIGTERM ended it.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if args[0] == "--version":
        print(f"bayeslora {__version__}")
        return 0
    debug = DEBUG in args or bool(os.environ.get("BAYESLORA_TRACEBACK"))
    args = [arg for arg in args if arg != DEBUG]
    try:
        with signals_stop_the_command():
            return _command(args)(with_files(args))
    except Stopped as stopped:
        print(_how_to_go_on(stopped, args), file=sys.stderr)
        return stopped.status
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _fail(error, debug)


def console() -> None:
    """Entry point of the installed command."""
    raise SystemExit(main())


def _command(args: Sequence[str]) -> Callable[[list[str]], int]:
    """What runs a command, from all arguments; imported only now."""
    name = args[0]
    options = {arg.partition("=")[0] for arg in args}
    asks_for_help = bool(options & {"-h", "--help"})
    if name in PARSERS and asks_for_help:
        return lambda args: _help(PARSERS[name]())
    if name in (*_LIGHTNING, *_OWN) and name not in _AT_ONCE and not asks_for_help:
        _say_that_it_loads()
    if name == "predict" and ("--run" in options or (not options & {"-c", "--config"} and asks_for_help)):
        own = import_module("bayeslora.commands.predict")
        return lambda args: own.main(args[1:])
    if name in _LIGHTNING:
        return import_module("bayeslora.commands.lightning").run
    if name in _OWN:
        own = import_module(_OWN[name])
        return lambda args: own.main(args[1:])
    raise UsageError(f"unknown command {name!r}; allowed: {', '.join((*_LIGHTNING, *_OWN))}")


def _help(parser: ArgumentParser) -> int:
    parser.print_help()
    return 0


def _say_that_it_loads() -> None:
    """The first line on a terminal, at once: the libraries behind most commands take seconds to load."""
    if sys.stderr.isatty():
        print("bayeslora: loading ...", file=sys.stderr, flush=True)


def _fail(error: Exception, debug: bool) -> int:
    """Say what went wrong in one line; the exit status."""
    own = isinstance(error, UsageError | RunError)
    where = "" if own or debug else f"; {DEBUG} shows where"
    print(f"bayeslora: error: {error if own else in_one_line(error)}{where}", file=sys.stderr)
    return 2 if isinstance(error, UsageError | OSError | ImportError) else 1


def _how_to_go_on(stopped: Stopped, args: list[str]) -> str:
    """What a signal has ended, and the command that goes on from there."""
    again = shlex.join(["bayeslora", *args])
    if stopped.saved is None:
        return f"bayeslora: stopped by {stopped.name}; start again with: {again}"
    if args[0] == "fit":  # the run's own checkpoint, in place of one that the fit may have begun from
        again = shlex.join(["bayeslora", *_without_checkpoint(args), "--ckpt_path", "last"])
    return f"bayeslora: stopped by {stopped.name}; the state is in {stopped.saved}; go on with: {again}"


def _without_checkpoint(args: Sequence[str]) -> list[str]:
    """The same arguments without ``--ckpt_path`` and its value."""
    rest = iter(args)
    kept = []
    for arg in rest:
        if arg == "--ckpt_path":
            next(rest, None)
        elif not arg.startswith("--ckpt_path="):
            kept.append(arg)
    return kept
