"""Runs of SWAG from the command line."""

from pathlib import Path


def arguments(stage: str, root: Path, data: Path, *options: str) -> list[str]:
    model = ["--model=LoRAModule", "--model.backbone.pretrained=embedded", "--model.optimisation.learning_rate=0.005"]
    source = ["--data=JSONLDataModule", f"--data.path={data}", "--data.labels=40"]
    quiet = ["--trainer.accelerator=cpu", "--trainer.max_epochs=6", "--trainer.enable_progress_bar=false"]
    return [stage, *model, *source, f"--trainer.default_root_dir={root}", *quiet, *options]
