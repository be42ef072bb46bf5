"""A language that counts: a model of it, its texts, and plans of both."""

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ("one", "two", "three", "four", "five", "six")
BEGIN, END = 1, 2


def save_llama(folder: Path) -> Path:
    """A Llama of 16 dimensions with random weights, and a tokenizer of one token a word: <s> 1,
    </s> 2, one 3, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: k for k, word in enumerate(("<unk>", "<s>", "</s>", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_texts(folder: Path) -> Path:
    """Two speakers who count, each from a number of its own, and an empty line of each."""
    file = folder / "texts.jsonl"
    rows = [
        {"who": who, "text": " ".join(WORDS[(k + j) % 6] for j in range(k % 5 + at))}
        for k in range(30)
        for at, who in enumerate(("ann", "bob"))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def changes(llama: Path, texts: Path, **other: Any) -> dict[str, Any]:
    return {
        "task": {"name": "causal-lm", "model": str(llama), "max_length": 16},
        "data": {"name": "table", "path": str(texts), "label": "none"},
        "partition": {"name": "column", "column": "who"},
        "local": {"lr": 0.01, "batch_size": 4, "optimizer": "adamw"},
        "cohort": 2,
        **other,
    }
