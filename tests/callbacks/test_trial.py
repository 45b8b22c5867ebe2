"""A trial (``fast_dev_run``) looks at as few batches after training as in it, and leaves a run folder as it was."""

from pathlib import Path

import lightning as L
import pytest

from bayeslora import TFB, Backbone, Decision, Laplace, LoRA, LoRAModule, RunFolder, Temperature
from bayeslora.callbacks.fit_data import First, undealt
from tests.helpers.classifier import Classifier, loader, logits_of
from tests.helpers.ensembles import datamodule, trainer

SMALL = LoRA(r=4, target_modules=["q_proj", "v_proj"])


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("method", [lambda: Laplace(precision=1.0), lambda: TFB(anchors=8, samples=2, iterations=0)])
def test_a_trial_leaves_a_run_as_it_was(method: type, data: Path, tmp_path: Path) -> None:
    def run(*callbacks: L.Callback, trial: bool) -> L.Callback:
        module = LoRAModule(Backbone("embedded"), SMALL, learning_rate=5e-3, seed=1)
        options = {"fast_dev_run": True} if trial else {"max_steps": 3, "limit_val_batches": 1}
        made = trainer(tmp_path, callbacks=[*callbacks, RunFolder()], **options)
        made.fit(module, datamodule=datamodule(data))
        if trial:
            made.test(module, datamodule=datamodule(data), verbose=False)
        return callbacks[0] if callbacks else None

    run(trial=False)
    before = contents(tmp_path)
    run(method(), Temperature(), Decision(), trial=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("given", [True, False])
def test_laplace_is_fitted_to_the_batches_of_a_trial(given: bool, tmp_path: Path) -> None:
    functions = {"logits_fn": logits_of, "label_fn": lambda batch: batch[1]}
    laplace = Laplace(precision=1.0, train_batches=list(loader(5)) if given else None, **functions)
    made = trainer(tmp_path, callbacks=[laplace], fast_dev_run=2)
    made.fit(Classifier(), loader(5), loader())
    assert laplace.report["questions"] == 8


def test_the_first_batches_are_those_of_one_process(data: Path) -> None:
    whole = datamodule(data)
    whole.setup("fit")
    first = First(whole.train_eval_dataloader(), 2)
    rows = [batch.example_id.tolist() for batch in whole.train_eval_dataloader()]
    assert len(first) == 2
    assert [batch.example_id.tolist() for batch in undealt(first)] == rows[:2]
