"""Give stories260k an eye: a LLaVA (arXiv:2304.08485) of half a million parameters, for a plan.

    python -m tools.pretrain_captions --data TABLES --out studies/weights/emoji-llava

The language part is the Llama in the folder `stories260k` of the data, which knows stories. The
vision part is a CLIP encoder of 64 pixels a side from random weights, and so is what joins them.
All of it is trained on three categories of emoji (faces, people, symbols), each picture by its
name; what a federation learns later (animals, food, travel, activities, objects) is never seen. It
is trained by a plan of one client, and saved in float16. 40 epochs take five minutes of one core.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from fedpeft import InProcess, federate, open_site, read_plan, start
from fedpeft.compute.trainable import write
from fedpeft.core.seeds import seed_torch
from fedpeft.evaluation.measure import measure

OTHERS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects", "Flags")
SIDE, PATCH, WIDTH = 64, 16, 64
QUESTION = "What is this?"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ ' ' + part['text'] }}{% endif %}{% endfor %}{{ '\\n' }}"
    "{% else %}{% for part in m['content'] %}{{ part['text'] + eos_token }}{% endfor %}{% endif %}"
    "{% endfor %}"
)


def begin(language: Path, out: Path) -> None:
    """The folder of the model before it saw any picture, with its processor."""
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    read = AutoTokenizer.from_pretrained(language)
    read.add_special_tokens({"additional_special_tokens": ["<image>"]})
    decoder = AutoModelForCausalLM.from_pretrained(language)
    with seed_torch(0):
        # a loss on names alone never trains the row of the picture's place
        decoder.resize_token_embeddings(len(read), mean_resizing=False)
        vision = CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=PATCH,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=decoder.config,
            image_token_id=len(read) - 1,
            vision_feature_layer=-1,
        )
        config.tie_word_embeddings = True
        model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(decoder.model.state_dict())
    model.save_pretrained(out)
    side = {"height": SIDE, "width": SIDE}
    pixels = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=side)
    LlavaProcessor(
        pixels,
        read,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(out)


def plan_of(model: Path, epochs: int) -> Any:
    where = " and ".join(f"category != {name}" for name in OTHERS)
    return read_plan(
        {
            "task": {
                "name": "image-text-to-text",
                "model": str(model),
                "prompt": QUESTION,
                "max_length": 96,
            },
            "data": {
                "name": "table",
                "path": "emoji",
                "text": "name",
                "label": "none",
                "where": where,
            },
            "partition": {"name": "iid", "clients": 1},
            "method": "full",
            "local": {"batch_size": 32, "lr": 2e-3, "optimizer": "adamw", "epochs": 4},
            "rounds": epochs // 4,
            "cohort": 1,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("studies/weights/emoji-llava"))
    parser.add_argument("--epochs", type=int, default=40)
    args = parser.parse_args()
    os.environ["FEDPEFT_DATA"] = str(args.data.resolve())
    begin(args.data / "stories260k", args.out)
    plan = plan_of(args.out.resolve(), args.epochs)
    site = open_site(plan)
    print(measure(site, site.params()))
    for state, _ in federate(plan, InProcess(site), start(plan, site.params())):
        print(state.round, measure(site, state.params), flush=True)
    model: Any = site.model
    write(model, state.params)
    model.save_pretrained(args.out)
    file = args.out / "model.safetensors"
    half = {name: x.half().contiguous() for name, x in load_file(file).items()}
    save_file(half, file, {"format": "pt"})
    print(
        f"{file}: {file.stat().st_size:,} bytes, {sum(x.numel() for x in half.values()):,} numbers"
    )


if __name__ == "__main__":
    main()
