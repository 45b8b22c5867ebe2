"""A starting point for the embedded base, from which a tiny model learns to answer questions in a few hundred steps.

From random weights it takes many thousands: nothing is gained before four things work at once. So they are wired in,
and the vectors of words and names start from who occurs with whom. All weights are trained then.

    layer 0, head 0   a position copies the token two places back: an option's name learns its letter
    layer 0, head 1   a position gathers the mean of the document's words
    layer 1, head 0   it looks at the options' names, the most at the one most like that mean, and copies its letter
    head              " A" starts as the embedding of "A"

Embedding coordinates: 0 is the same for all tokens, 1 marks words, 2 marks names, the next K co-occurrence.
"""

from __future__ import annotations

import torch
from embedded_corpus import LETTERS, Corpus
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

EMBEDDING_STD = 0.3
MARK = 2 * EMBEDDING_STD
LOOK_BACK = 2  # from an option's name over ". " to its letter
GAINS = {"look back": 3.0, "class": 1.0, "likeness": 3.0}
N_DOCUMENTS = 8_000


def wire(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, corpus: Corpus) -> None:
    """Write the starting point into a fresh model with two or more heads a layer."""
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    size, half = first.head_dim, first.head_dim // 2
    embedding, hidden = model.model.embed_tokens.weight, model.config.hidden_size
    theta = float(model.config.rope_parameters["rope_theta"])  # type: ignore[index, arg-type]
    likeness = torch.eye(hidden)[3 : 3 + half]
    with torch.no_grad():
        embedding *= EMBEDDING_STD / model.config.initializer_range
        embedding[:, 0], embedding[:, 1:3] = MARK, 0.0
        embedding[_ids(tokenizer, corpus.words), 1] = MARK
        embedding[_ids(tokenizer, corpus.names), 2] = MARK
        tokens, vectors = co_occurrence(tokenizer, corpus, half)
        embedding[tokens, 3 : 3 + half] = EMBEDDING_STD * vectors
        for letter in LETTERS:
            plain, spaced = tokenizer(letter)["input_ids"][-1], tokenizer(f" {letter}")["input_ids"][-1]
            embedding[spaced] = embedding[plain]
        model.model.norm.weight *= EMBEDDING_STD  # logits of order one

        _look_back(first.q_proj.weight, first.k_proj.weight, size, theta)
        slow = slice(half // 2, half)  # coordinates that rotary embeddings hardly turn
        for attention, mark, head in ((first, 1, size), (second, 2, 0)):
            query, key = (p.weight[head : head + size] for p in (attention.q_proj, attention.k_proj))
            query[:], key[:] = 0.0, 0.0
            if attention is second:
                turning = torch.cat((torch.arange(half)[slow], half + torch.arange(half)[slow]))
                query[turning] = key[turning] = GAINS["likeness"] * likeness
            query[slow, 0] = key[slow, mark] = GAINS["class"]
        first.v_proj.weight[size : size + half] = likeness
        first.o_proj.weight[:, size : size + half] = likeness.T

        letters = torch.linalg.qr(torch.randn(hidden, size))[0].T
        letters[:, : 3 + half] = 0.0
        for attention in (first, second):
            attention.v_proj.weight[:size], attention.o_proj.weight[:, :size] = letters, letters.T


def _look_back(query: Tensor, key: Tensor, size: int, theta: float) -> None:
    """Head 0 scores a key D places back with sum_i cos((D - 2) theta^(-i / half)): the most where D is 2."""
    half = size // 2
    turn = LOOK_BACK * theta ** (-torch.arange(half) / half)
    query[:size], key[:size] = 0.0, 0.0
    key[:half, 0] = GAINS["look back"]
    query[:half, 0] = GAINS["look back"] * turn.cos()
    query[half:size, 0] = -GAINS["look back"] * turn.sin()


def co_occurrence(tokenizer: PreTrainedTokenizerFast, corpus: Corpus, rank: int) -> tuple[Tensor, Tensor]:
    """Word vectors: leading eigenvectors of the pointwise mutual information in documents (Levy and Goldberg, 2014).

    Returns:
        Token ids ``[N]``, and vectors ``[N, rank]`` of root mean square 1.
    """
    n_tokens = len(tokenizer)
    counts = torch.zeros(n_tokens * n_tokens)
    for _ in range(N_DOCUMENTS):
        document, name = corpus.document()
        ids = torch.tensor(_ids(tokenizer, document + [name] * 3 if name else document))
        counts += torch.bincount((ids[:, None] * n_tokens + ids).flatten(), minlength=n_tokens * n_tokens)
    square = counts.view(n_tokens, n_tokens)
    tokens = square.sum(0).nonzero()[:, 0]
    square = square[tokens][:, tokens].fill_diagonal_(0)
    total = square.sum(0)
    information = (square * square.sum() / total.outer(total) + 1e-3).log().clamp(min=-1)
    information = information - information.mean(0) - information.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh((information + information.T) / 2)
    scaled = vectors[:, -rank:] * values[-rank:].clamp(min=0).sqrt()
    return tokens, scaled / scaled.square().mean().sqrt()


def _ids(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[int]:
    """The one token of each text, with a space in front."""
    ids = tokenizer([f" {text}" for text in texts], add_special_tokens=False)["input_ids"]
    return [token for (token,) in ids]
