"""LoRA adapters: directories that `peft` saved, to artifacts of the store. No torch, no pickle, no code of theirs."""

from convert.adapter.base_weights import BaseWeights as BaseWeights
from convert.adapter.conversion import Conversion as Conversion
from convert.adapter.conversion import convert_adapter as convert_adapter
