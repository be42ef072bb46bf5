"""Small models of texts with random weights, runs of the tasks on texts on every engine, and their
exported folders."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from exporting import loading_lines
from torch import Tensor
from torch.func import functional_call

from fedpeft import InProcess, federate, read_plan, start
from fedpeft.core.seeds import seed_torch
from fedpeft.core.types import Batch, State
from fedpeft.engines.processes import Processes
from fedpeft.engines.vectorized.engine import Cohort
from fedpeft.export.export import export_run
from fedpeft.methods.peft_tuners import known_warnings_ignored
from fedpeft.rounds.site import Site
from fedpeft.runs.checkpoint import load_checkpoint
from fedpeft.runs.execute import execute, open_engine, open_run_site
from fedpeft.runs.folder import create
from fedpeft.storage.client_memory import Nowhere

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "very", "##ly", "a")
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 24,
}
RUN = {
    "rounds": 2,
    "cohort": 3,
    "method": "lora",
    "partition": {"name": "iid", "clients": 3},
    "local": {"lr": 0.05, "batch_size": 4, "epochs": 1, "optimizer": "adamw"},
}


def save_bert(folder: Path) -> Path:
    """A BERT with random weights and a tokenizer of eleven words, one of which is the end of
    another: "goodly" is two tokens."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    with seed_torch(5):
        BertModel(BertConfig(vocab_size=len(WORDS), **SMALL)).save_pretrained(folder)
    return folder


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run_of(task: Mapping[str, Any], file: Path, **other: Any) -> dict[str, Any]:
    """A plan of two rounds on the rows of a file that its task reads itself."""
    data = {"name": "table", "path": str(file), "label": "none"}
    return {**RUN, "task": task, "data": data, **other}


def check_stacked(changes: Mapping[str, Any]) -> None:
    """Clients in a stack end where they end one after another, but for rounding; they must really
    be stacked."""
    plan = read_plan(dict(changes))
    site = open_run_site(plan)
    begin, cohort = start(plan, site.params()), Cohort(site)
    alone, together = (
        list(federate(plan, engine, begin))[-1][0] for engine in (InProcess(site), cohort)
    )
    assert not cohort.alone
    assert not torch.equal(_flat(alone), _flat(begin))
    torch.testing.assert_close(_flat(together), _flat(alone), rtol=0, atol=2e-4)


def check_processes(changes: Mapping[str, Any]) -> None:
    """Other processes give the same bits."""
    plan = read_plan(dict(changes))
    site = open_run_site(plan)
    begin, processes = start(plan, site.params()), Processes(site, Nowhere(), 2)
    try:
        here, there = (
            list(federate(plan, engine, begin))[-1][0] for engine in (InProcess(site), processes)
        )
    finally:
        processes.close()
    assert torch.equal(_flat(here), _flat(there))


def _flat(state: State) -> Tensor:
    return torch.cat([x.flatten() for x in state.params.values()])


class Exported:
    """A run, its exported folder, and the names that the card's first lines make."""

    def __init__(self, changes: Mapping[str, Any], root: Path, merge: bool = False) -> None:
        plan = read_plan(dict(changes))
        self.site: Site = open_run_site(plan)
        run = create(plan, root / "run")
        for _ in execute(run, self.site, open_engine(run, self.site)):
            pass
        saved = load_checkpoint(run.checkpoint, plan)
        assert saved is not None
        self.state = saved.state
        self.folder = root / "exported"
        export_run(run.path, self.folder, merge)
        self.card = (self.folder / "README.md").read_text()
        self.loading, self.usage = re.findall("```python\n(.*?)```", self.card, re.S)[:2]
        self.names: dict[str, Any] = {}
        with known_warnings_ignored():
            exec(loading_lines(self.folder), self.names)

    def forward(self, batch: Batch | None = None) -> tuple[Batch, Any]:
        """A batch, a held-out one if none is given, and what the run's own model makes of it."""
        seen = next(iter(self.site.data.held_out())) if batch is None else batch
        plan = self.site.plan
        model = plan.model(self.site.classes).eval()
        own = {name: self.state.params[name] for name in plan.method.names(model)}

        class Pass(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self) -> Any:
                return plan.task.forward(self.model, seen)

        called = {f"model.{name}": x for name, x in own.items()}
        with torch.inference_mode():
            return seen, functional_call(Pass(), called, ())


def save_sequence_model(folder: Path, kind: str) -> Path:
    """A T5 or a BART with random weights, and a tokenizer of one token a word that ends each text
    with </s>, which is 2."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        PreTrainedTokenizerFast,
        T5Config,
        T5ForConditionalGeneration,
    )

    vocabulary = {word: k for k, word in enumerate(("<pad>", "<unk>", "</s>", *WORDS[5:]))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)]
    )
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(folder)
    ids = {"pad_token_id": 0, "eos_token_id": 2, "vocab_size": len(vocabulary)}
    with seed_torch(6):
        if kind == "t5":
            small = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
            made: Any = T5ForConditionalGeneration(
                T5Config(decoder_start_token_id=0, **small, **ids)
            )
        else:
            sides = [(f"{side}_layers", 2) for side in ("encoder", "decoder")]
            sides += [(f"{side}_attention_heads", 2) for side in ("encoder", "decoder")]
            sides += [(f"{side}_ffn_dim", 16) for side in ("encoder", "decoder")]
            made = BartForConditionalGeneration(
                BartConfig(
                    d_model=16,
                    max_position_embeddings=24,
                    decoder_start_token_id=2,
                    bos_token_id=1,
                    forced_eos_token_id=None,
                    **dict(sides),
                    **ids,
                )
            )
        made.save_pretrained(folder)
    return folder
