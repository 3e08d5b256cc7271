"""`convert export`: an adapter of a store as `peft` saves one. B holds the scale, so alpha is the rank."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from convert.adapter import BaseWeights
from convert.adapter.keys import PREFIX
from convert.adapter.vectors import without_gain
from openlora_jax.adapters.artifact import Tensors
from openlora_jax.adapters.factors import F32, Factors, layer_factors, layer_vectors
from openlora_jax.adapters.few_bits import in_numbers
from openlora_jax.adapters.manifest import Manifest, VectorKind
from openlora_jax.adapters.modules import MODULES, module_name
from openlora_jax.errors import InvalidRequest, UnsupportedFeature
from openlora_jax.staging import new_directory

LINEAR = (".lora_A.weight", ".lora_B.weight")
EMBEDDING = (".lora_embedding_A", ".lora_embedding_B")
BIAS = ".lora_B.bias"
MAGNITUDE = ".lora_magnitude_vector"


def export_adapter(
    manifest: Manifest, tensors: Tensors, destination: Path, base: BaseWeights | None = None
) -> dict[str, Any]:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, in float32, whole or not at all.

    Args:
        manifest: of the adapter.
        tensors: as it states them.
        destination: the directory to make.
        base: the weights that DoRA's magnitudes are relative to; nothing else reads them.

    Returns:
        A report as JSON.

    Raises:
        BadCheckpoint: the base is damaged.
        CannotInstall: the destination is in use, or the disk is full or not writable.
        InvalidRequest: a DoRA adapter without `base`, or with another one than it was converted for.
        UnsupportedFeature: an adapter without LoRA, which peft does not load.
    """
    if not manifest.modules:
        saved = " and ".join(manifest.saved or ())
        raise UnsupportedFeature(saved, "exporting saved modules without LoRA", "peft would not load them")
    if _has(manifest, "gain") and (base is None or base.digest != manifest.base_digest):
        its = f"base {manifest.base_digest[:12]}, which the adapter was converted for"
        raise InvalidRequest("--base", f"DoRA's magnitudes are relative to the weights of {its}; give its directory")
    manifest, tensors = in_numbers(manifest, tensors)
    written: dict[str, F32] = {}
    ranks: dict[str, dict[str, int]] = {module: {} for module in MODULES if module in manifest.modules}
    for module in ranks:
        for layer in range(manifest.modules[module].layers):
            if found := layer_factors(manifest, tensors, module, layer):
                name = module_name(module, layer)
                ranks[module][name] = len(found.a)
                ends = _ends(manifest, tensors, module, layer, found, base)
                written |= {f"{PREFIX}{name}{end}": np.ascontiguousarray(values) for end, values in ends.items()}
    for saved in manifest.saved or {}:
        written[f"{PREFIX}{module_name(saved, 0)}.weight"] = tensors[f"{saved}.saved"][0, 0].astype(np.float32)
    config = peft_config(manifest, {module: named for module, named in ranks.items() if named})
    with new_directory(destination, sum(values.nbytes for values in written.values())) as stage:
        (stage / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(written, stage / "adapter_model.safetensors", metadata={"format": "pt"})
    return {"destination": str(destination), "tensors": len(written), "r": config["r"], "modules": list(ranks)}


def _has(manifest: Manifest, vector: VectorKind) -> bool:
    """Whether some module has a vector page for that."""
    return any(size.vector == vector for size in manifest.modules.values())


def _ends(
    manifest: Manifest, tensors: Tensors, module: str, layer: int, found: Factors, base: BaseWeights | None
) -> dict[str, F32]:
    """The tensors of one module of one layer, by how their names end. What peft has of one target it has of all."""
    gain, bias = layer_vectors(manifest, tensors, module, layer)
    vectors, b = {BIAS: bias} if _has(manifest, "bias") else {}, found.b
    if base and _has(manifest, "gain"):
        magnitude, b = without_gain(gain, base.delta_like(module, layer), found.a, found.b)
        vectors = {MAGNITUDE: magnitude}
    factors = zip(EMBEDDING if module == "embed_tokens" else LINEAR, (found.a, b.T), strict=True)
    return dict(factors) | vectors


def peft_config(manifest: Manifest, ranks: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """The configuration of an adapter with scale 1 everywhere.

    Args:
        manifest: of the adapter.
        ranks: of every targeted layer, by module and by its full name.
    """
    r = max(size.rank for size in manifest.modules.values())
    patterns = _patterns(ranks, r)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": r,
        "lora_alpha": r,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "target_modules": _targets(manifest, ranks),
        "modules_to_save": list(manifest.saved) if manifest.saved else None,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
        **({"lora_bias": True} if _has(manifest, "bias") else {}),
        **({"use_dora": True} if _has(manifest, "gain") else {}),
        **({"alora_invocation_tokens": manifest.invocation_tokens} if manifest.invocation_tokens else {}),
    }


def _targets(manifest: Manifest, ranks: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Modules by their last name, and by their full names where not every layer has one."""
    targets: list[str] = []
    for module, named in ranks.items():
        targets += [module] if len(named) == manifest.modules[module].layers else named
    return targets


def _patterns(ranks: Mapping[str, Mapping[str, int]], r: int) -> dict[str, int]:
    """What differs from `r`: single layers first, since the first pattern that matches wins, then whole modules."""
    layers: dict[str, int] = {}
    modules: dict[str, int] = {}
    for module, named in ranks.items():
        common = Counter(named.values()).most_common(1)[0][0]
        layers |= {name: rank for name, rank in named.items() if rank != common}
        modules |= {module: common} if common != r else {}
    return layers | modules
