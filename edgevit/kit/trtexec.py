"""`build.sh` of a kit, made from one table of trtexec's options per version."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgevit.engine import ENGINE, GRAPH, TIMING_CACHE, WEAK_FLAGS
from edgevit.errors import RecipeError
from edgevit.target import Precision, Target

TABLE = Path(__file__).parent / "trtexec.toml"
LAYERS = "layers.json"
TIMES = "times.json"


@dataclass(frozen=True)
class Graph:
    """One ONNX file of a kit."""

    folder: str
    """Where it lies in the kit, and its engine beside it."""
    precision: Precision
    input_shapes: tuple[str, str, str] | None
    """Least, usual and most, as `name:1x3x224x224`, where the batch is dynamic."""


@cache
def read_table() -> Mapping[str, Mapping[str, str]]:
    """Return what each version says to each option: "yes", "deprecated" or "no"."""
    data = tomllib.loads(TABLE.read_text())
    versions: list[str] = data["versions"]
    return {
        version: {option: words[index] for option, words in data["options"].items()}
        for index, version in enumerate(versions)
    }


def column(version: str) -> str:
    """Return the version of the table that stands for a board's: the newest that is not newer, of its major.

    Raises:
        RecipeError: the table has none.
    """
    older = [known for known in read_table() if _numbers(known) <= _numbers(version)]
    same = [known for known in older if _numbers(known)[0] == _numbers(version)[0]]
    if not same:
        raise RecipeError(
            f"tensorrt.versions: expected one of {', '.join(read_table())} or a later one of their majors,"
            f" got {version}."
        )
    return max(same, key=_numbers)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def build_options(version: str, target: Target, graph: Graph) -> list[str]:
    """Return trtexec's options that build one engine on a board with `version`."""
    known = read_table()[column(version)]
    options = [f"onnx={graph.folder}/{GRAPH}", f"saveEngine={graph.folder}/{ENGINE}"]
    options += [f"timingCacheFile={TIMING_CACHE}", *_precision_options(known, graph.precision)]
    wanted = target.tensorrt
    if wanted.workspace_mb:
        size = wanted.workspace_mb
        options.append(
            f"memPoolSize=workspace:{size}" if known["memPoolSize"] != "no" else f"workspace={size}"
        )
    if graph.input_shapes is not None:
        options += [
            f"{n}={s}"
            for n, s in zip(("minShapes", "optShapes", "maxShapes"), graph.input_shapes, strict=True)
        ]
    if wanted.version_compatible:
        options.append("versionCompatible")
    if wanted.hardware_compatible != "none":
        options.append(f"hardwareCompatibilityLevel={wanted.hardware_compatible}")
    if wanted.pinned:
        options.append("errorOnTimingCacheMiss")
    if known["exportLayerInfo"] != "no":
        options += ["profilingVerbosity=detailed", f"exportLayerInfo={graph.folder}/{LAYERS}"]
    options.append("skipInference" if known["skipInference"] != "no" else "buildOnly")
    return _checked(version, options)


def _precision_options(known: Mapping[str, str], precision: Precision) -> list[str]:
    """Strongly typed where the version can, else the precisions that the graph may use; no TF32 for fp32."""
    weak = [flag.lower() for flag in WEAK_FLAGS[precision]]
    types = ["stronglyTyped"] if known["stronglyTyped"] != "no" else weak
    return [*types, *(["noTF32"] if precision == "fp32" else [])]


def timing_options(version: str, target: Target, graph: Graph) -> list[str]:
    """Return trtexec's options that time an engine: with the four defaults that 11.x flipped stated."""
    timing = target.timing
    options = [f"loadEngine={graph.folder}/{ENGINE}"]
    if graph.input_shapes is not None:
        options.append(f"shapes={graph.input_shapes[1]}")
    options += ["useCudaGraph", "useSpinWait", "noDataTransfers", "separateProfileRun"]
    options += [f"warmUp={round(1000 * timing.warmup_s)}", f"duration={round(timing.seconds)}"]
    options += [f"iterations={timing.min_samples}", f"exportTimes={graph.folder}/{TIMES}"]
    return _checked(version, options)


def _checked(version: str, options: Sequence[str]) -> list[str]:
    known = read_table()[column(version)]
    unknown = [option for option in options if known.get(option.split("=")[0], "no") == "no"]
    if unknown:
        raise RecipeError(
            f"tensorrt: trtexec of {version} has no option --{', --'.join(unknown)}. Leave it out."
        )
    return list(options)


def build_script(target: Target, graphs: Sequence[Graph]) -> str:
    """Return `build.sh`: builds every engine of a kit with the board's trtexec, and times them.

    Raises:
        RecipeError: the target asks for what one of its versions lacks.
    """
    return "\n".join([_HEAD, *_branches(target, graphs), _TAIL])


def _branches(target: Target, graphs: Sequence[Graph]) -> Iterator[str]:
    yield 'case "$version" in'
    for version in target.tensorrt.versions:
        yield f"{version})"
        for graph in graphs:
            yield f"    run {_line(build_options(version, target, graph))}"
            yield f"    run {_line(timing_options(version, target, graph))}"
        yield "    ;;"
    yield "*)"
    yield f'    echo "expected TensorRT {" or ".join(target.tensorrt.versions)}, got $version." >&2'
    yield '    echo "TENSORRT_VERSION=... sh build.sh takes the options of one of them all the same." >&2'
    yield "    exit 1 ;;"
    yield "esac"


def _line(options: Sequence[str]) -> str:
    return " ".join(f"--{option}" for option in options)


_HEAD = r"""#!/bin/sh
# Builds the engines of this kit with the board's trtexec, and times each of them: the GPU's time, without the
# copies. `python3 run.py` also compares their outputs and writes the report to bring back.
set -eu
cd "$(dirname "$0")"
trtexec=${TRTEXEC:-$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}

# trtexec calls itself [TensorRT v8602] or [TensorRT v100300].
said=$("$trtexec" --help 2>&1 | sed -n 's/.*TensorRT v\([0-9][0-9]*\).*/\1/p' | head -n 1)
case "$said" in
????) found=$(echo "$said" | sed 's/^\(.\)\(.\).*/\1.\2/') ;;
??????) found=$(echo "$said" | sed 's/^\(..\)\(..\).*/\1.\2/; s/\.0/./') ;;
*) found=unknown ;;
esac
version=${TENSORRT_VERSION:-$found}

run() {
    echo "trtexec $*"
    "$trtexec" "$@"
}
"""
_TAIL = f"""
echo "Engines, {LAYERS} and {TIMES} lie beside each {GRAPH}."
"""
