import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from openlora_jax.adapters.store import AdapterStore
from openlora_jax.adapters.synthetic import install_synthetic
from openlora_jax.model.checkpoint import BaseManifest, write_weights
from openlora_jax.model.weights import random_weights
from tests.openlora_jax.tiny import DIGEST, MODEL

ROOT = Path(__file__).parents[3]
LARGE = replace(MODEL, vocab_size=8000, hidden_size=1024, intermediate_size=4096, head_dim=128)
MERGE = """
import sys
from pathlib import Path
from convert.merge import Weighted, merge_into_base, read_sources
from openlora_jax.adapters.store import AdapterStore

root = Path(sys.argv[1])
sources = read_sources(AdapterStore(root / "store"), [Weighted("one", 1.0)])
merge_into_base(root / "base", sources, root / "merged", lambda *_: None)
# Not getrusage: its maximum begins with that of the parent process.
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")).split()[1])
"""


def peak(root: Path, layers: int) -> int:
    """Bytes that a process had resident which merged an adapter into a base of so many layers."""
    model = replace(LARGE, num_layers=layers)
    (root / "base").mkdir(parents=True)
    write_weights(root / "base", random_weights(model, 0))
    BaseManifest(config=model, dtype="float32", digest=DIGEST, source="random").write(root / "base")
    install_synthetic(AdapterStore.create(root / "store"), model, DIGEST, {"one": 0}, modules=("q_proj",), rank=4)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MERGE, str(root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024


@pytest.mark.slow
def test_a_base_is_merged_one_weight_at_a_time(tmp_path: Path) -> None:
    """Ten layers more are 580 MB more of weights."""
    assert peak(tmp_path / "deep", 14) - peak(tmp_path / "flat", 4) < 200e6
