"""Whether the tests notice mutations of the product: `python -m tests.bench.mutations [--only=N,…] --out=FILE`.

`mutations.json` holds 40 mutations of the step, the mixture, packing, checkpoints, the verdict and the statistics.
cosmic-ray's operators made them, and a fixed seed drew them, before the tests were cut. Each is applied to a copy of
the repository; the test files that import its module run with `-x`. A mutation is killed where one of them fails.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ghost_jax.core.atomic_io import read_json, write_json
from ghost_jax.core.errors import UserError, command
from tests.conftest import ROOT

LIST = ROOT / "tests" / "bench" / "mutations.json"


def importing(module: Path) -> list[Path]:
    """Returns the test files that import a module of the product, the shortest first: it is the likeliest to fail."""
    package, name = ".".join(module.parent.parts), module.stem
    imported = re.compile(
        rf"import {package}\.{name}\b|from {package}\.{name} import|from {package} import .*\b{name}\b"
    )
    files = [path for path in (ROOT / "tests").glob("test_*.py") if imported.search(path.read_text(encoding="utf-8"))]
    own = {f"test_{name}", f"test_{name.removesuffix('s')}"}
    return sorted(files, key=lambda path: (path.stem not in own, path.stat().st_size))


def try_one(mutation: dict, tree: Path) -> str:
    """Applies a mutation to the copy `tree`, runs the tests, undoes it; returns the test that failed, else ""."""
    path = tree / mutation["file"]
    source = path.read_text(encoding="utf-8")
    if source.count(mutation["before"]) != 1:
        raise UserError(f"{mutation['file']} does not hold once: {mutation['before'].strip()}. Restate it in {LIST}.")
    path.write_text(source.replace(mutation["before"], mutation["after"]), encoding="utf-8")
    try:
        for file in importing(Path(mutation["file"])):
            words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
            result = subprocess.run([*words, f"tests/{file.name}"], cwd=tree, capture_output=True, text=True)
            if result.returncode not in (0, 5):  # 5: every test of the file is slow
                return next(iter(re.findall(r"^(?:FAILED|ERROR) (\S+)", result.stdout, re.M)), file.name)
    finally:
        path.write_text(source, encoding="utf-8")
    return ""


@command
def main(argv: Sequence[str]) -> int:
    """Tries the mutations and writes which test killed each."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.mutations", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON: number of a mutation -> the test that failed")
    parser.add_argument("--only", default="", help="numbers of mutations (default: all)")
    flags = parser.parse_args(argv)
    mutations = read_json(LIST)
    found = read_json(flags.out) if flags.out.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="ghost_jax-mutations-") as folder:
        tree = Path(folder) / "tree"
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, tracked.split("\0")):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        for number in map(int, flags.only.split(",")) if flags.only else range(len(mutations)):
            found[str(number)] = try_one(mutations[number], tree)
            print(f"{number} {mutations[number]['file']}: {found[str(number)] or 'SURVIVED'}", flush=True)
            write_json(flags.out, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
