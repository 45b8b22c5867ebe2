"""A run on a file of one's own that was tested, with a temperature and a decision rule."""

import json
from pathlib import Path

import pytest

LINES = [
    {"id": str(i), "question": f"Is {i} even?", "options": ["yes", "no"], "label": i % 2, "context": ""}
    for i in range(40)
]


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """The run's folder, whose data are gone, and the questions of its test."""
    import lightning as L

    from bayeslora import Decision, JSONLDataModule, KeepForServing, LoRAModule, Predictions, Temperature
    from bayeslora.models.loading import LoRA

    root = tmp_path_factory.mktemp("own")
    data = root / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    (data / "test.jsonl").write_text("\n".join(map(json.dumps, LINES[:10])))
    module = LoRAModule(lora=LoRA(r=2, target_modules=["q_proj", "v_proj"]))
    datamodule = JSONLDataModule(str(data), labels=40, calibration=8, batch_size=8, shots=1)
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", default_root_dir=root / "run", logger=False, enable_checkpointing=False,
        callbacks=[Temperature(), Decision(), Predictions(), KeepForServing()], enable_progress_bar=False,
        num_sanity_val_steps=0, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=datamodule)
    trainer.test(module, datamodule=datamodule, verbose=False)
    for file in data.iterdir():
        file.unlink()
    return root / "run", LINES[:10]
