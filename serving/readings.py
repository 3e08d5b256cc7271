"""What the library counts, as Prometheus metrics: read at a scrape, kept nowhere."""

from collections import Counter
from collections.abc import Iterator
from typing import get_args

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from openlora_jax import __version__
from openlora_jax.adapters.counters import BOUNDS, Counts, PageState, Seconds, Source, Tier
from serving.engine import LLM


def serving(serves: bool) -> Metric:
    """Whether programs are compiled and calls let in."""
    return GaugeMetricFamily("openlora_serving", "1 from when calls are served.", value=serves)


def library(llm: LLM) -> Iterator[Metric]:
    """Everything about one library."""
    facts = {"version": __version__, "base_digest": llm.base_digest, "backend": llm.backend}
    yield InfoMetricFamily("openlora", "What is served.", value=facts)
    yield from _engine(llm)
    yield from _adapters(llm.adapters.counters.snapshot())
    yield from _memory(llm)


def _engine(llm: LLM) -> Iterator[Metric]:
    stats = llm.engine.stats
    yield GaugeMetricFamily("openlora_running_sequences", "Sequences in the batch.", value=stats.running)
    yield GaugeMetricFamily("openlora_waiting_requests", "Requests that have not started.", value=stats.waiting)
    yield CounterMetricFamily("openlora_generated_tokens", "Tokens delivered.", value=stats.generated_tokens)
    yield CounterMetricFamily(
        "openlora_cached_prompt_tokens",
        "Tokens of prompts whose KV was in memory when their requests started.",
        value=stats.cached_tokens,
    )
    yield CounterMetricFamily("openlora_steps", "Iterations of the engine that dispatched work.", value=stats.steps)
    yield CounterMetricFamily(
        "openlora_preemptions", "Sequences that gave up their KV blocks to be recomputed.", value=stats.preemptions
    )
    blocks = GaugeMetricFamily("openlora_kv_blocks", "KV blocks by state.", labels=["state"])
    blocks.add_metric(["free"], stats.free_kv_blocks)
    blocks.add_metric(["used"], stats.kv_blocks - stats.free_kv_blocks)
    yield blocks


def _adapters(counts: Counts) -> Iterator[Metric]:
    lookups = CounterMetricFamily(
        "openlora_adapter_lookups", "Requests' look-ups in a tier; what the device lacks, host.", labels=["tier"]
    )
    hits = CounterMetricFamily("openlora_adapter_hits", "Look-ups that found the adapter.", labels=["tier"])
    prefetches = CounterMetricFamily(
        "openlora_adapter_prefetches", "Adapters brought into a tier before they were asked for.", labels=["tier"]
    )
    found = CounterMetricFamily(
        "openlora_adapter_prefetch_hits", "Of those, the ones that a request found there.", labels=["tier"]
    )
    for tier in ("device", "host"):
        prefetches.add_metric([tier], counts.prefetches[tier])
        found.add_metric([tier], counts.prefetch_hits[tier])
    for tier in get_args(Tier):
        lookups.add_metric([tier], counts.lookups[tier])
        hits.add_metric([tier], counts.hits[tier])
    loads = CounterMetricFamily(
        "openlora_adapter_loads", "Loads from a tier to the next one up.", labels=["source", "result"]
    )
    for (source, result), count in counts.loads.items():
        loads.add_metric([source, result], count)
    loaded = CounterMetricFamily("openlora_adapter_loaded_bytes", "Bytes of loads.", labels=["source"])
    for source in get_args(Source):
        loaded.add_metric([source], counts.loaded_bytes[source])
    seconds = HistogramMetricFamily("openlora_adapter_load_seconds", "Time of loads by stage.", labels=["stage"])
    for stage, each in counts.seconds.items():
        seconds.add_metric([stage], _buckets(each), each.total)
    evictions = CounterMetricFamily(
        "openlora_adapter_evictions", "Adapters that left a tier.", labels=["tier", "reason"]
    )
    for (tier, reason), count in counts.evictions.items():
        evictions.add_metric([tier, reason], count)
    yield from (lookups, hits, loads, loaded, seconds, evictions, prefetches, found)


def _memory(llm: LLM) -> Iterator[Metric]:
    memory, states = llm.adapters.memory(), Counter(status.state for status in llm.adapters.status())
    pages = GaugeMetricFamily(
        "openlora_adapter_pages",
        "Rank pages of the device: free, used by requests, else pinned, else idle till room is needed.",
        labels=["module", "state"],
    )
    planned = GaugeMetricFamily("openlora_device_bytes", "Device memory by what it was planned for.", labels=["part"])
    for part in ("weights", "kv", "sampler", "activations"):
        planned.add_metric([part], getattr(llm.plan, part))
    planned.add_metric(["adapters"], sum(llm.plan.pools.values()))
    yield planned
    for module, by_state in memory.pages.items():
        for state in get_args(PageState):
            pages.add_metric([module, state], by_state.get(state, 0))
    yield pages
    yield GaugeMetricFamily("openlora_adapter_host_bytes", "Of adapters in host memory.", value=memory.host_bytes)
    yield GaugeMetricFamily("openlora_adapter_host_budget_bytes", "They may take there.", value=memory.host_budget)
    registered = len(llm.store.registrations())
    yield GaugeMetricFamily("openlora_registered_adapters", "Names in the registry.", value=registered)
    adapters = GaugeMetricFamily("openlora_adapters", "Adapters in memory, or wanted there.", labels=["state"])
    for name in ("host", "loading", "resident", "draining"):
        adapters.add_metric([name], states[name])
    yield adapters


def _buckets(seconds: Seconds) -> list[tuple[str, float]]:
    """Cumulative, as Prometheus has them."""
    cumulative, total = [], 0
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), seconds.counts, strict=True):
        total += count
        cumulative.append((bound, float(total)))
    return cumulative
