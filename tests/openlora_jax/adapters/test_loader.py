"""The loader on real threads, steered by queues: a read ends when the test says so."""

import threading
from queue import SimpleQueue

import pytest

from openlora_jax.adapters import loader
from openlora_jax.adapters.loader import Loader

TIMEOUT = 30.0
LOAD_TIMEOUT = 10.0


class Reader:
    """Reads that begin and end under the test's control."""

    def __init__(self, threads: int) -> None:
        self.begun: SimpleQueue[str] = SimpleQueue()
        self.ended: SimpleQueue[tuple[str, str | Exception]] = SimpleQueue()
        self.go: dict[str, threading.Event] = {}
        self.now = 0.0
        self.loader: Loader[str] = Loader(self.read, self.done, threads, LOAD_TIMEOUT, lambda: self.now)

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


def end(reader: Reader) -> None:
    reader.loader.stop()
    reader.loader.join()
    assert not any(thread.is_alive() for thread in reader.loader._threads)


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
    reader.loader.finish("a")
    reader.loader.start(urgent=(), room=True)
    end(reader)
    assert reader.begun.empty()


def test_reads_begin_in_order_after_what_is_urgent_and_what_was_here_before(reader: Reader) -> None:
    for digest in ("a", "b", "c"):
        reader.loader.request(digest)
    reader.loader.request("d", again=True)
    order = []
    for _ in range(4):
        reader.loader.start(urgent=["elsewhere", "c"], room=True)
        order.append(reader.ended.get(timeout=TIMEOUT)[0])
        reader.loader.finish(order[-1])
    assert order == ["c", "d", "a", "b"]


def test_without_room_only_what_is_urgent_or_read_for_the_second_time_begins(reader: Reader) -> None:
    for digest in ("a", "b"):
        reader.loader.request(digest)
    reader.loader.request("c", again=True)
    for digest in ("b", "c"):
        reader.loader.start(urgent=["b"], room=False)
        assert reader.ended.get(timeout=TIMEOUT)[0] == digest
        reader.loader.finish(digest)
    reader.loader.start(urgent=["b"], room=False)
    end(reader)
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
    reader.loader.finish("a")
    reader.loader.start(urgent=(), room=True)
    end(reader)
    assert reader.begun.get(timeout=TIMEOUT) == "a"
    assert reader.begun.empty()


def test_a_failed_read_ends_with_its_exception_and_the_thread_goes_on(reader: Reader) -> None:
    for digest in ("bad", "a"):
        reader.loader.request(digest)
        reader.loader.start(urgent=(), room=True)
        ended, result = reader.ended.get(timeout=TIMEOUT)
        reader.loader.finish(ended)
    assert (ended, result) == ("a", "A")
    assert len(reader.loader._threads) == 1
    end(reader)


def hang(reader: Reader, digest: str) -> threading.Event:
    """A read that begins and does not end in time."""
    go = reader.stall(digest)
    reader.loader.request(digest)
    reader.loader.start(urgent=(), room=True)
    assert reader.begun.get(timeout=TIMEOUT) == digest
    assert reader.loader.overdue() == []
    reader.now += LOAD_TIMEOUT
    assert reader.loader.overdue() == [digest]
    assert reader.loader.overdue() == []
    return go


def test_a_read_that_hangs_gives_way_to_another_thread(reader: Reader) -> None:
    go = hang(reader, "a")
    assert reader.loader.hangs("a")
    reader.loader.request("a")
    reader.loader.request("b")
    reader.loader.start(urgent=(), room=True)
    assert reader.ended.get(timeout=TIMEOUT) == ("b", "B")
    reader.loader.finish("b")
    go.set()
    assert reader.ended.get(timeout=TIMEOUT) == ("a", "A")
    reader.loader.finish("a")
    assert not reader.loader.hangs("a")
    assert len(reader.loader._threads) == 2
    end(reader)


def test_when_too_many_reads_hang_nothing_is_read_until_one_returns(reader: Reader) -> None:
    go = [hang(reader, "a")]
    assert reader.loader.refusal() is None
    go.append(hang(reader, "b"))
    assert reader.loader.refusal() == "2 reads of other adapters have not ended in time"
    reader.loader.request("c")
    reader.loader.start(urgent=["c"], room=True)
    assert reader.begun.empty()
    assert reader.loader.hopeless() == ["c"]
    assert reader.loader.idle
    go[1].set()
    reader.loader.finish(reader.ended.get(timeout=TIMEOUT)[0])
    assert reader.loader.refusal() is None
    reader.loader.request("c")
    assert reader.loader.hopeless() == []
    reader.loader.start(urgent=(), room=True)
    reader.loader.finish(reader.ended.get(timeout=TIMEOUT)[0])
    assert len(reader.loader._threads) == 2
    go[0].set()
    end(reader)


def test_the_end_waits_for_no_read_that_hangs(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "GRACE", 0.05)
    go = hang(reader, "a")
    reader.loader.stop()
    reader.loader.join()
    assert [thread.is_alive() for thread in reader.loader._threads] == [True]
    go.set()
    end(reader)


def test_a_stopped_loader_reads_nothing_more(reader: Reader) -> None:
    reader.loader.request("a")
    reader.loader.stop()
    reader.loader.request("b")
    reader.loader.start(urgent=(), room=True)
    end(reader)
    assert reader.begun.empty()
    assert reader.loader.refusal() == "the loader has stopped"
    assert not reader.loader._threads
