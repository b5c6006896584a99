"""Run every benchmark in turn, each in its own process: ``python -m benchmarks.run [NAME ...] [--quick] [--out DIR]``.

Whatever is not a benchmark's name is passed on to each.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """Return the benchmarks there are: the modules beside this one, less what they share."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in {"__init__", "common", "run"})


def main(arguments: list[str]) -> int:
    """Run those that are named, or all; return 1 when one failed, after the others had their turn."""
    if {"-h", "--help"} & {*arguments}:
        print(f"{__doc__}\nBenchmarks: {', '.join(names())}. Options: --quick, --repeats N, --out DIR")
        return 0
    chosen = [word for word in arguments if word in names()]
    passed = [word for word in arguments if word not in chosen]
    wrong = [word for i, word in enumerate(passed) if word[0] != "-" and (i == 0 or passed[i - 1][:2] != "--")]
    if wrong:
        print(f"there is no benchmark {wrong[0]!r}; benchmarks: {', '.join(names())}", file=sys.stderr)
        return 2
    failed = []
    for name in chosen or names():
        command = [sys.executable, "-m", f"benchmarks.{name}", *passed]
        if subprocess.run(command, cwd=FOLDER.parent).returncode != 0:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
