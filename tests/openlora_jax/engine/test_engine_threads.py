"""Readers of other threads and coroutines, while the engine runs on its own."""

import asyncio
import threading

from openlora_jax.engine.request import GenerateRequest
from tests.openlora_jax.engine.answers import Answer, collect
from tests.openlora_jax.engine.cases import REQUESTS, check
from tests.openlora_jax.engine.fakes import Bench, small_config


def test_many_readers_at_once() -> None:
    bench = Bench(small_config(kv_blocks=20))
    bench.engine.start()
    answers: dict[str, Answer] = {}

    def read(name: str) -> None:
        answers[name] = collect(bench.submit(REQUESTS[name]))

    readers = [threading.Thread(target=read, args=[name]) for name in REQUESTS]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    bench.engine.stop(grace=0.0)
    bench.check_idle()
    for name, answer in answers.items():
        check(REQUESTS[name], answer)


async def test_coroutines_read_while_the_engine_runs() -> None:
    bench = Bench(small_config())
    bench.engine.start()

    async def read(request: GenerateRequest) -> Answer:
        return collect([event async for event in bench.submit(request)])

    answers = await asyncio.gather(*map(read, REQUESTS.values()))
    await asyncio.to_thread(bench.engine.stop, 0.0)
    for request, answer in zip(REQUESTS.values(), answers, strict=True):
        check(request, answer)
