"""Choosing tokens on the device, inside the step: pure functions, state in, state out."""

from openlora_jax.engine.sampling.batch import SamplingBatch as SamplingBatch
from openlora_jax.engine.sampling.ensembles import EnsembleBatch as EnsembleBatch
from openlora_jax.engine.sampling.sampler import Sampled as Sampled
from openlora_jax.engine.sampling.sampler import sample as sample
from openlora_jax.engine.sampling.state import SamplerState as SamplerState
from openlora_jax.engine.sampling.state import prepare_slot as prepare_slot
from openlora_jax.engine.sampling.state import slot_rows as slot_rows
