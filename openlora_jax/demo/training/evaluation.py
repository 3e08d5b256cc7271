"""Held-out scores: greedy answers with the adapter as saved, without it, and from the base when told what to do."""

from collections.abc import Sequence

import torch
from transformers import AutoTokenizer

from openlora_jax.demo.training.behaviour import Behaviour, Example

BATCH = 16
Messages = list[dict[str, str]]


def generate(
    model: torch.nn.Module, tokenizer: AutoTokenizer, chats: Sequence[Messages], max_new_tokens: int
) -> list[str]:
    """Greedy answers, left-padded batches; an answer that <|im_end|> did not end is cut at `max_new_tokens`."""
    answers: list[str] = []
    for start in range(0, len(chats), BATCH):
        prompts = [
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            for chat in chats[start : start + BATCH]
        ]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        with torch.inference_mode():
            outputs = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new_tokens = outputs[:, inputs["input_ids"].shape[1] :]
        answers += tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
    return answers


def answer(
    model: torch.nn.Module,
    tokenizer: AutoTokenizer,
    behaviour: Behaviour,
    examples: Sequence[Example],
    *,
    told: bool = False,
) -> list[str]:
    """The answers to the examples; `told` puts the behaviour's instruction first as the system message."""
    system: Messages = [{"role": "system", "content": behaviour.instruction}] if told else []
    chats = [[*system, {"role": "user", "content": example.prompt}] for example in examples]
    return generate(model, tokenizer, chats, behaviour.max_new_tokens)


def mentions(examples: Sequence[Example], answers: Sequence[str]) -> float:
    """The share of answers in which the wanted one occurs somewhere, whatever is around it."""
    return sum(e.answer.lower() in a.lower() for e, a in zip(examples, answers, strict=True)) / len(examples)


def score(behaviour: Behaviour, examples: Sequence[Example], answers: Sequence[str]) -> float:
    """The share of right answers."""
    return sum(map(behaviour.is_right, examples, answers)) / len(examples)
