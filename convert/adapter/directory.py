"""The directory that `peft` saves an adapter in."""

from pathlib import Path

from openlora_jax.errors import BadCheckpoint, UnsupportedFeature

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = ("adapter_model.bin", "adapter_model.pt")


def weights_path(source: Path) -> Path:
    """The file with the tensors of a checkpoint.

    Raises:
        BadCheckpoint: `source` is no directory.
        UnsupportedFeature: it has a pickled file alone.
    """
    if not source.is_dir():
        raise BadCheckpoint(source, f"is not a directory; name the one with {CONFIG} and {WEIGHTS}")
    path = source / WEIGHTS
    pickled = next((name for name in PICKLED if (source / name).exists()), None)
    if pickled and not path.exists():
        raise UnsupportedFeature(
            source / pickled,
            "a pickled checkpoint, which can run code,",
            "save it as safetensors where you trust it: "
            'python -c "import torch, safetensors.torch as s; '
            f"s.save_file({{k: v.contiguous() for k, v in torch.load('{pickled}', weights_only=True).items()}}, "
            f"'{WEIGHTS}')\"",
        )
    return path
