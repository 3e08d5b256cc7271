"""Fine-tunes one adapter with `peft`: completion-only loss, length-sorted batches, float32 on the CPU."""

import logging
import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from openlora_jax.demo.training.behaviour import Behaviour, Example

BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
BATCH = 8
WARMUP = 10
IGNORED = -100

Encoded = tuple[list[int], list[int]]  # token ids, labels

log = logging.getLogger(__name__)


def load_base(path: Path) -> tuple[torch.nn.Module, AutoTokenizer]:
    """The base in float32 and its tokenizer, from a Hugging Face directory."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)


def encode(tokenizer: AutoTokenizer, example: Example) -> Encoded:
    """Token ids and labels: the loss ignores the chat template's prompt and counts the answer and its <|im_end|>."""
    messages = [{"role": "user", "content": example.prompt}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(prompt)["input_ids"]
    answer_ids = [*tokenizer(example.answer)["input_ids"], tokenizer.eos_token_id]
    return prompt_ids + answer_ids, [IGNORED] * len(prompt_ids) + answer_ids


def make_batches(encoded: Sequence[Encoded], rng: random.Random) -> list[list[Encoded]]:
    """One epoch: neighbours in length share a batch (little padding), the batches come in random order."""
    by_length = sorted(encoded, key=lambda pair: (len(pair[0]), rng.random()))
    batches = [by_length[i : i + BATCH] for i in range(0, len(by_length), BATCH)]
    rng.shuffle(batches)
    return batches


def completion_loss(model: PeftModel, batch: Sequence[Encoded], pad_id: int) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens; the head runs on their positions alone."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([ids + [pad_id] * (width - len(ids)) for ids, _ in batch])
    labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in batch])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch])
    causal_lm = model.get_base_model()
    hidden = causal_lm.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    learned = wanted != IGNORED
    return torch.nn.functional.cross_entropy(causal_lm.lm_head(hidden[learned]), wanted[learned])


def train(base: Path, behaviour: Behaviour, seed: int) -> PeftModel:
    """One pass over the behaviour's training examples; the learning rate rises linearly, then falls as a cosine."""
    torch.manual_seed(seed)
    rng = random.Random(f"{behaviour.name} {seed}")
    base_model, tokenizer = load_base(base)
    model = get_peft_model(base_model, LoraConfig(task_type="CAUSAL_LM", **behaviour.lora))
    batches = make_batches([encode(tokenizer, example) for example in behaviour.make_training(rng)], rng)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.0)
    for step, batch in enumerate(batches):
        rate = min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / len(batches))))
        optimizer.param_groups[0]["lr"] = behaviour.learning_rate * rate
        loss = completion_loss(model, batch, tokenizer.pad_token_id)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0 or step + 1 == len(batches):
            log.info("%s: step %d of %d, loss %.4f", behaviour.name, step + 1, len(batches), loss.item())
    return model


def save(model: PeftModel, directory: Path) -> int:
    """Writes the adapter in PEFT's format with bfloat16 tensors; returns the size of the tensor file in bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    config = model.peft_config["default"]
    config.base_model_name_or_path = BASE_NAME
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # a set: its order differs from run to run
    config.save_pretrained(directory)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {name: t.to(torch.bfloat16).contiguous() for name, t in state.items()}
    path = directory / "adapter_model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    return path.stat().st_size
