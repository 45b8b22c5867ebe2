"""The command ``bayeslora push``: uploads a tested run to the Hugging Face hub, with a model card."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def push(run: Path | str, repo: str, **options: Any) -> str:
    """Upload what answers questions, see :meth:`bayeslora.Predictor.push_to_hub`.

    Args:
        run: Folder of a run that was tested.
        repo: ``owner/name``; made where there is none.
        options: See :meth:`bayeslora.Predictor.push_to_hub`.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        UsageError: the run cannot answer, a base or a tokenizer that is a folder here, or what the hub refuses.
    """
    from bayeslora.serving.predictor import Predictor

    return Predictor.from_run(run, "cpu").push_to_hub(repo, **options)


def main(args: Sequence[str]) -> int:
    """The command ``bayeslora push``; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="bayeslora push",
        description="Upload a tested run to the Hugging Face hub: what answers questions, the mean as an adapter "
        "for plain peft, the test's metrics and a model card; no predictions and no configuration.",
        epilog="The access token is the one of `hf auth login`, or HF_TOKEN in the environment. "
        "Predictor.from_hub(REPO) answers with what was uploaded.",
    )
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of a run that was tested")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="the repository; made where there is none")
    parser.add_argument("--base", metavar="ID", help="the id on the hub of a base that is a folder here")
    parser.add_argument("--public", action="store_true", help="let everybody see a repository that is made")
    parser.add_argument("--license", help="the licence that the model card names, as the hub writes it (apache-2.0)")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--branch", help="to write to (the main one)")
    parser.add_argument("--pull-request", action="store_true", help="open a pull request instead of writing to it")
    given = parser.parse_args(args)
    address = push(
        given.run,
        given.repo,
        base=given.base,
        private=not given.public,
        license=given.license,
        commit_message=given.message,
        branch=given.branch,
        create_pr=given.pull_request,
    )
    print(address)
    return 0
