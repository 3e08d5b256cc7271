"""The library in one object: the base model, the adapters and the engine, put together from their parts."""

import logging
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, TypeVar, cast

import jax.numpy as jnp

from openlora_jax.adapters.cache import AdapterCache
from openlora_jax.adapters.counters import Counters
from openlora_jax.adapters.manifest import Manifest
from openlora_jax.adapters.mixes import Member
from openlora_jax.adapters.modules import module_shapes
from openlora_jax.adapters.pool import AdapterPool
from openlora_jax.adapters.registry import Names, Registration
from openlora_jax.adapters.remote_store import RemoteStore
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.config import BackendName, EngineConfig
from openlora_jax.engine.admission import Admission
from openlora_jax.engine.engine import Engine
from openlora_jax.engine.members import resolve_names
from openlora_jax.engine.request import Ensemble, GenerateRequest, Scored, ScoreRequest
from openlora_jax.engine.runner import DeviceRunner
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.engine.scheduling_params import DEFAULT_SCHEDULING, SchedulingParams
from openlora_jax.engine.stream import EventStream
from openlora_jax.errors import InvalidConfig, InvalidRequest
from openlora_jax.inputs import Adapter, Prompt, Target, completion_ids, mix_of, prompt_ids
from openlora_jax.memory import MemoryPlan, device_memory, memory_budget, observed_activations
from openlora_jax.model.checkpoint import BaseManifest
from openlora_jax.model.config import ModelConfig
from openlora_jax.model.parameters import Parameters
from openlora_jax.model.stored import code_bytes
from openlora_jax.observed import Observed, Planned, observed_path
from openlora_jax.outputs import Generation, collect
from openlora_jax.planning import asked_before, demand_of, observed_before, plan_start
from openlora_jax.progress import Progress
from openlora_jax.tokenizer import Tokenizer
from pallas_kernels.registry import ModelSizes, Ops, resolve

Item = TypeVar("Item")
AnyTarget = TypeVar("AnyTarget", Adapter, Target)

log = logging.getLogger(__name__)


