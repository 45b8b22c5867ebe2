"""What is run on the pretend GPU:  python -m tests.pretend_gpu.scenarios NAME ...  prints a line of JSON for each."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.pretend_gpu import device

if __name__ == "__main__":
    device.activate()

import torch
import transformers

from bayeslora.callbacks.dynamics import Dynamics
from bayeslora.callbacks.ensemble import Ensemble
from bayeslora.callbacks.laplace import Laplace
from bayeslora.callbacks.posterior import SavedPosteriors
from bayeslora.callbacks.run_folder import RunFolder
from bayeslora.callbacks.swag import SWAG
from bayeslora.callbacks.temperature import Temperature
from bayeslora.callbacks.tfb import TFB
from bayeslora.callbacks.vocabulary import VocabularyUncertainty
from bayeslora.curvature.fit import STRUCTURES
from bayeslora.lightning_modules.blob import BLoBModule
from bayeslora.lightning_modules.c_lora import CLoRAModule
from bayeslora.lightning_modules.ensemble import LoRAEnsemble
from bayeslora.lightning_modules.ivon import IVONModule
from bayeslora.lightning_modules.lora import LoRAModule
from bayeslora.lightning_modules.scalabl import ScalaBLModule
from bayeslora.models.loading import Backbone, LoRA, load_answer_model
from tests.pretend_gpu import runs
from tests.pretend_gpu.runs import SITES, Callbacks, every_stage

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = ["--tiny", "--rounds", "1"]
SMALL = ["--device", "cuda", "--small", "--rounds", "1"]
SHORT: dict[str, Any] = {  # of gpu_7b: bfloat16 on a CPU takes its time
    **{"VOCABULARY": 256, "QUESTIONS": 40, "DRAWS": 2, "EVALUATION": (2,), "TRAINING": ((2, 0.0), (2, 0.1))},
    "TINY": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
}
SCRIPTS = {
    "gpu_7b": [*TINY, "--steps", "1"],
    "laplace_7b": ["--tiny", "--questions", "24", "--structures", "full", "ekfac"],
    "sampled_prediction": [*SMALL, "--tokens", "8"],
    "ensemble_fit": [*TINY, "--tokens", "64", "--members", "2", "--bases", "nf4"],
    "variational_step": [*SMALL, "--steps", "1", "--batches", "2"],
}


def plain(**options: Any) -> LoRAModule:
    """Plain LoRA on the embedded base."""
    return LoRAModule(Backbone(), SITES, **options)


def swag(**options: Any) -> Callbacks:
    """SWAG at every step."""
    return lambda: [SWAG(**{"start": 0, "unit": "step", "rank": 2, "samples": 2, **options})]


def laplace(structure: str) -> None:
    """Laplace after training, with the run folder that keeps it; and from disk in a test."""
    module, callbacks = plain(), [RunFolder(), Laplace(structure=structure, precision="evidence")]
    own = runs.trainer(Path(tempfile.mkdtemp()), *callbacks)
    own.fit(module, datamodule=runs.questions())
    own.test(module, datamodule=runs.questions(), verbose=False)


def laplace_choices() -> None:
    """The prior by validation, and every link from the law over logits to probabilities."""
    module = plain()
    for link in ("probit", "mc", "weight_samples"):
        choice = Laplace(precision="validation", predict=link, samples=3, directory="memory")
        own = runs.trainer(Path(tempfile.mkdtemp()), choice)
        own.test(module, datamodule=runs.questions(), verbose=False)


def laplace_refitted() -> None:
    """A refit with a precision for each factor, and with one by validation."""
    for precision, groups, centre in ((3.0, "factor", "initial"), ("validation", "one", "zero")):
        choice = Laplace(
            precision=precision,
            mean="refit",
            prior_mean=centre,
            groups=groups,
            subset_of_weights="all",
            directory="memory",
        )
        own = runs.trainer(Path(tempfile.mkdtemp()), choice)
        module = plain(learning_rate=1e-2)
        own.fit(module, datamodule=runs.questions())
        own.test(module, datamodule=runs.questions(), verbose=False)


def multiswag() -> None:
    """SWAG on a stack, and a mixture of finished runs."""
    every_stage(lambda: LoRAEnsemble(Backbone(), SITES, members=2), swag())
    folders = []
    for seed in range(2):
        folder = Path(tempfile.mkdtemp())
        module = plain(seed=seed)
        runs.trainer(folder, *swag()(), RunFolder()).fit(module, datamodule=runs.questions())
        folders.append(str(folder / "posterior"))
    mixture = runs.trainer(Path(tempfile.mkdtemp()), SavedPosteriors(folders, samples=2, dropout=True))
    mixture.test(plain(), datamodule=runs.questions(), verbose=False)


def ensemble() -> None:
    """Members that stop early and are kept in a store, one that is tested from there, and one more added."""
    folder = every_stage(
        lambda: LoRAEnsemble(Backbone(), SITES, members=2, patience=1, members_per_pass=1), lambda: [RunFolder()]
    )
    store = folder / "members"
    one = LoRAEnsemble(Backbone(), SITES, members=[5])
    runs.trainer(Path(tempfile.mkdtemp()), Ensemble(store)).fit(one, datamodule=runs.questions())
    every = LoRAEnsemble(Backbone(), SITES)
    every.store = store
    runs.trainer(Path(tempfile.mkdtemp())).test(every, datamodule=runs.questions(), verbose=False)


def adapters() -> None:
    """Adapters of finished runs as the start of others: plain, with a spread, and with contextual modules."""
    for kind in (LoRAModule, BLoBModule, CLoRAModule, ScalaBLModule, IVONModule):
        folder, module = Path(tempfile.mkdtemp()), kind(Backbone(), LoRA(r=2, target_modules=["q_proj"]))
        runs.trainer(folder).fit(module, datamodule=runs.questions())
        base = Backbone(adapter=runs.saved(folder, module))
        again = kind(base, SITES)
        runs.trainer(folder).test(again, datamodule=runs.questions(), verbose=False)
        runs.trainer(folder).fit(again, datamodule=runs.questions())


def encoders(pairs: bool) -> None:
    """A classification head: options as rows, or sentence pairs."""
    folder = runs.encoder()
    base = Backbone(folder, readout="head", num_labels=3 if pairs else None)
    sites = LoRA(r=2, dropout=0.1, target_modules=["query", "value"])
    data = partial(runs.pairs, folder) if pairs else partial(runs.questions, folder, "head")
    every_stage(lambda: LoRAModule(base, sites, samples=2), lambda: [Temperature()], data)
    every_stage(lambda: LoRAModule(base, sites), lambda: [Laplace(precision=1.0)], data)


def foreign() -> None:
    """Callbacks on a module of another package."""
    told: dict[str, Any] = {"logits_fn": runs.logits_of, "label_fn": runs.labels_of}

    batches = runs.Numbers().train_dataloader()
    swag_of, laplace_of = (
        partial(SWAG, **told, start=0, unit="step", rank=2, samples=2),
        partial(Laplace, **told, precision=1.0, train_batches=batches),
    )
    for callback in (swag_of, laplace_of):
        callbacks = partial(lambda make: [make(), Temperature(**told)], callback)
        module, folder = runs.Foreign(), Path(tempfile.mkdtemp())
        own = runs.trainer(folder, *callbacks())
        own.fit(module, datamodule=runs.Numbers())
        own.test(module, datamodule=runs.Numbers(), verbose=False)


def random_state() -> None:
    """Loading a model for a GPU leaves the GPU's random state as it was, and the CPU's."""
    torch.manual_seed(7)
    before = torch.cuda.get_rng_state(), torch.get_rng_state()
    with torch.device("cuda"):
        load_answer_model(Backbone(), SITES, seed=0, device="cuda")
    after = torch.cuda.get_rng_state(), torch.get_rng_state()
    assert all(map(torch.equal, before, after))


def finished_mask() -> None:
    """A forward pass over padded rows asks nothing of their mask: of a causal model, and of an encoder."""
    head = Backbone(runs.encoder(), readout="head")
    for base, sites, data in (
        (Backbone(), SITES, runs.questions()),
        (head, LoRA(r=2, target_modules=["query"]), runs.questions(head.pretrained, "head")),
    ):
        model = load_answer_model(base, sites, seed=0).to("cuda")
        data.prepare_data()
        data.setup("fit")
        batch = next(iter(data.val_dataloader())).to("cuda")
        with device.recording() as record, torch.no_grad():
            model(batch)
        assert record.number_of_operations > 50
        assert not [kind for kind, _, _ in record.waits if kind == "value"], record.lines()


def benchmark(name: str) -> None:
    """A script that is meant for a GPU; nf4's kernels take raw pointers, so its layers stay as they are."""
    sys.path.insert(0, str(BENCHMARKS))
    import gpu_7b

    with (
        patch.multiple(gpu_7b, nf4=lambda linear, *_: linear, **(SHORT if name == "gpu_7b" else {})),
        patch.object(sys, "argv", [name, *SCRIPTS[name]]),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        __import__(name).main()


GROUPS: dict[str, dict[str, Callable[[], Any]]] = {
    "methods": {
        "mle": partial(every_stage, plain, lambda: [Temperature(), VocabularyUncertainty()]),
        "map": partial(
            every_stage,
            lambda: LoRAModule(Backbone(gradient_checkpointing=True), SITES, prior_std=0.1, support="full_vocab"),
        ),
        "mc_dropout": partial(every_stage, lambda: plain(samples=3), lambda: [Dynamics()]),
        "ensemble": ensemble,
        "blob": partial(every_stage, lambda: BLoBModule(Backbone(), SITES, samples=2)),
        "blob_two": partial(
            every_stage, lambda: BLoBModule(Backbone(), SITES, optimisers="two", predict="linearised", samples=2)
        ),
        "bbb": partial(every_stage, lambda: BLoBModule(Backbone(), SITES, factors="AB", predict="flipout", samples=2)),
        "scalabl": partial(every_stage, lambda: ScalaBLModule(Backbone(), SITES, samples=2)),
        "ivon": partial(every_stage, lambda: IVONModule(Backbone(), SITES, samples=2)),
        "c_lora": partial(every_stage, lambda: CLoRAModule(Backbone(), SITES, samples=2)),
        "c_lora_two": partial(
            every_stage, lambda: CLoRAModule(Backbone(), SITES, context="sequence", optimisers="two", samples=2)
        ),
        "tfb": partial(every_stage, plain, lambda: [TFB(anchors=6, samples=2, iterations=1, tolerance=0.5)]),
    },
    "posteriors": {
        "swag": partial(every_stage, plain, swag()),
        "swag_on_the_device": partial(every_stage, plain, swag(device="same", predict="linearised")),
        "checkpoints": partial(every_stage, plain, swag(device="same", mode="checkpoints", dropout=True)),
        "multiswag": multiswag,
        "adapters": adapters,
    },
    "laplace": {
        **{structure: partial(laplace, structure) for structure in STRUCTURES},
        "choices": laplace_choices,
        "refitted": laplace_refitted,
        "ensemble": partial(
            every_stage, lambda: LoRAEnsemble(Backbone(), SITES, members=2), lambda: [RunFolder(), Laplace(samples=3)]
        ),
    },
    "others": {
        "encoder_options": partial(encoders, False),
        "encoder_pairs": partial(encoders, True),
        "foreign": foreign,
        "random_state": random_state,
        "finished_mask": finished_mask,
    },
    "benchmarks": {name: partial(benchmark, name) for name in SCRIPTS},
}


def main(names: list[str]) -> None:
    """Run groups, or ``group.scenario``."""
    quiet()
    for name in names or list(GROUPS):
        group, _, only = name.partition(".")
        for scenario, run in GROUPS[group].items():
            if only in ("", scenario):
                print(json.dumps({"name": f"{group}.{scenario}", **outcome(run)}), flush=True)


def outcome(run: Callable[[], Any]) -> dict[str, Any]:
    """CPU seconds and what went wrong."""
    began, error = time.process_time(), None
    with contextlib.redirect_stdout(sys.stderr):
        try:
            run()
        except BaseException:  # also a script's SystemExit
            error = traceback.format_exc()
    return {"error": error, "seconds": round(time.process_time() - began, 1)}


def quiet() -> None:
    """Leave the output to the outcomes."""
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    main(sys.argv[1:])
