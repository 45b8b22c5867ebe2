"""The benchmark of C-LoRA's and BLoB's steps runs, and its contestants start from the same answers."""

import re
from pathlib import Path

import pytest
import torch


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import variational_step

    return variational_step


def test_every_ratio_is_printed(script, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--small", "--rounds", "1", "--steps", "1", "--batches", "4"])
    output = capsys.readouterr().out
    for name in script.TARGETS:
        assert float(re.search(rf"step, {name} / MAP: ([\d.]+)x", output)[1]) > 0
    assert output.count("one pass of 10 samples / 10 passes:") == 2


def test_contestants_share_a_base_and_start_at_plain_lora(script) -> None:
    modules = script.contestants(script.llama(True), torch.device("cpu"))
    batch = next(iter(script.loader_of(script.questions(), 4)))
    bases = {module.model.network.get_input_embeddings().weight.data_ptr() for module in modules.values()}
    assert len(bases) == 1
    with torch.no_grad():
        first, *others = (module.answer_logits(batch) for module in modules.values())
        for other in others:
            torch.testing.assert_close(other, first)
        for name in ("C-LoRA", "BLoB"):
            module, log_probs = modules[name], []
            for parameter_name, value in module.trainable().items():
                if ".lora_B." in parameter_name:
                    value.fill_(0.01)
            for module.chunk in (None, 1):
                log_probs.append(module.predictive(batch).log_probs)
            assert len(log_probs[0]) == script.SAMPLES
            torch.testing.assert_close(*log_probs, atol=1e-4, rtol=1e-4)
