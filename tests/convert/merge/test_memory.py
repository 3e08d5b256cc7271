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
LARGE = replace(MODEL, vocab_size=8000, hidden_size=1024, intermediate_size=4096, num_layers=14, head_dim=128)
MERGE = """
import sys
from pathlib import Path
from convert.merge import Weighted, merge_into_base, read_sources
from openlora_jax.adapters.store import AdapterStore

root = Path(sys.argv[1])
if sys.argv[2] == "merge":
    sources = read_sources(AdapterStore(root / "store"), [Weighted("one", 1.0)])
    merge_into_base(root / "base", sources, root / "merged", lambda *_: None)
# Not getrusage: its maximum begins with that of the parent process.
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")).split()[1])
"""


def peak(root: Path, what: str) -> int:
    """Bytes that a process of its own had resident."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MERGE, str(root), what]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout) * 1024


@pytest.mark.slow
def test_a_base_is_merged_one_weight_at_a_time(tmp_path: Path) -> None:
    weights = random_weights(LARGE, 0)
    whole, largest = (how(each.nbytes for each in weights.values()) for how in (sum, max))
    (tmp_path / "base").mkdir()
    write_weights(tmp_path / "base", weights)
    del weights
    BaseManifest(config=LARGE, dtype="float32", digest=DIGEST, source="random").write(tmp_path / "base")
    install_synthetic(AdapterStore.create(tmp_path / "store"), LARGE, DIGEST, {"one": 0}, modules=("q_proj", "up_proj"))
    assert whole > 700e6 > 15 * largest
    assert peak(tmp_path, "merge") - peak(tmp_path, "nothing") < 6 * largest + 100e6
