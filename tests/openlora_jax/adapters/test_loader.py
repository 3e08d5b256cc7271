"""The loader on real threads, steered by queues: a read ends when the test says so."""

import threading
from queue import SimpleQueue

import pytest

from openlora_jax.adapters.loader import STOPPED, Loader

TIMEOUT = 30.0


class Reader:
    """Reads that begin and end under the test's control."""

    def __init__(self, threads: int) -> None:
        self.begun: SimpleQueue[str] = SimpleQueue()
        self.ended: SimpleQueue[tuple[str, str | Exception]] = SimpleQueue()
        self.go: dict[str, threading.Event] = {}
        self.now = 0.0
        self.loader: Loader[str] = Loader(self.read, self.done, threads, 1.0, lambda: self.now)

    def read(self, digest: str) -> str:
        self.begun.put(digest)
        if digest in self.go:
            assert self.go[digest].wait(TIMEOUT)
        if digest.startswith("bad"):
            raise OSError(f"{digest} is gone")
        return digest.upper()

    def done(self, digest: str, result: str | Exception) -> None:
        self.ended.put((digest, result))

    def stall(self, digest: str) -> threading.Event:
        return self.go.setdefault(digest, threading.Event())


@pytest.fixture
def reader() -> Reader:
    return Reader(threads=1)


def test_a_digest_is_read_once_at_a_time(reader: Reader) -> None:
    go = reader.stall("a")
    for _ in range(3):
        reader.loader.request("a")
        reader.loader.start(urgent=(), room=True)
    assert reader.begun.get(timeout=TIMEOUT) == "a"
    reader.loader.request("a")
    go.set()
    assert reader.ended.get(timeout=TIMEOUT) == ("a", "A")
    reader.loader.finish("a", None)
    reader.loader.start(urgent=(), room=True)
    reader.loader.join()
    assert reader.begun.empty()


def test_reads_begin_in_order_after_what_is_urgent_and_what_was_here_before(reader: Reader) -> None:
    for digest in ("a", "b", "c"):
        reader.loader.request(digest)
    reader.loader.request("d", again=True)
    order = []
    for _ in range(4):
        reader.loader.start(urgent=["elsewhere", "c"], room=True)
        order.append(reader.ended.get(timeout=TIMEOUT)[0])
        reader.loader.finish(order[-1], None)
    assert order == ["c", "d", "a", "b"]


def test_without_room_only_what_is_urgent_or_read_for_the_second_time_begins(reader: Reader) -> None:
    for digest in ("a", "b"):
        reader.loader.request(digest)
    reader.loader.request("c", again=True)
    for digest in ("b", "c"):
        reader.loader.start(urgent=["b"], room=False)
        assert reader.ended.get(timeout=TIMEOUT)[0] == digest
        reader.loader.finish(digest, None)
    reader.loader.start(urgent=["b"], room=False)
    reader.loader.join()
    assert [reader.begun.get(timeout=TIMEOUT) for _ in range(2)] == ["b", "c"]
    assert reader.begun.empty()


def test_a_cancelled_request_is_never_read(reader: Reader) -> None:
    go = reader.stall("a")
    for digest in ("a", "b"):
        reader.loader.request(digest)
    reader.loader.start(urgent=(), room=True)
    reader.loader.cancel("b")
    go.set()
    reader.ended.get(timeout=TIMEOUT)
    reader.loader.finish("a", None)
    reader.loader.start(urgent=(), room=True)
    reader.loader.join()
    assert reader.begun.get(timeout=TIMEOUT) == "a"
    assert reader.begun.empty()


def test_a_failure_is_remembered_for_a_while_and_only_for_its_digest(reader: Reader) -> None:
    reader.loader.request("bad")
    reader.loader.start(urgent=(), room=True)
    _, error = reader.ended.get(timeout=TIMEOUT)
    assert isinstance(error, OSError)
    reader.loader.finish("bad", str(error))
    assert reader.loader.refusal("bad") == "bad is gone"
    assert reader.loader.refusal("a") is None
    reader.now += 1.0
    assert reader.loader.refusal("bad") is None


def test_a_stopped_loader_reads_nothing_more(reader: Reader) -> None:
    reader.loader.request("a")
    reader.loader.stop()
    reader.loader.request("b")
    reader.loader.start(urgent=(), room=True)
    reader.loader.join()
    assert reader.begun.empty()
    assert reader.loader.refusal("a") == STOPPED
