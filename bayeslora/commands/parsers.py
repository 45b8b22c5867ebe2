"""The options of commands that work with tensors, apart from their work, so that ``--help`` loads none of it."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from pathlib import Path


def compare() -> ArgumentParser:
    """The options of ``bayeslora compare``."""
    parser = ArgumentParser(prog="bayeslora compare", description="One table and its plots of many runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, a folder of runs, or NAME=FOLDER")
    parser.add_argument("--reference", help="method that the others are compared with (the first run's)")
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="folder to write to (comparison)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in that folder")
    return parser


def dynamics() -> ArgumentParser:
    """The options of ``bayeslora dynamics``."""
    parser = ArgumentParser(prog="bayeslora dynamics", description="What a training's members knew, by epoch.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder; several are one ensemble")
    parser.add_argument("--out", type=Path, help="folder to write to (RUN/dynamics/analysis)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in that folder")
    return parser


def score() -> ArgumentParser:
    """The options of ``bayeslora score``."""
    parser = ArgumentParser(prog="bayeslora score", description="Metrics of answers whose labels are known.")
    parser.add_argument("answers", nargs="+", metavar="ANSWERS", help="a .jsonl or .parquet that predict has written")
    parser.add_argument("--out", type=Path, help="a JSON file for the numbers")
    return parser


def ensemble() -> ArgumentParser:
    """The options of ``bayeslora ensemble`` itself."""
    from bayeslora.commands.engines import add_engine_options  # which the help of other commands does without

    parser = ArgumentParser(
        prog="bayeslora ensemble",
        description="Train what is missing of an ensemble; other options are those of bayeslora fit.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--members", help="how many, or ids: 5, or 0,3,7; without, as the configuration says")
    parser.add_argument(
        "--member", type=int, help="the id of one, for job arrays; waits where another process trains it"
    )
    parser.add_argument(
        "--mode", default="auto", help="joint: one pass for all; sequential: one after another; auto: as memory allows"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of a process (with an engine: 1)")
    add_engine_options(parser, default=None)
    return parser


PARSERS: Mapping[str, Callable[[], ArgumentParser]] = {
    "compare": compare,
    "dynamics": dynamics,
    "score": score,
    "ensemble": ensemble,
}
