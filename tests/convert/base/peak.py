"""Converts a base model in a process of its own: `python peak.py SRC DST` prints the peak resident bytes."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def peak_of_conversion(source: Path, destination: Path) -> int:
    """Peak resident memory, in bytes, of converting `source` to float32."""
    command = [sys.executable, __file__, str(source), str(destination)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def main() -> None:
    from convert.base import convert_base

    convert_base(Path(sys.argv[1]), Path(sys.argv[2]), "float32", lambda *_: None)
    # Not getrusage: its maximum begins with that of the parent process.
    status = Path("/proc/self/status").read_text()
    kilobytes = next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]
    sys.stdout.write(str(int(kilobytes) * 1024))


if __name__ == "__main__":
    main()
