"""`adapter_config.json`: what of PEFT's configuration decides the maths, and what is refused because it changes it.

Fields as of peft 0.3 to 0.21. Which modules an adapter has is never read from here: its tensors say that.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openlora_jax.adapters.manifest import MAX_INVOCATION, MAX_RANK
from openlora_jax.adapters.modules import SAVEABLE
from openlora_jax.errors import BadCheckpoint, UnsupportedFeature
from openlora_jax.untrusted import read_json_object

MAX_ALPHA = 1e6
MAX_PATTERNS = 4096
MAX_PATTERN_LENGTH = 256

Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]
Alpha = Annotated[float, Field(ge=-MAX_ALPHA, le=MAX_ALPHA, allow_inf_nan=False)]
Pattern = Annotated[str, Field(min_length=1, max_length=MAX_PATTERN_LENGTH)]

TokenIds = Annotated[list[int], Field(max_length=MAX_PATTERNS)]

PLAIN_INITIALISATIONS = {"true", "false", "gaussian", "eva", "orthogonal", "mica", "lora_ga"}
"""Values of `init_lora_weights` after which the saved tensors are a plain LoRA of the untouched base."""

RELATIVE_INITIALISATIONS = ("pissa", "olora", "corda")
"""How values of `init_lora_weights` begin after which the saved tensors count beside what they were before training."""

_CHANGED_BASE = (
    "it is relative to a base that the initialisation changed; give the adapter as it was before training (--initial), "
    "or save it again with save_pretrained(..., path_initial_model_for_weight_conversion=INITIAL)"
)
_QUANTISED_BASE = "it is relative to a base that was quantised for it; train it on a base as it is"
_PLAIN = "train a plain LoRA, or merge this adapter into its base and convert the result with `openlora convert base`"

REFUSED: Mapping[str, tuple[str, str]] = {
    "target_parameters": ("LoRA on bare parameters (target_parameters)", "target linear modules instead"),
    "use_qalora": ("QALoRA", _PLAIN),
    "use_bdlora": ("block-diagonal LoRA", _PLAIN),
    "kasa_config": ("KaSA", _PLAIN),
    "arrow_config": ("Arrow routing", "convert the routed adapters one by one"),
    "layer_replication": ("layer replication", "convert the model with the replicated layers as a base"),
    "megatron_config": ("Megatron's parallel linear layers", "save it with plain linear layers"),
    "loftq_config": ("LoftQ", _QUANTISED_BASE),
}
"""Fields that must be empty, what they turn on, and what to do instead."""

IGNORED = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "runtime_config"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "bias"),
    *("lora_dropout", "eva_config", "corda_config", "lora_ga_config", "velora_config", "monteclora_config"),
    *("megatron_core", "qalora_group_size"),
}
"""Fields without a part in the maths of a saved adapter, or looked at by name below."""


class AdapterConfig(BaseModel):
    """The fields that decide what the tensors mean. Names and meanings are PEFT's."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    r: Rank
    lora_alpha: Alpha
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    alora_invocation_tokens: Annotated[list[int], Field(min_length=1, max_length=MAX_INVOCATION)] | None = None
    rank_pattern: Annotated[dict[Pattern, Rank], Field(max_length=MAX_PATTERNS)] = {}
    alpha_pattern: Annotated[dict[Pattern, Alpha], Field(max_length=MAX_PATTERNS)] = {}
    modules_to_save: Annotated[list[str], Field(max_length=MAX_PATTERNS)] | None = None
    trainable_token_indices: TokenIds | dict[str, TokenIds] | None = None
    init_lora_weights: bool | str = True
    ensure_weight_tying: bool = False
    fan_in_fan_out: bool = False
    base_model_name_or_path: str | None = None


def read_config(path: Path, relative: bool = False) -> tuple[AdapterConfig, list[str]]:
    """The configuration, and warnings about what is odd but changes nothing.

    Args:
        path: of the file.
        relative: the adapter may count beside what it was before training, which is at hand.

    Raises:
        BadCheckpoint: no sound JSON; a value of the wrong type or out of bounds, all of them at once.
        UnsupportedFeature: a field that changes the maths, or one that is not known and set.
    """
    fields = {key: value for key, value in read_json_object(path).items() if value is not None}
    _refuse_features(path, fields)
    try:
        config = AdapterConfig.model_validate(fields)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))[:100]}: {each['msg']}" for each in error.errors()]
        raise BadCheckpoint(path, *problems) from error
    _refuse_together(path, config)
    _refuse_modules(path, config.modules_to_save or ())
    _refuse_initialisation(path, str(config.init_lora_weights).lower(), relative)
    return config, _warnings(config, fields)


def _refuse_features(path: Path, fields: Mapping[str, Any]) -> None:
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise UnsupportedFeature(path, f"peft_type {str(kind)[:40]}", "only LORA adapters can be served")
    for field, (feature, remedy) in REFUSED.items():
        if fields.get(field):
            raise UnsupportedFeature(path, f"{feature} ({field})", remedy)
    if fields.get("bias", "none") != "none":
        raise UnsupportedFeature(path, f"bias = {str(fields['bias'])[:40]}", "train it with bias = none")
    known = AdapterConfig.model_fields.keys() | REFUSED.keys() | IGNORED
    for field, value in fields.items():
        if field not in known and value:
            raise UnsupportedFeature(
                path, f"the configuration field {field[:60]!r}", "it may change the maths; remove it if it does not"
            )


def _refuse_together(path: Path, config: AdapterConfig) -> None:
    """What peft refuses too, and rows and modules that act before an adapter does."""
    for field, other in (("lora_bias", config.lora_bias), ("alora_invocation_tokens", config.alora_invocation_tokens)):
        if config.use_dora and other:
            raise UnsupportedFeature(path, f"DoRA (use_dora) with {field}", "train it with one of the two")
    if config.alora_invocation_tokens and config.trainable_token_indices:
        raise UnsupportedFeature(path, "aLoRA with trained token rows", "train it with one of the two")
    if config.alora_invocation_tokens and config.modules_to_save:
        raise UnsupportedFeature(path, "aLoRA with modules_to_save", "train it with one of the two")


def _refuse_modules(path: Path, names: Sequence[str]) -> None:
    """Saved modules but those that an adapter may have whole."""
    for name in names:
        if name.rpartition(".")[2] not in SAVEABLE:
            remedy = f"only {' and '.join(SAVEABLE)} can be served so; train LoRA on that module instead"
            raise UnsupportedFeature(path, f"a full copy of {name[:60]!r} (modules_to_save)", remedy)


def _refuse_initialisation(path: Path, name: str, relative: bool) -> None:
    if name not in PLAIN_INITIALISATIONS and not (relative and name.startswith(RELATIVE_INITIALISATIONS)):
        raise UnsupportedFeature(path, f"init_lora_weights = {name[:40]}", _CHANGED_BASE)


def _warnings(config: AdapterConfig, fields: Mapping[str, Any]) -> list[str]:
    warnings = []
    if fields.get("task_type", "CAUSAL_LM") != "CAUSAL_LM":
        warnings.append(f"task_type is {str(fields['task_type'])[:40]}: served as a causal language model all the same")
    if config.fan_in_fan_out:
        warnings.append("fan_in_fan_out is ignored: it concerns Conv1D layers, and this base has none")
    if str(config.init_lora_weights).lower() == "lora_ga":
        warnings.append(
            "init_lora_weights is lora_ga, which trains on a changed base: like peft, taken as a plain LoRA"
        )
    return warnings
