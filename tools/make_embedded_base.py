"""Pre-train the tiny Llama-architecture base of the embedded default and write its folder.

python tools/make_embedded_base.py bayeslora/assets/tiny
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bayeslora.datamodules.synthetic_topics import FAMILY_WEIGHT, TOPIC_WEIGHT, families, words

LETTERS = "ABCDE"
VOCABULARY = 1024
SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
SCHOOL = """apples bears candles drums engines flags gloves hats islands jewels kites lamps mirrors nails onions pencils
quilts ropes spoons towels umbrellas violins wagons yachts arrows bells clocks doors eagles flutes gates horns"""


def prompt(question: str, options: list[str]) -> str:
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options)]
    return "\n".join((f"Question: {question}", *lines, "Answer:"))


class Corpus:
    def __init__(self, seed: int, kinds: dict[str, float]):
        self.rng = random.Random(seed)
        self.kinds = kinds
        self.words = sorted(set(words("known")) | set(words("foreign")))
        self.groups = [(words(realm), group) for realm in ("known", "foreign") for group in families(realm)]
        self.names = [topic.name for _, group in self.groups for topic in group]
        self.school = {}
        names = SCHOOL.split()
        for i in range(0, len(names), 4):
            common = self.rng.sample(self.words, 60)
            for name in names[i : i + 4]:
                own = self.rng.sample(self.words, 30)
                self.school[name] = [1 + FAMILY_WEIGHT * (w in common) + TOPIC_WEIGHT * (w in own) for w in self.words]

    def draw(self) -> tuple[str, str]:
        (kind,) = self.rng.choices(list(self.kinds), list(self.kinds.values()))
        return getattr(self, kind)()

    def document(self):
        vocabulary, group = self.rng.choice(self.groups)
        topic = self.rng.choice(group)
        return " ".join(["text:"] + self.rng.choices(vocabulary, topic.weights, k=24)), ""

    def _ask(self, question, options, answer):
        return prompt(question, options), " " + LETTERS[options.index(answer)]

    def copy(self):
        options = self.rng.sample(self.names + list(self.school), self.rng.choice((2, 3, 4, 4, 4, 5)))
        answer = self.rng.choice(options)
        filler = self.rng.choices(self.words, k=self.rng.randint(0, 12))
        filler.insert(self.rng.randint(0, len(filler)), answer)
        return self._ask(" ".join(["word in"] + filler), options, answer)

    def lesson(self):
        options = self.rng.sample(list(self.school), self.rng.choice((2, 3, 4, 4, 4, 5)))
        answer = self.rng.choice(options)
        doc = self.rng.choices(self.words, self.school[answer], k=self.rng.randint(2, 14))
        return self._ask(" ".join(["topic of"] + doc), options, answer)


def tokenizer(corpus: Corpus) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = ["".join(corpus.draw()) for _ in range(20_000)] + ["sum of topic of"] * 1000
    core.train_from_iterator(texts, trainer)
    bos = core.token_to_id("<s>")
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left", model_max_length=2048, **SPECIAL)


def pretrain(tok, corpus, steps, batch, lr, hidden=64, inter=192, layers=4, heads=4):
    config = LlamaConfig(
        vocab_size=len(tok),
        hidden_size=hidden,
        intermediate_size=inter,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
        initializer_range=0.06,
    )
    model = LlamaForCausalLM(config)
    print(sum(p.numel() for p in model.parameters()), "parameters", len(tok))
    opt = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    sched = torch.optim.lr_scheduler.LambdaLR(
        opt, lambda s: min((s + 1) / 100, 0.5 * (1 + math.cos(math.pi * s / steps)))
    )
    t = time.time()
    accs = {}
    for step in range(steps):
        pairs = [corpus.draw() for _ in range(batch)]
        enc = tok([p + a + tok.eos_token for p, a in pairs], padding=True, padding_side="right", return_tensors="pt")
        ids, mask = enc["input_ids"], enc["attention_mask"]
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        target = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        lm = F.cross_entropy(logits.transpose(1, 2), target, ignore_index=-100)
        rows = torch.tensor([i for i, (_, a) in enumerate(pairs) if a])
        pos = mask[rows].sum(1) - 3
        al = logits[rows, pos]
        at = ids[rows, pos + 1]
        ans = F.cross_entropy(al, at)
        loss = lm + ans
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        sched.step()
        if step % 100 == 99:
            ok = (al.argmax(-1) == at).float()
            iscopy = torch.tensor(["word in" in pairs[i][0] for i in rows])
            print(
                step + 1,
                f"lm {lm:.3f} ans {ans:.3f} copy {ok[iscopy].mean():.2f} lesson {ok[~iscopy].mean():.2f} {time.time() - t:.0f}s",
                flush=True,
            )
    return model


if __name__ == "__main__":
    import sys

    p = argparse.ArgumentParser()
    p.add_argument("folder")
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--batch", type=int, default=64)
    a = p.parse_args()
    torch.manual_seed(0)
    corpus = Corpus(0, {"document": 0.2, "copy": 0.4, "lesson": 0.4})
    tok = tokenizer(corpus)
    print(tok.tokenize(corpus.lesson()[0] + " A"))
    model = pretrain(tok, corpus, a.steps, a.batch, a.lr)
    model.save_pretrained(a.folder)
    tok.save_pretrained(a.folder)