class LLM:
    """One base model and its adapters, ready to answer. Close it, or use it as a context manager.

        with LLM("smollm2.base", "adapters", max_rows=8) as llm:
            for answer in llm.generate(["The sea is", "Hi"], SamplingParams(max_tokens=32), ["pirate", None]):
                print(answer.outputs[0].text)

    Attributes:
        config: the settings in force, with the number of KV blocks that was planned.
        plan: what is held on the device.
        model: the base model's architecture.
        base_digest: of the base checkpoint.
        backend: which implementation of the ops runs.
        tokenizer, store, runner, adapters, engine: the parts.
    """

    def __init__(
        self,
        base: str | Path,
        store: str | Path | None = None,
        backend: BackendName = "auto",
        *,
        config: EngineConfig | None = None,
        progress: Progress = lambda step, done, total: None,
        remember: bool = False,
        **settings: Any,
    ) -> None:
        """Loads a base model and compiles its programs, which takes seconds to a minute.

        Args:
            base: a directory that `openlora convert base` wrote.
            store: a directory that `openlora convert adapter` wrote; without one only the base model answers.
            backend: see EngineConfig.
            config: all settings at once, in the place of `backend` and the following.
            progress: told about the start's steps.
            remember: keep in the store what this engine sees of its load, for the memory plan of the next start.
            settings: any other setting of EngineConfig.

        Raises:
            InvalidConfig: a setting that cannot work with this model on this machine.
            BadCheckpoint: the base directory is missing or damaged.
        """
        if config and settings:
            raise InvalidConfig(next(iter(settings)), "is given beside a whole config; set it there")
        base = Path(base)
        manifest = BaseManifest.read(base)
        self.model = manifest.config
        self.base_digest = manifest.digest
        config = config or EngineConfig.of({"backend": backend, **settings})
        self.tokenizer = Tokenizer.load(base)
        counters = Counters()
        adapters = None if store is None else AdapterStore(store)
        self.store = _with_remote(adapters, config, counters)
        try:
            self._start(base, adapters, config, counters, remember, progress)
        except BaseException:
            self._close_store()
            raise

    def _start(
        self,
        base: Path,
        adapters: AdapterStore | None,
        config: EngineConfig,
        counters: Counters,
        remember: bool,
        progress: Progress,
    ) -> None:
        """Plans the device's memory, fills it and begins to answer."""
        ops = resolve_ops(config.backend, self.model)
        self.backend = ops.backend
        self._observed_path = observed_path(adapters.path, self.base_digest) if adapters and remember else None
        self._observed = observed_before(self._observed_path, self.base_digest)
        demand = demand_of(adapters, self.base_digest, self._observed)
        self.config, self.plan = plan_start(config, self.model, demand, self._observed, memory_budget(config))
        self.plan.check(device_memory())
        log.info("device memory: %s", self.plan)
        self.runner = _runner(base, self.config, self.model, ops, self.plan)
        self.runner.compile(progress)
        self.adapters = AdapterCache(
            self.store,
            self.runner.pool,
            self.plan.pages,
            base_digest=self.base_digest,
            host_bytes=self.config.host_cache_bytes,
            threads=self.config.loader_threads,
            load_timeout=self.config.load_timeout,
            min_residency=self.config.min_residency,
            prefetch=self.config.prefetch,
            asked_before=asked_before(adapters, self._observed),
            counters=counters,
        )
        self.engine = Engine(
            self.runner,
            self.adapters,
            self.store,
            self.tokenizer,
            self.config,
            vocab_size=self.model.vocab_size,
            eos_token_ids=self.model.eos_token_ids,
        )
        self.engine.start()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends what is running and stops all threads."""
        self.engine.stop(0.0)
        self.adapters.close()
        self._close_store()
        if self._observed_path is not None:
            try:
                self._seen().after(self._observed).write(self._observed_path)
            except OSError as error:
                log.warning("the next start cannot plan by this one: %s", error)

    def _close_store(self) -> None:
        if isinstance(self.store, RemoteStore):
            self.store.close()

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        adapters: Target | Sequence[Target] = None,
        *,
        scheduling: SchedulingParams = DEFAULT_SCHEDULING,
    ) -> list[Generation]:
        """Continues prompts, all in one batch.

        Args:
            prompts: texts, conversations (lists of `{"role", "content"}`) or lists of token ids.
            params: for all of them, or one each.
            adapters: for all of them, or one each: a name, `{name: weight}` for a mix, None for the base model, or an
                `ensemble` of these.
            scheduling: for all of them.

        Raises:
            InvalidRequest, UnknownAdapter: before anything runs.
            AdapterUnavailable: an adapter cannot be loaded.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        requests = [
            GenerateRequest(
                prompt_ids=prompt_ids(prompt, self.tokenizer),
                params=each,
                mix=() if isinstance(target, Ensemble) else mix_of(target),
                ensemble=target if isinstance(target, Ensemble) else None,
                scheduling=scheduling,
            )
            for prompt, each, target in zip(
                prompts, _params(params, len(prompts)), _targets(adapters, len(prompts)), strict=True
            )
        ]
        return cast(list[Generation], self._run_all(requests))

    def score(
        self,
        prompts: str | Sequence[Prompt],
        completions: str | Sequence[str | Sequence[int]],
        adapters: Adapter | Sequence[Adapter] = None,
        *,
        scheduling: SchedulingParams = DEFAULT_SCHEDULING,
    ) -> list[Scored]:
        """The log-probability of each token of each completion after its prompt, all in one batch.

        Args:
            prompts: as for `generate`.
            completions: one a prompt: a text, tokenised alone, or token ids.
            adapters: as for `generate`, but no ensemble.
            scheduling: as for `generate`.

        Raises:
            InvalidRequest, UnknownAdapter: before anything runs.
            AdapterUnavailable: an adapter cannot be loaded.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        completions = [completions] if isinstance(completions, str) else completions
        requests = [
            ScoreRequest(
                prompt_ids=prompt_ids(prompt, self.tokenizer),
                completion_ids=completion_ids(completion, self.tokenizer),
                mix=mix_of(adapter),
                scheduling=scheduling,
            )
            for prompt, completion, adapter in zip(
                prompts,
                _each("completions", completions, len(prompts)),
                _targets(adapters, len(prompts)),
                strict=True,
            )
        ]
        return cast(list[Scored], self._run_all(requests))

    def check(self, request: GenerateRequest | ScoreRequest) -> None:
        """Whether a request can be served at all. Raises InvalidRequest or UnknownAdapter."""
        admission = Admission(self.config, self.model.vocab_size)
        if isinstance(request, GenerateRequest):
            admission.generate(request)
        else:
            admission.score(request)
        resolve_names(request, self.store)

    def run(self, requests: Sequence[GenerateRequest | ScoreRequest]) -> Generator[Generation | Scored, None, None]:
        """The results in the order of the requests, as they come; twice a batch are in the engine at any time.

        Closing the iterator cancels what is left. Raises, in its turn, what ended a request.
        """
        streams = set[EventStream]()
        closing = Event()

        def answer(request: GenerateRequest | ScoreRequest) -> Generation | Scored:
            stream = self.engine.submit(request)
            streams.add(stream)
            if closing.is_set():
                stream.cancel()
            result = collect(stream)
            streams.discard(stream)
            return result

        threads = ThreadPoolExecutor(min(2 * self.config.max_rows, self.config.max_queue), "openlora-reader")
        try:
            yield from threads.map(answer, requests)
        finally:
            closing.set()
            for stream in list(streams):
                stream.cancel()
            threads.shutdown(cancel_futures=True)

    def _run_all(self, requests: Sequence[GenerateRequest | ScoreRequest]) -> list[Generation | Scored]:
        for request in requests:
            self.check(request)
        return list(self.run(requests))

    def _seen(self) -> Observed:
        """What this engine has seen of its load."""
        stats, counts = self.engine.stats, self.adapters.counters.snapshot()
        held = {
            module: sum(by_state.values()) - by_state["free"]
            for module, by_state in self.adapters.memory().pages.items()
        }
        return Observed(
            base_digest=self.base_digest,
            planned=Planned(basis=self.plan.basis, pages=self.plan.pages, kv_blocks=self.plan.kv_blocks),
            uses={digest: use.requests for digest, use in counts.uses.items()},
            kv_tokens=stats.peak_kv_blocks * self.config.kv_block,
            preemptions=stats.preemptions,
            pool_bytes=sum(
                count * self.plan.pools[module] // self.plan.pages[module] for module, count in held.items()
            ),
            evictions=counts.evictions["device", "room"],
            activations=observed_activations(self.plan),
        )


class NoStore:
    """The store of an engine that has none: every name is a mistake."""

    def resolve(self, name: str) -> str:
        raise InvalidConfig("store", f"none was given, so there is no adapter {name!r}")

    def members(self, name: str) -> tuple[Member, ...]:
        return (Member(name, self.resolve(name), 1.0),)

    def registrations(self) -> Mapping[str, Registration]:
        return {}

    def names(self) -> Names:
        return Names()

    def is_remote(self, digest: str) -> bool:
        return False

    def manifest(self, digest: str) -> Manifest:
        raise KeyError(digest)

    def read(self, digest: str) -> tuple[Manifest, dict[str, Any]]:
        raise KeyError(digest)


def _with_remote(
    store: AdapterStore | None, config: EngineConfig, counters: Counters
) -> "AdapterStore | RemoteStore | NoStore":
    """What the engine asks for adapters."""
    if config.remote is None:
        return store or NoStore()
    if store is None:
        raise InvalidConfig("remote", "needs a local store too, into which adapters are fetched; an empty one will do")
    return RemoteStore(store, config.remote, config.disk_cache_bytes, counters)


def resolve_ops(backend: BackendName, model: ModelConfig | None = None) -> Ops:
    """The ops of a backend, for a model where there is one; raises InvalidConfig, which says why they cannot serve."""
    try:
        return resolve(backend, None if model is None else _sizes(model))
    except NotImplementedError as error:
        raise InvalidConfig("backend", str(error)) from error


def _sizes(model: ModelConfig) -> ModelSizes:
    shapes = module_shapes(model).values()
    return ModelSizes(
        head=model.head_dim,
        modules=tuple(width for each in shapes for width in (each.d_in, each.d_out)),
        codes=code_bytes(model),
    )


def _runner(base: Path, config: EngineConfig, model: ModelConfig, ops: Ops, plan: MemoryPlan) -> DeviceRunner:
    """The weights, and the empty caches and pool, on the device."""
    pool = AdapterPool.create(model, plan.pages, jnp.dtype(config.dtype))
    parameters = Parameters.read(base, model, config.dtype, ops.quantized_layers)
    return DeviceRunner(config, model, ops, parameters, pool)


def _each(field: str, values: Sequence[Item], count: int) -> Sequence[Item]:
    if len(values) != count:
        raise InvalidRequest(field, f"has {len(values)} entries for {count} prompts; give one each, or one for all")
    return values


def _targets(adapters: AnyTarget | Sequence[AnyTarget], count: int) -> Sequence[AnyTarget]:
    if adapters is None or isinstance(adapters, str | Mapping | Ensemble):
        return [adapters] * count
    return _each("adapters", adapters, count)


def _params(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> Sequence[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    return _each("params", params, count)
