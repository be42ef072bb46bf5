"""A language of chats: a model of it whose tokenizer has a token for each sign of ChatML."""

import json
from pathlib import Path
from typing import Any

import torch

SIGNS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "system", "user", "assistant")
WORDS = ("one", "two", "three", "four", "five", "six")
VOCABULARY = {word: k for k, word in enumerate((*SIGNS, *WORDS))}
IM_START, IM_END, SYSTEM, USER, ASSISTANT = 3, 4, 5, 6, 7
ONE, TWO, THREE, FOUR, FIVE, SIX = range(8, 14)
PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + ' ' + m['content'] }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
"""A template without marks."""
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + ' ' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}"
    "<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant "
    "{% endif %}"
)
"""The same with marks."""
FORGETFUL = PLAIN.replace("m['content']", "(m['content'] if loop.last else 'six')")
"""One that writes earlier messages otherwise, as templates do that drop earlier thoughts."""


def save_chatter(folder: Path, template: str | None = None, **config: Any) -> Path:
    """A Llama of 16 dimensions with random weights, one token a word; `template` is its own."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens([AddedToken(sign, special=True) for sign in SIGNS[3:5]])
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    read = PreTrainedTokenizerFast(tokenizer_object=words, **named)
    read.chat_template = template
    read.save_pretrained(folder)
    settings = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        **config,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(settings).save_pretrained(folder)
    return folder


def turns(*texts: str, system: str = "") -> list[dict[str, str]]:
    """Messages of a user and an assistant in turn, after one of the system if any."""
    first = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return first + [{"role": roles[k % 2], "content": text} for k, text in enumerate(texts)]


def save_chats(folder: Path) -> Path:
    """Chats of two people in which one says a number and the other the next one; two lines of the
    file are none."""
    file = folder / "chats.jsonl"
    rows: list[dict[str, Any]] = []
    for k in range(30):
        for at, who in enumerate(("ann", "bob")):
            one, two = WORDS[(k + at) % 6], WORDS[(k + at + 1) % 6]
            chat = turns(one, two, *([two, one] if k % 3 == 0 else []))
            rows.append({"who": who, "messages": json.dumps(chat)})
    rows += [{"who": "ann", "messages": "no JSON"}, {"who": "bob", "messages": "[]"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
