"""docs/architecture.md says the same as the import contracts, and no room reaches into another's private modules."""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "capstan"
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())


def documented():
    """room -> (is pure, rooms it may import), from the table of the page."""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    return {name: (text.startswith("PURE"), set(re.findall(r"\w+", allowed))) for name, text, allowed in rows}


def contracted():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    found = {}
    for contract in contracts:
        (source,) = contract["source_modules"]
        room = source.removeprefix("capstan.")
        forbidden = {
            name.removeprefix("capstan.") for name in contract["forbidden_modules"] if name.startswith("capstan.")
        }
        found[room] = ("asyncio" in contract["forbidden_modules"], set(ROOMS) - forbidden - {room})
    return found


def test_every_room_is_documented():
    assert sorted(documented()) == ROOMS


def test_the_page_grants_what_the_contracts_grant():
    contracts = contracted()
    for room, (pure, allowed) in documented().items():
        if room in contracts:
            assert (pure, allowed) == contracts[room], room
        else:
            assert allowed == set(ROOMS) - {room}, f"{room} has no contract, so it may import everything"


def test_no_room_imports_a_private_module_of_another():
    offences = []
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0]
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                parts = name.split(".")
                if (
                    parts[0] == "capstan"
                    and len(parts) > 2
                    and parts[1] != room
                    and any(p.startswith("_") for p in parts[2:])
                ):
                    offences.append(f"{file}: {name}")
    assert offences == []


def test_every_dependency_has_its_line_of_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    page = (ROOT / "docs/dependencies.md").read_text()
    named = set(re.findall(r"[\w.-]+", " ".join(re.findall(r"^\| (?:`\w+` \| )?([^|]+) \|", page, re.MULTILINE))))
    missing = [d for d in (re.match(r"[\w.-]+", item)[0] for item in declared) if d not in named]
    assert missing == []


def test_lock_files_name_hashes_and_no_address():
    for lock in (ROOT / "requirements").glob("*.txt"):
        text = lock.read_text()
        assert "--hash=sha256:" in text
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links", text), lock
