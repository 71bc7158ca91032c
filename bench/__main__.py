"""`python -m bench [NAME...]`: run the benchmarks, each in a process of its own, and print their figures."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

BENCHMARKS = ("cel", "allocation", "blueprints", "scheduling", "node", "server", "platform")


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or BENCHMARKS:
        if importlib.util.find_spec(f"bench.{name}") is None:
            failed.append(name)
            continue
        if subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False).returncode != 0:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
