"""The README's examples, in its order, as a reader would run them: one shell, one server, the real base model."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from convert.adapter import convert_adapter
from convert.base.hf_config import read_hf_config
from openlora_jax.adapters.store import AdapterStore
from openlora_jax.demo.display import label
from openlora_jax.demo.prompts import PROMPTS, SLIDER
from openlora_jax.model.checkpoint import BaseManifest
from serving.config import ServerConfig
from tests.convert.base.checkpoints import CONFIG, hf_tensors, write_hf
from tests.parity.random_adapter import linear_shapes, write_random_adapter

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
BASE = ROOT / ".cache" / "base" / "smollm2-135m-instruct"
DEMO_ADAPTERS = ROOT / "openlora_jax" / "demo" / "adapters"
ADDRESS = "127.0.0.1:50051"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, and its text."""

    language: str
    text: str


BLOCKS = [Block(*match) for match in re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)]


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"[`\n]make ([a-z][a-z-]*)", TEXT))
    assert {"demo", "test", "serve", "clean"} <= targets
    for target in targets:
        subprocess.run(["make", "--no-print-directory", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_settings_are_accepted() -> None:
    settings = [yaml.safe_load(block.text) for block in BLOCKS if block.language == "yaml"]
    assert settings
    for each in settings:
        ServerConfig.of(each)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that looks like a reader's clone after `make demo`, with what the examples call their own."""
    if not BASE.exists():
        pytest.skip("no base model under .cache; `make base` fetches it")
    root = tmp_path_factory.mktemp("clone")
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".cache" / "base").mkdir(parents=True)
    (root / ".venv" / "bin" / "openlora").symlink_to(Path(sys.executable).parent / "openlora")
    (root / ".cache" / "base" / BASE.name).symlink_to(BASE)
    store = AdapterStore.create(root / ".cache" / "store")
    for name in ("json", "pirate", "sentiment", "sql"):
        conversion = convert_adapter(DEMO_ADAPTERS / name, BaseManifest.read(BASE))
        store.install(name, conversion.manifest, conversion.tensors)
    shutil.copytree(DEMO_ADAPTERS / "sql", root / "my-adapter")
    shutil.copytree(DEMO_ADAPTERS / "json", root / "my-newer-adapter")
    # Both sizes are multiples of the group that the README quantises by.
    sizes = CONFIG | {"hidden_size": 64, "intermediate_size": 128}
    model = read_hf_config(write_hf(root / "my-model", sizes, None))
    write_hf(root / "my-model", sizes, hf_tensors(model))
    shapes = linear_shapes(hidden=model.hidden_size, q=model.q_size, kv=model.kv_size, mlp=model.intermediate_size)
    ranks = {"q_proj": 4, "down_proj": 20}
    write_random_adapter(root / "my-model-adapter", shapes, ranks, layers=model.num_layers, size=1.0, seed=0)
    return root


@dataclass(frozen=True)
class Reader:
    """Somebody who pastes the README's blocks; the port is another one, so that nothing else is met there."""

    clone: Path
    address: str

    def run(self, block: Block) -> str:
        """What the block prints."""
        text = block.text.replace(ADDRESS, self.address)
        command = ["bash", "-euo", "pipefail", "-c", text] if block.language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=self.clone, capture_output=True, text=True, timeout=300, env=environment())
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def reader(clone: Path) -> Iterator[Reader]:
    """With the server of the README running."""
    (serve,) = [block.text for block in BLOCKS if block.language == "sh" and "openlora serve" in block.text]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [*serve.split(), "--listen", address]
    with subprocess.Popen(command, cwd=clone, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == f"serving on {address}\n"
            yield Reader(clone, address)
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


@pytest.mark.examples
@pytest.mark.real_model
def test_examples(reader: Reader) -> None:
    printed = {}
    for block in BLOCKS:
        runs = block.language == "python" or (block.language == "sh" and "make " not in block.text)
        if runs and "openlora serve" not in block.text:
            printed[block.text] = reader.run(block)
    assert all(printed.values())
    rows = [json.loads(line) for line in (reader.clone / "answers.jsonl").read_text().splitlines()]
    assert [(row["id"], len(row["outputs"])) for row in rows] == [(1, 1), (2, 1), (3, 2)]
    assert all(output["text"] for row in rows for output in row["outputs"])


@pytest.mark.examples
@pytest.mark.real_model
def test_what_make_demo_runs(clone: Path) -> None:
    command = ".venv/bin/openlora demo --base .cache/base/smollm2-135m-instruct --store .cache/store"
    assert command.split()[1:] == _recipe("demo").split()[1:]
    printed = Reader(clone, ADDRESS).run(Block("sh", command))
    answers = re.findall(r"^\[(.+)\] .*\n(?:.*\S.*\n)+", printed, re.MULTILINE)
    assert answers == [label(prompt.adapters) for prompt in PROMPTS + SLIDER]


def _recipe(target: str) -> str:
    """The last command of a target."""
    dry = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", target], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return dry.stdout.splitlines()[-1]
