"""A base model off the grid of any format of few bits: all of its parameters tuned, in float32; needs torch.

SmolLM2 comes in Q4_1. Its numbers lie on that grid, so that int4 in groups of 32 costs it nothing, and tuning alone
moves a number by a fraction of a step. So each number is first moved anywhere within its own step, and what that costs
is tuned back.
"""

import hashlib
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openlora_jax.bench.transformers_model import transformers_model
from openlora_jax.errors import InvalidConfig
from openlora_jax.progress import Progress
from openlora_jax.staging import new_directory

STEPS = 200
WARMUP = 10
WINDOW = 64
"""Tokens of a step."""
LEARNING_RATE = 1e-4
GROUP, CODES = 32, 16
"""Of Q4_1."""
SEED = 0
RECIPE = hashlib.sha256(repr((STEPS, WARMUP, WINDOW, LEARNING_RATE, GROUP, CODES, SEED)).encode()).hexdigest()[:8]
"""What a tuned base depends on, besides the base and the text."""
BYTES = 4
"""Of a number."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def make_tuned_base(base: Path, folder: Path, tokens: Sequence[int], progress: Progress) -> list[float]:
    """Writes a Hugging Face directory; returns the loss of each step.

    Args:
        base: a converted base model.
        folder: the directory to make.
        tokens: of the text to tune on, from its beginning.
        progress: told the loss of the last step.

    Raises:
        InvalidConfig: torch or transformers is not installed.
    """
    try:
        import torch
        import transformers  # noqa: F401  # for `transformers_model`
    except ImportError as error:
        problem = "is tuned with torch and transformers; install openlora-jax[oracle]"
        raise InvalidConfig("--base", problem) from error
    torch.manual_seed(SEED)
    model = transformers_model(base).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                _leave_grid(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    losses: list[float] = []
    for step in range(STEPS):
        progress(f"tuning, loss {losses[-1]:.3f}" if losses else "tuning", step, STEPS)
        window = torch.tensor(tokens[step * WINDOW : (step + 1) * WINDOW])[None]
        rate = min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * step / STEPS)))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * rate
        loss = model(input_ids=window, labels=window).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with new_directory(folder, BYTES * sum(parameter.numel() for parameter in model.parameters())) as stage:
        model.save_pretrained(stage)
        for name in TOKENIZER_FILES:
            if (base / name).exists():
                shutil.copyfile(base / name, stage / name)
    return losses


def _leave_grid(matrix: Any) -> None:
    """Moves every number by up to half a step of its group, either way."""
    groups = matrix.view(matrix.shape[0], -1, GROUP)
    step = (groups.amax(2, keepdim=True) - groups.amin(2, keepdim=True)) / (CODES - 1)
    groups.add_(step * (groups.new_empty(groups.shape).uniform_() - 0.5))
