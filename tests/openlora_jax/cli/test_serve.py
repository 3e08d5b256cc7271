import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from openlora_jax.cli.serve import serve
from openlora_jax.engine.sampling_params import SamplingParams
from openlora_jax.errors import InvalidConfig
from serving.client import Client

ROOT = Path(__file__).parents[3]

PROGRAM = """
import sys
import openlora_jax.llm
from openlora_jax.cli.serve import serve
from openlora_jax.config import EngineConfig
from tests.serving.fakes import FakeLLM

def llm(base, store, progress, config, remember):
    assert remember
    assert (base, store) == ("BASE", "STORE")
    assert config == EngineConfig(backend="cpu", max_rows=4, row_buckets=(1, 4))
    progress("decode[1]", 0, 2)
    fake = FakeLLM()
    fake.engine.start()
    return fake

openlora_jax.llm.LLM = llm
serve(config=sys.argv[1], base="BASE", listen="127.0.0.1:0")
"""


def test_serve_announces_itself_logs_and_leaves_at_sigterm(tmp_path: Path) -> None:
    config = tmp_path / "server.yaml"
    config.write_text("backend: cpu\nstore: STORE\nmax_rows: 4\nrow_buckets: [1, 4]\nlisten: 127.0.0.1:1\n")
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(config)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving on 127.0.0.1:")
    with Client(line.split()[-1], timeout=10) as client:
        assert client.generate("confidential abc", SamplingParams(max_tokens=2)).outputs[0].text == "de"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, "")
    assert "Generate" in err
    assert "confidential" not in err


@pytest.fixture
def _own_sigint() -> Iterator[None]:
    """Gives the interrupt back that the command takes for itself."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_own_sigint")
def test_without_a_configuration_there_are_defaults() -> None:
    with pytest.raises(InvalidConfig, match="base: is not set; give --base, or `base:` in the configuration"):
        serve(store="S")


@pytest.mark.usefixtures("_own_sigint")
@pytest.mark.parametrize(
    ("yaml", "arguments", "problem"),
    [
        ("", {"store": "S"}, "base: is not set; give --base"),
        ("base: B", {}, "store: is not set; give --store"),
        ("base: B\nstore: S\nlisten: 0.0.0.0:1", {}, "listen: 0.0.0.0 can be reached from other machines"),
        ("base: B\nstore: S", {"listen": "nowhere"}, "listen: 'nowhere' is no HOST:PORT"),
        ("grace: -1", {}, "grace: "),
        ("sotre: S", {}, "sotre: "),
    ],
)
def test_what_cannot_be_served_is_said(tmp_path: Path, yaml: str, arguments: dict[str, str], problem: str) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(yaml + "\n")
    listen = None if "listen" in yaml else "127.0.0.1:0"
    with pytest.raises(InvalidConfig, match=problem):
        serve(config=str(file), store=arguments.get("store"), listen=arguments.get("listen", listen))
