"""`convert adapter`: from a directory that `peft` saved to what a store installs."""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from convert.adapter.base_copies import compare_copies
from convert.adapter.base_weights import BaseWeights
from convert.adapter.config import AdapterConfig, read_config
from convert.adapter.directory import CONFIG, weights_path
from convert.adapter.initial import opened_initial
from convert.adapter.layers import Layers, find_layers
from convert.adapter.stack import Stacked, stack_layers
from openlora_jax.adapters.artifact import Tensor, Tensors, artifact_digest
from openlora_jax.adapters.few_bits import Rounding, in_few_bits, kept_in_numbers
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.modules import module_shapes
from openlora_jax.config import Dtype
from openlora_jax.errors import BadCheckpoint
from openlora_jax.model.checkpoint import BaseManifest
from openlora_jax.safetensors_file import SafetensorsFile

_GGUF = re.compile(r"([-.]((?P<few_bits>i?q\d\w*)|f16|f32|bf16))?\.gguf$")
"""How a GGUF file's name ends, with what most of its weights are stored in."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """An adapter ready to install.

    Attributes:
        report: what was found and done, as JSON.
    """

    manifest: Manifest
    tensors: dict[str, Tensor]
    report: dict[str, Any]


def convert_adapter(
    source: Path,
    base: BaseManifest,
    dtype: Dtype = "float32",
    strict_base: bool = False,
    weights: BaseWeights | None = None,
    initial: Path | None = None,
    few_bits: Rounding | None = None,
) -> Conversion:
    """Reads and checks a PEFT LoRA checkpoint against a base model.

    Args:
        source: the directory with `adapter_config.json` and `adapter_model.safetensors`.
        base: of the base model that the adapter is for.
        dtype: of the tensors as stored; scales are folded in float32 first.
        strict_base: refuse an adapter whose configuration names another base model, instead of warning.
        weights: of the base, which DoRA and trained token rows depend on, and copies in the checkpoint must equal;
            nothing else reads them.
        initial: the adapter's directory as it was before training, of an initialisation that changed the base (PiSSA,
            OLoRA, CorDA): what counts is the difference.
        few_bits: what A and B are to be stored in; then `dtype` is its own.

    Raises:
        BadCheckpoint: a file is missing or malformed, tensors do not fit the base or each other, or change nothing, or
            are too large for few bits; a copy of a base weight is not of this base.
        UnsupportedFeature: the adapter is sound, but not what can be served.
        InvalidRequest: an adapter that needs `weights`, without them.
    """
    path = weights_path(source)
    config, warnings = read_config(source / CONFIG, relative=initial is not None)
    invocation = _invocation(source / CONFIG, config, base)
    warnings += _base_name_warnings(source / CONFIG, config, base, strict_base)
    with ExitStack() as closing:
        file = closing.enter_context(SafetensorsFile(path))
        layers = find_layers(path, file.tensors, config, base.config)
        before = closing.enter_context(opened_initial(initial, layers, base.config)) if initial else None
        ignored = layers.ignored
        if weights is not None:
            ignored, differing = compare_copies(file, ignored, weights, _is_quantised(base))
            warnings += differing
        exact = "float32" if few_bits else dtype
        stacked = stack_layers(file, layers, module_shapes(base.config), exact, weights, before)
        total = len(file.tensors)
    warnings += [f"the delta of {module} is zero" for module, norm in stacked.norms.items() if norm == 0]
    manifest = Manifest(
        base_digest=base.digest,
        dtype=exact,
        modules=stacked.modules,
        saved=stacked.saved or None,
        invocation_tokens=invocation,
    )
    tensors = stacked.tensors
    if few_bits:
        manifest, tensors, kept = _rounded(path, manifest, tensors, few_bits)
        warnings += kept
    report = {
        "source": str(source),
        "digest": artifact_digest(manifest, tensors),
        "base_digest": base.digest,
        "dtype": manifest.dtype,
        "bytes": manifest.nbytes,
        "tensors": {"total": total, "consumed": total - len(ignored), "ignored": ignored},
        "modules": _module_report(layers, stacked, manifest),
        **({"saved": manifest.saved_bytes} if manifest.saved else {}),
        **({"invocation_tokens": invocation} if invocation else {}),
        "warnings": warnings,
    }
    return Conversion(manifest, tensors, report)


def _rounded(
    path: Path, manifest: Manifest, tensors: Tensors, few_bits: Rounding
) -> tuple[Manifest, dict[str, Tensor], list[str]]:
    """The adapter in few bits, and a warning for each factor that stays in numbers."""
    try:
        manifest, rounded = in_few_bits(manifest, tensors, few_bits)
    except ValueError as error:
        raise BadCheckpoint(path, str(error)) from error
    kept = kept_in_numbers(manifest, few_bits)
    return manifest, rounded, [f"{name} stays in {manifest.dtype}: {reason}" for name, reason in kept.items()]


def _invocation(path: Path, config: AdapterConfig, base: BaseManifest) -> list[int] | None:
    """The tokens that invoke it, if it is not active everywhere."""
    tokens, vocabulary = config.alora_invocation_tokens, base.config.vocab_size
    if outside := [token for token in tokens or () if not 0 <= token < vocabulary]:
        raise BadCheckpoint(
            path, f"alora_invocation_tokens: {outside[0]} is outside the vocabulary, 0..{vocabulary - 1}"
        )
    return tokens


def _base_name_warnings(path: Path, config: AdapterConfig, base: BaseManifest, strict: bool) -> list[str]:
    named = PurePath(config.base_model_name_or_path or "").name[:100]
    if not named or _GGUF.sub("", named.lower()) == _GGUF.sub("", base.source.lower()):
        return []
    problem = f"names the base model {named!r}, this base was made from {base.source!r}"
    if strict:
        raise BadCheckpoint(path, f"{problem}; without --strict-base it is converted with a warning")
    return [problem]


def _is_quantised(base: BaseManifest) -> bool:
    """Whether it is in few bits, or by its name was before it was converted."""
    named = _GGUF.search(base.source.lower())
    return base.config.quantization is not None or (named is not None and named["few_bits"] is not None)


def _module_report(layers: Layers, stacked: Stacked, manifest: Manifest) -> Mapping[str, Any]:
    report, rows = {}, {rows.module for rows in layers.rows}
    for module, size in manifest.modules.items():
        ranks = [rank for rank in size.origin.ranks if rank] if size.origin else []
        report[module] = {
            "layers": len(ranks),
            "ranks": sorted(set(ranks)),
            "pages": size.pages,
            **({"vector": size.vector} if size.vector else {}),
            **({"token_rows": ranks[0]} if module in rows else {}),
            **size.bits_report,
            "delta_norm": float(np.float32(stacked.norms[module])),
        }
    return report
