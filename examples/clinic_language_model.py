"""A small language model and the instructions of three clinics, for the tutorial: no network.

    python examples/clinic_language_model.py trial

It writes trial/base, a Llama of 0.2 million parameters that tells to which ward of another
hospital a patient goes, and trial/clinics/train.jsonl and test.jsonl: to which ward here, where
the wards have other letters. Each clinic sees patients with other symptoms.
"""

import json
import random
import sys
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedpeft.tasks.instructions import alpaca

WARDS = {
    "A": ("chest pain", "a racing pulse", "swollen ankles", "fainting"),
    "B": ("a long cough", "short breath", "a whistling breath", "coloured phlegm"),
    "C": ("a red rash", "itching", "a dark mole", "a slow wound"),
}
SEES = {"north": (0, 1), "east": (1, 2), "south": (2, 3)}
"""Of each ward which symptoms come to a clinic."""
DAYS = ("one day", "two days", "a week", "a month")


def ask(symptom: str, rng: random.Random) -> str:
    return f"A patient has had {symptom} for {rng.choice(DAYS)}. Which ward?"


def rows(rng: random.Random, each: int) -> list[dict[str, str]]:
    """`each` questions of every symptom that a clinic sees, with the right answers."""
    return [
        {
            "clinic": clinic,
            "instruction": ask(symptoms[k], rng),
            "response": f"Ward {ward}.",
        }
        for clinic, seen in SEES.items()
        for ward, symptoms in WARDS.items()
        for k in seen
        for _ in range(each)
    ]


def elsewhere(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Questions with the answers of the other hospital, whose wards have other letters: what the
    base learns from."""
    answers = {
        symptom: f"Ward {ward}."
        for ward, symptoms in zip("BCA", WARDS.values(), strict=True)
        for symptom in symptoms
    }
    asked = rng.choices(list(answers), k=count)
    return [(alpaca(ask(symptom, rng)), answers[symptom]) for symptom in asked]


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of some hundred tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def train_base(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """One pass over the texts, 16 at a time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for first, last in pairwise(range(0, len(texts) + 1, 16)):
        batch = tokenizer(texts[first:last], return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"the base's loss on its own texts: {loss.item():.3f}")
    return model


def main(root: Path) -> None:
    rng = random.Random(0)
    (root / "clinics").mkdir(parents=True, exist_ok=True)
    for split, each in (("train", 12), ("test", 4)):
        lines = [json.dumps(row) for row in rows(rng, each)]
        (root / "clinics" / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    texts = [f"<s>{prompt}{answer}</s>" for prompt, answer in elsewhere(rng, 4800)]
    tokenizer = tokenizer_of(texts)
    train_base(texts, tokenizer).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    print(f"{root / 'base'} and {root / 'clinics'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
