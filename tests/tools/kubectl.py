"""Find a kubectl of 1.30 or newer for the end-to-end tests; fetch Debian's package into .tools where there is none.

Debian trixie ships kubectl 1.32. The package is downloaded from the mirror that this machine's
apt already uses, unpacked, and never installed. Prints the path; fails with what is missing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OLDEST = (1, 30)
ROOT = Path(__file__).resolve().parents[2]
FETCHED = ROOT / ".tools" / "kubectl"
SUITE = "trixie"
PACKAGE = "kubectl"
SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d")


def version(kubectl: str) -> tuple[int, int] | None:
    try:
        answer = subprocess.run(
            [kubectl, "version", "--client", "-o", "json"], capture_output=True, text=True, timeout=30, check=True
        )
        text = json.loads(answer.stdout)["clientVersion"]["gitVersion"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError):
        return None
    found = re.match(r"v(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def find() -> str | None:
    """The first kubectl that is new enough: on PATH, then fetched before."""
    for candidate in (shutil.which("kubectl"), str(FETCHED)):
        if candidate and (version(candidate) or (0, 0)) >= OLDEST:
            return candidate
    return None


def mirror() -> str:
    """The Debian mirror of this machine's apt configuration. Raises SystemExit when there is none."""
    files = [Path(SOURCES[0]), *sorted(Path(SOURCES[1]).glob("*"))]
    for file in files:
        if not file.is_file():
            continue
        for line in file.read_text(errors="replace").splitlines():
            found = re.match(r"\s*(?:URIs:|deb(?:\s+\[[^]]*\])?)\s+(\S+/debian)/?(?:\s|$)", line)
            if found:
                return found[1]
    raise SystemExit("kubectl 1.30 or newer is needed and this machine's apt names no Debian mirror; install kubectl")


def fetch() -> str:
    """Download and unpack Debian's kubernetes-client; returns the path of its kubectl."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise SystemExit(
                f"kubectl 1.30 or newer is needed; it is not on PATH, and without {tool} it cannot be fetched"
            )
    with tempfile.TemporaryDirectory(prefix="capstan-kubectl-") as scratch:
        base = Path(scratch)
        for folder in ("lists/partial", "cache/archives/partial", "parts"):
            (base / folder).mkdir(parents=True)
        (base / "status").touch()
        keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
        (base / "sources.list").write_text(f"deb [signed-by={keyring}] {mirror()} {SUITE} main\n")
        options = [
            f"-oDir::Etc::sourcelist={base}/sources.list",
            f"-oDir::Etc::sourceparts={base}/parts",
            f"-oDir::State::Lists={base}/lists",
            f"-oDir::State::status={base}/status",
            f"-oDir::Cache={base}/cache",
            "-oAPT::Sandbox::User=" + ("root" if os.geteuid() == 0 else ""),
        ]
        for arguments in (["update"], ["download", f"{PACKAGE}/{SUITE}"]):
            subprocess.run(["apt-get", "-qq", *options, *arguments], cwd=base, check=True, stdout=sys.stderr)
        package = next(base.glob(f"{PACKAGE}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(package), str(base / "unpacked")], check=True)
        FETCHED.parent.mkdir(exist_ok=True)
        shutil.copy2(base / "unpacked" / "usr" / "bin" / "kubectl", FETCHED)
    return str(FETCHED)


if __name__ == "__main__":
    chosen = find() or fetch()
    if (version(chosen) or (0, 0)) < OLDEST:
        raise SystemExit(f"{chosen} is older than 1.30; install a newer kubectl")
    print(f"kubectl: {chosen}")
