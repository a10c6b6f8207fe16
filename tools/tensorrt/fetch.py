"""Fetch TensorRT's real libraries, one folder a version, for the tests marked `tensorrt` and for a preflight.

    python tools/tensorrt/fetch.py                 what the tests use: 10.15, 11.2 and TensorRT-RTX, 1.2 GB
    python tools/tensorrt/fetch.py 8.6             another version of versions.toml
    PYTHONPATH=~/.cache/edgevit/tensorrt/10.15 edgevit build recipe.toml      parse with that version

Needs Linux on x86-64, Maven (`mvn`) and pip. The folders lie in $EDGEVIT_TENSORRT, by default
~/.cache/edgevit/tensorrt. What was fetched before is left as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("EDGEVIT_TENSORRT") or Path.home() / ".cache" / "edgevit" / "tensorrt")
DONE = "fetched.json"
_CHUNK_BYTES = 2**22

# The bindings import a module of this name first, which in NVIDIA's own wheels loads the libraries beside it.
_LOADER = '''"""Load TensorRT's libraries, which lie beside this file, before the bindings need them."""

import ctypes
from pathlib import Path

for name in {names!r}:
    ctypes.CDLL(str(Path(__file__).parent / name), ctypes.RTLD_GLOBAL)
'''


@dataclass(frozen=True)
class Version:
    """One version as versions.toml has it."""

    name: str
    tensorrt: str
    download_mb: int
    libraries: tuple[str, ...]
    """In the order in which they are loaded."""
    default: bool
    jar: str = ""
    sha256: str = ""
    stub: Mapping[str, str] = field(default_factory=dict)
    """Libraries that are made here instead, empty but for one function."""

    @property
    def wheels(self) -> Path:
        """Return the file that names the bindings, with hashes, in pip's own format."""
        return HERE / f"{self.name}.txt"

    def key(self) -> dict[str, str]:
        """Return what decides over the folder's content."""
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        return {"jar": self.sha256, "wheels": self.wheels.read_text(), "python": python}


class FetchError(Exception):
    """What could not be fetched, and why."""


def read_versions() -> dict[str, Version]:
    """Read versions.toml."""
    table = tomllib.loads((HERE / "versions.toml").read_text())
    return {
        name: Version(name, **{**entry, "libraries": tuple(entry["libraries"])})
        for name, entry in table.items()
    }


def is_there(version: Version, folder: Path) -> bool:
    """Say whether a folder holds this very version for this Python."""
    done = folder / DONE
    return done.is_file() and json.loads(done.read_text()) == version.key()


def fetch(version: Version, folder: Path) -> None:
    """Fill `folder` with a version's libraries and bindings; it gets its name when it is complete.

    Raises:
        FetchError: a registry did not answer, or a file is not the expected one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{version.name}-", dir=folder.parent) as name:
        work = Path(name)
        made = work / "site"
        _run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:",
              "--require-hashes", "--target", str(made), "-r", str(version.wheels)])  # fmt: skip
        if version.jar:
            _unpack(_fetch_jar(version, work / "maven"), version, made / "tensorrt_libs")
        (made / DONE).write_text(json.dumps(version.key()))
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)


def _fetch_jar(version: Version, repository: Path) -> Path:
    """Let Maven bring a jar into a repository of its own, which is removed with what was unpacked."""
    _run(["mvn", "-q", "-B", f"-Dmaven.repo.local={repository}", "dependency:get",
          f"-Dartifact={version.jar}", "-Dtransitive=false"])  # fmt: skip
    _, artefact, number, _, classifier = version.jar.split(":")
    (jar,) = repository.rglob(f"{artefact}-{number}-{classifier}.jar")
    found = _sha256(jar)
    if found != version.sha256:
        raise FetchError(f"{jar.name}: expected sha256 {version.sha256}, got {found}. Nothing was unpacked.")
    return jar


def _unpack(jar: Path, version: Version, folder: Path) -> None:
    """Write the libraries, and beside them the module that loads them."""
    folder.mkdir()
    with zipfile.ZipFile(jar) as archive:
        members = {Path(name).name: name for name in archive.namelist()}
        for library in version.libraries:
            if library in version.stub:
                _make_stub(folder / library, version.stub[library])
                continue
            with archive.open(members[library]) as source, (folder / library).open("wb") as out:
                shutil.copyfileobj(source, out, _CHUNK_BYTES)
    (folder / "__init__.py").write_text(_LOADER.format(names=version.libraries))


def _make_stub(library: Path, function: str) -> None:
    source = library.with_suffix(".c")
    source.write_text(f"int {function}(void) {{ return 0; }}\n")
    _run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", str(library), str(source)])
    source.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise FetchError(f"{command[0]}: not found. Install it.") from error
    if done.returncode:
        words = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise FetchError(f"{' '.join(command)}: failed with {done.returncode}:\n{words}")


def main() -> int:
    """Fetch what is not there yet; return 1 where something could not be had."""
    versions = read_versions()
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=f"of {', '.join(versions)}")
    names = parser.parse_args().versions or [name for name, one in versions.items() if one.default]
    failed = 0
    for name in names:
        if name not in versions:
            parser.error(f"no version {name!r}; there are {', '.join(versions)}")
        version, folder = versions[name], CACHE / name
        if is_there(version, folder):
            print(f"{name}: TensorRT {version.tensorrt} is in {folder}")
            continue
        print(f"{name}: fetching TensorRT {version.tensorrt}, {version.download_mb} MB", flush=True)
        try:
            fetch(version, folder)
        except FetchError as error:
            failed += 1
            print(f"{name}: NOT FETCHED. {error}", file=sys.stderr)
        else:
            print(f"{name}: in {folder}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
