"""Pre-train the tiny Llama-architecture base of the embedded default, and write its folder.

    python tools/make_embedded_base.py bayeslora/assets/tiny

The same seed gives the same weights on the same machine, library versions and number of threads (the package's folder:
OMP_NUM_THREADS=1); it takes about a minute of one core.
"""

from __future__ import annotations

import argparse

import torch
from embedded_corpus import Corpus
from embedded_wiring import wire
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
VOCABULARY = 1024  # at most: bytes, and merges enough to make every word of the benchmark one token
LANGUAGE_WEIGHT = 0.1  # of the next-token loss beside the answer's: the words of a document are independent draws


def make_tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    """Byte-level BPE that puts a BOS in front, as Llama's does, and has a token for every byte."""
    core = Tokenizer(models.BPE(unk_token=SPECIAL["unk_token"]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([corpus.question() for _ in range(20_000)], trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left", model_max_length=2048, **SPECIAL)


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """About 340,000 parameters; every matrix has a multiple of 64 entries, the block of the 4-bit formats."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.02,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def pretrain(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: Corpus, steps: int, batch: int, lr: float
) -> None:
    """AdamW on questions with their answers: warm-up, then constant, then down to zero over the last third."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 50, 1.0, 3 * (steps - step) / steps)
    )
    model.train()
    for step in range(1, steps + 1):
        texts = [corpus.question() for _ in range(batch)]
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, :-1]
        answer = F.cross_entropy(logits[:, -1], ids[:, -1])
        target = ids[:, 1:].masked_fill(mask[:, :-1] == 0, -100)
        loss = answer + LANGUAGE_WEIGHT * F.cross_entropy(logits.transpose(1, 2), target, ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}, of the answer {answer.item():.3f}", flush=True)


def main() -> None:
    """Make tokenizer and model, train, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    corpus = Corpus(args.seed)
    tokenizer = make_tokenizer(corpus)
    model = make_model(tokenizer)
    wire(model, tokenizer, corpus)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    pretrain(model, tokenizer, corpus, args.steps, args.batch, args.lr)
    model.save_pretrained(args.folder)
    tokenizer.save_pretrained(args.folder)


if __name__ == "__main__":
    main()
