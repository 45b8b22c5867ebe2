"""Runs on the Hugging Face hub: what answers questions, and a model card, in a repository."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bayeslora.errors import UsageError, require
from bayeslora.files import PREDICTION_FILE, write_json
from bayeslora.lightning_modules.multiple_choice import MultipleChoiceModule
from bayeslora.models.hub import is_hub_id, snapshot
from bayeslora.models.pretrained import EMBEDDED
from bayeslora.posteriors.mixture import Mixture
from bayeslora.posteriors.point import Point
from bayeslora.posteriors.state import save_posterior
from bayeslora.serving.card import FIGURE, METRICS, card, metrics_of, public_names
from bayeslora.serving.kept import FOLDER, Kept, save

_FILES = (f"{FOLDER}/*.json", f"{FOLDER}/*.safetensors")  # of any depth; tensors and JSON alone are ever read
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_PEFT = ("adapter_config.json", "adapter_model.safetensors")


def fetch(repo: str, revision: str | None = None, **options: Any) -> Path:
    """The run folder that a repository holds, in the local cache.

    Args:
        repo: ``owner/name``, or ``owner/name@revision``.
        revision: A branch, tag or commit.
        options: See :func:`bayeslora.models.hub.snapshot`.

    Raises:
        UsageError: no such repository.
    """
    return snapshot(repo if revision is None else f"{repo}@{revision}", _FILES, "run", **options)


def push(
    kept: Kept,
    module: MultipleChoiceModule,
    run: Path | None,
    repo: str,
    *,
    base: str | None = None,
    private: bool = True,
    license: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a run, see :meth:`bayeslora.serving.predictor.Predictor.push_to_hub`.

    Args:
        kept: All that answers questions.
        module: The module with the run's weights.
        run: The run folder; None where there is none.
        repo: ``owner/name``; made where there is none.
        base: The base model's id on the hub; None takes the one the run names.
        private: Whether nobody but the owner sees a repository that is made.
        license: The licence that the model card names; None names none.
        commit_message: Of the commit; None takes one that names the method.
        token: The access token; None takes the one that the machine is logged in with.
        branch: The branch to write to; None for the main one.
        create_pr: Whether to open a pull request instead of writing to the branch.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        UsageError: a base or a tokenizer that others cannot find, or what the hub refuses.
    """
    from huggingface_hub import HfApi

    require("repo", repo, _REPOSITORY.fullmatch(repo) is not None, "owner/name, of letters, digits, -, _ and .")
    with TemporaryDirectory() as place:
        write(kept, module, run, repo, Path(place), base, license)
        api = HfApi(token=token)
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo,
                folder_path=place,
                commit_message=commit_message or f"Upload {kept.method} by bayeslora",
                revision=branch,
                create_pr=create_pr,
                delete_patterns=[f"{FOLDER}/*", *_PEFT],  # of a posterior that was there before
            )
        except (OSError, ValueError) as error:
            raise UsageError(f"the hub refuses {repo}: {' '.join(str(error).split())[:300]}") from error
    return str(getattr(done, "pr_url", None) or getattr(done, "commit_url", done))


def write(
    kept: Kept,
    module: MultipleChoiceModule,
    run: Path | None,
    repo: str,
    folder: Path,
    base: str | None,
    license: str | None,
) -> None:
    """Write the repository's files into a folder: nothing else of a run is published.

    Args:
        kept: All that answers questions.
        module: The module with the run's weights.
        run: The run folder; None where there is none.
        repo: ``owner/name``.
        folder: Where the files are written.
        base: The base model's id on the hub; None takes the one the run names.
        license: The licence that the model card names; None names none.
    """
    public = _public(kept, module, base)
    name = public.arguments["backbone"]["pretrained"]
    config = {**module.model.adapter_config, "base_model_name_or_path": None if name == EMBEDDED else name}
    save(public, folder, config)
    plain = _plain(public, module)
    if plain is not None:
        with TemporaryDirectory() as place:
            save_posterior(plain, Path(place) / "adapter", config, public.base)
            for file in _PEFT:
                shutil.copyfile(Path(place) / "adapter" / file, folder / file)
    metrics = metrics_of(run)
    if metrics is not None:
        write_json(folder / METRICS, metrics)
    if run is not None and (run / "test" / FIGURE).is_file():
        _draw(run / "test" / PREDICTION_FILE, folder / FIGURE)
    text = card(public, repo, metrics, (folder / FIGURE).is_file(), plain is not None, license)
    (folder / "README.md").write_text(text)


def _draw(predictions: Path, file: Path) -> None:
    """The run's picture of its calibration again, its panels named without folders of this machine."""
    from bayeslora.results.plots import reliability, save
    from bayeslora.results.prediction_file import read_predictions

    datasets = read_predictions(predictions).datasets
    public = public_names(datasets)
    save(reliability({public[name]: answers for name, answers in datasets.items()}), file)


def _plain(kept: Kept, module: MultipleChoiceModule) -> Point | None:
    """The adapter for plain peft; None where several networks answer, or none was trained."""
    if not module.trainable():
        return None
    posterior = module.posterior() if kept.posterior is None else kept.posterior
    return None if isinstance(posterior, Mixture) else Point(posterior.mean())


def _public(kept: Kept, module: MultipleChoiceModule, base: str | None) -> Kept:
    """The same with names that others can use, and no place of this machine.

    Raises:
        UsageError: the base or the tokenizer is a folder here.
    """
    backbone = dict(kept.arguments.get("backbone") or {"pretrained": EMBEDDED})
    asked = kept.prompting
    own_tokenizer = asked.tokenizer == backbone["pretrained"]
    backbone["pretrained"] = base or backbone["pretrained"]
    tokenizer = backbone["pretrained"] if own_tokenizer else asked.tokenizer
    for what, name in (("base", backbone["pretrained"]), ("tokenizer", tokenizer)):
        if name != EMBEDDED and not is_hub_id(name):
            raise UsageError(
                f"the {what} {name} is a folder of this machine; give base, the id on the hub of the model it is a "
                "copy of, or publish the model first"
            )
    public = replace(
        kept,
        arguments={**kept.arguments, "backbone": backbone},
        weights=module.as_served()[1],
        base=module.model.base_fingerprint,
        prompting=replace(asked, tokenizer=tokenizer),
        checkpoint=None,
    )
    for where, text in _texts({**public.arguments, "backbone": {**backbone, "adapter": None}}):  # which is copied
        if Path(text).is_absolute():
            raise UsageError(f"{where} names {text}, a place of this machine, which others cannot read; leave it out")
    return public


def _texts(values: Any, where: str = "arguments") -> Iterator[tuple[str, str]]:
    """Every text among plain values, and where it stands."""
    if isinstance(values, str):
        yield where, values
    elif isinstance(values, Mapping):
        for name, value in values.items():
            yield from _texts(value, f"{where}.{name}")
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _texts(value, where)
