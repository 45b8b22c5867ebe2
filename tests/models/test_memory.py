"""What a GPU's memory is asked, and that it is not asked for nothing."""

import gc
import weakref

import pytest
import torch

from bayeslora.models import answer_model, memory
from bayeslora.models.loading import Backbone, LoRA, _quantization, half_precision, load_answer_model
from bayeslora.types import Samples
from tests.helpers.batches import label_token_batch


def test_what_torch_holds_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """After training the driver has next to nothing left, and torch's cache holds the rest."""
    for name, value in {"mem_get_info": (2, 80), "memory_reserved": 70, "memory_allocated": 10}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    assert memory.free_bytes(torch.device("cuda")) == 62


def test_cycles_are_collected_before_the_cache_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    class Attempt:
        pass

    attempt = Attempt()
    attempt.itself = attempt  # type: ignore[attr-defined]
    gone, alive = weakref.ref(attempt), []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(gone() is not None))
    gc.disable()
    try:
        del attempt
        memory.give_back()
    finally:
        gc.enable()
    assert alive == [False]


@pytest.mark.parametrize("samples, gradients, asked", [(3, False, 1), (3, True, 0), (1, False, 0)])
def test_memory_is_asked_for_where_the_answer_counts(
    samples: int, gradients: bool, asked: int, llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_answer_model(Backbone(llama), LoRA(r=2, dropout=0.1, target_modules=["q_proj"]), seed=0)
    questions = []
    plain = answer_model.fitting_chunk
    monkeypatch.setattr(answer_model, "fitting_chunk", lambda *given: questions.append(given) or plain(*given))
    with torch.set_grad_enabled(gradients):
        model(label_token_batch([5, 6], [3, 3]), Samples(draws=torch.arange(samples)))
    assert len(questions) == asked


def test_a_move_of_a_parent_leaves_nothing_of_an_8bit_base_behind() -> None:
    """From its first forward pass on, an 8-bit layer holds its weight in a state that a parent's move passes by."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    lora = LoRA(r=2, target_modules=["q_proj"])
    parent = torch.nn.ModuleList([load_answer_model(Backbone("embedded", quantization="8bit"), lora, seed=0)])
    batch = label_token_batch([5, 6], [3, 3])
    layers = [module for module in parent.modules() if isinstance(module, bitsandbytes.nn.Linear8bitLt)]
    with torch.no_grad():
        before = parent[0](batch).logits
        old = {tensor.data_ptr() for layer in layers for tensor in (layer.weight, layer.state.SCB)}
        assert all(layer.state.CB is not None for layer in layers)
        held = [(layer.weight.data, layer.state.SCB) for layer in layers]  # or new memory could be where the old was
        parent._apply(lambda tensor: tensor.clone())  # as a move to another device: the same values elsewhere
        assert held
        for layer in layers:
            assert layer.state.CB.data_ptr() == layer.weight.data_ptr()
            assert layer.state.CB.data_ptr() not in old
            assert layer.state.SCB.data_ptr() not in old
        torch.testing.assert_close(parent[0](batch).logits, before)


@pytest.mark.parametrize("supported, wanted", [(True, torch.bfloat16), (False, torch.float16)])
def test_half_precision_is_what_the_card_computes_in(
    supported: bool, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cards from before Ampere emulate bfloat16, slowly."""
    asked: list[bool] = []
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: asked.append(including_emulation) or supported
    )
    assert half_precision() is wanted
    assert asked == [False]
    assert _quantization(Backbone(quantization="4bit"), torch.device("cuda")).bnb_4bit_compute_dtype is wanted
