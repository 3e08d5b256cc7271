"""`python -m tests.parity.make_goldens.smollm2 HF_DIR`: SmolLM2-135M-Instruct by transformers.

HF_DIR holds the dequantised weights of the GGUF file that `make base` converts, as
`AutoModelForCausalLM.from_pretrained(..., gguf_file=...)` reads and saves them.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from tests.parity.goldens import GOLDENS, MOVED, Row, Scores, max_difference
from tests.parity.make_goldens.oracle import load_adapter, load_base, load_mix, score
from tests.parity.smollm2 import ADAPTED_ROWS, MIX, write_adapters

CLOSE = 5e-3
GREEDY_TOKENS = 16

_LONG = "\n".join(
    f"{number}. On day {number} the ship sailed {number * 17 % 90} miles {direction} and the cook served {dish}."
    for number, (direction, dish) in enumerate(
        [
            (d, f)
            for d in ("north", "south-east", "west", "north-east")
            for f in ("soup", "beans", "rice", "fish", "bread")
        ],
        start=1,
    )
)


def _chat(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]}


def _system(system: str, user: str) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": system}, {"role": "user", "content": user}]}


PROMPTS: tuple[tuple[dict[str, Any], str | None], ...] = (
    (_chat("What is the capital of France?"), None),
    ({"prompt": "The quick brown fox"}, " jumps over the lazy dog. It was 2024-05-17, 13:37."),
    (_system("You answer with one word.", "Is water wet?"), "Yes, it is."),
    ({"prompt": "def fibonacci(n):\n    "}, None),
    (_chat("Hi!", "Hello! How can I help?", "Write a haiku about the sea."), None),
    ({"prompt": "Größe, naïve café, Ωμέγα, Привет мир, 你好世界, "}, "こんにちは, 한국어, 🙂👩‍👩‍👧 and 🚀."),
    (_chat("Übersetze: „Guten Morgen, schöne Welt!“ 🌞"), "Good morning, beautiful world! 🌞"),
    ({"prompt": "1234567890 + 9876543210 ="}, " 11111111100\n\n  x  =\t3.14159"),
    ({"prompt": "  leading spaces,   runs of   spaces\n\n\tand tabs"}, "\n\n\n    end  "),
    ({"prompt": "A"}, None),
    ({"prompt": "It's we're I'll they've DON'T <|im_end|> done"}, "<|im_start|>user\nnext"),
    ({"prompt": f"The log of the ship:\n{_LONG}\n"}, None),
    (
        _chat(f"Summarise this log in one sentence.\n{_LONG}"),
        "The ship sailed for twenty-four days and the cook served six dishes.",
    ),
)


def main() -> None:
    torch.set_num_threads(2)
    base = Path(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load_base(base)
    prompts = [_prompt(model, tokenizer, source, completion) for source, completion in PROMPTS]
    rows = [Row(tuple(prompt["prompt_ids"]), tuple(prompt["completion_ids"])) for prompt in prompts][:ADAPTED_ROWS]
    plain = [prompt["logprobs"] for prompt in prompts][:ADAPTED_ROWS]
    with tempfile.TemporaryDirectory() as directory:
        paths = write_adapters(Path(directory))
        adapters = {name: score(load_adapter(base, path), rows) for name, path in paths.items()}
        mix = score(load_mix(base, {paths[name]: weight for name, weight in MIX.items()}), rows)
    for name, scores in {**adapters, "mix": mix}.items():
        moved = max_difference(scores, plain)
        print(f"{name}: moves log-probabilities by up to {moved:.3g}", file=sys.stderr)  # noqa: T201
        if moved < MOVED:
            raise SystemExit(f"{name} moves too little")
    _save(prompts, {name: _rounded(scores) for name, scores in adapters.items()}, _rounded(mix))


def _prompt(model: PreTrainedModel, tokenizer: Any, source: dict[str, Any], completion: str | None) -> dict[str, Any]:
    if "messages" in source:
        text = tokenizer.apply_chat_template(source["messages"], add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer.encode(text, add_special_tokens=False)
    else:
        prompt_ids = tokenizer.encode(source["prompt"])
    if completion is None:
        completion_ids = _greedy(model, prompt_ids)
        completion = tokenizer.decode(completion_ids)
    else:
        completion_ids = tokenizer.encode(completion, add_special_tokens=False)
    row = Row(tuple(prompt_ids), tuple(completion_ids))
    return {
        "source": source,
        "completion": completion,
        "prompt_ids": prompt_ids,
        "completion_ids": completion_ids,
        "logprobs": _rounded(score(model, [row]))[0],
        "greedy": _greedy_flags(model, row),
    }


def _greedy(model: PreTrainedModel, prompt_ids: list[int]) -> list[int]:
    ids = torch.tensor([prompt_ids])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=GREEDY_TOKENS, pad_token_id=0
    )
    generated: list[int] = output[0, len(prompt_ids) :].tolist()
    return generated


def _greedy_flags(model: PreTrainedModel, row: Row) -> list[bool | None]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row.prompt_ids + row.completion_ids])).logits[0]
    best = logits[len(row.prompt_ids) - 1 : -1].topk(2)
    close = (best.values[:, 0] - best.values[:, 1] < CLOSE).tolist()
    equal = (best.indices[:, 0] == torch.tensor(row.completion_ids)).tolist()
    return [None if near else same for near, same in zip(close, equal, strict=True)]


def _rounded(scores: Scores) -> Scores:
    return [[round(value, 6) for value in row] for row in scores]


def _save(prompts: list[dict[str, Any]], adapters: dict[str, Scores], mix: Scores) -> None:
    lines = ",\n".join(json.dumps(prompt, ensure_ascii=False) for prompt in prompts)
    rest = ",\n".join(f"{json.dumps(name)}: {json.dumps(scores)}" for name, scores in adapters.items())
    text = f'{{\n"prompts": [\n{lines}\n],\n"adapters": {{\n{rest}\n}},\n"mix": {json.dumps(mix)}\n}}\n'
    (GOLDENS / "smollm2.json").write_text(text)


if __name__ == "__main__":
    main()
