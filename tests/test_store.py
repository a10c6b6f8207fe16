from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_stores import fill_with, public_bytes

from edgevit.disk import sha256_tree
from edgevit.errors import DiskFullError, EdgevitError, OutputError
from edgevit.store import Store, canonical_json

# A build of two stages, of which the second depends on the first; its files differ with the recipe.
BUILD = """
import os, shutil, signal, sys
from pathlib import Path
from edgevit.store import Store

def build(root, width):
    def plan(folder):
        (folder / "plan.json").write_bytes(b"%d" % width * 3000)
    def export(folder):
        (folder / "onnx").mkdir()
        (folder / "onnx" / "fp32.onnx").write_bytes((plan_dir / "plan.json").read_bytes() * 2)
        (folder / "onnx" / f"only-{width}.onnx").write_bytes(b"x" * width)
    with Store.open(root, "toy") as store:
        plan_dir = store.run("plan", {"width": width}, plan)
        export_dir = store.run("export", {"plan": width}, export)
        store.public.put(plan_dir / "plan.json", "plan.json")
        store.public.put(export_dir / "onnx", "onnx")
        store.finish()
"""

# Forks a build of recipe 2 over a finished build of recipe 1, and kills it at its n-th system event
# (open, mkdir, rename, link, remove ...), for every n until a build comes through alive.
KILLED_EVERYWHERE = (
    BUILD
    + """
import itertools
os.fsync = lambda descriptor: None  # a kill, unlike a power cut, loses nothing that was written
base = Path(sys.argv[1])
for n in itertools.count(1):
    root = base / str(n)
    build(root, 1)
    child = os.fork()
    if child == 0:
        events = itertools.count(1)
        def kill(event, args):
            if event.startswith(("open", "os.", "shutil.", "fcntl.")) and next(events) == n:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(kill)
        build(root, 2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status == 0:
        print(n)
        break
"""
)


def _never(folder: Path) -> None:
    raise AssertionError(f"{folder} was made again")


def _is_there(store: Store, name: str, key: dict[str, int]) -> bool:
    """Say whether the store has this output, by whether it would make it."""
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        raise EdgevitError("asked only")

    with contextlib.suppress(EdgevitError):
        store.run(name, key, make)
    return not made


def _python(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_run_with_the_same_key_makes_the_output_once(tmp_path: Path) -> None:
    key = {"heads": [3, 3], "recover": "none"}
    with Store.open(tmp_path / "b", "toy") as store:
        first = store.run("slim", key, fill_with("weights"))
        assert store.run("slim", key, _never) == first
    with Store.open(tmp_path / "b", "toy") as store:
        assert store.run("slim", dict(reversed(key.items())), _never) == first
        assert first.name.startswith("slim-")
        assert store.run("slim", {**key, "recover": "closed-form"}, fill_with("other")) != first
        assert store.run("plan", key, fill_with("same key, other stage")) != first


def test_run_whose_make_fails_leaves_nothing_and_passes_the_error_on(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise EdgevitError("block 3 has no heads")

    with Store.open(tmp_path, "toy") as store:
        with pytest.raises(EdgevitError, match="block 3 has no heads"):
            store.run("slim", {}, make)
        assert list((tmp_path / ".edgevit").rglob("*half*")) == []
        assert store.run("slim", {}, fill_with("whole")).is_dir()


def test_run_after_make_could_not_read_its_input_does_not_blame_the_output(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", "image.png")

    with Store.open(tmp_path, "toy") as store, pytest.raises(PermissionError, match=r"image\.png"):
        store.run("calibrate", {}, make)


@pytest.mark.parametrize("damage", ["cut", "edit", "remove", "add"])
def test_run_with_a_damaged_output_makes_it_again(tmp_path: Path, damage: str) -> None:
    with Store.open(tmp_path, "toy") as store:
        folder = store.run("export", {}, fill_with("graph"))
        public = store.public.put(folder / "out.txt", "onnx/fp32.onnx")
        match damage:
            case "cut":
                os.truncate(public, 2)
            case "edit":  # in place: the stage shares the bytes through the hard link
                with public.open("r+b") as file:
                    file.write(b"GRAPH")
                os.utime(public, ns=(1, 1))
            case "remove":
                (folder / "out.txt").unlink()
            case "add":
                (folder / "stray.tmp").write_text("x")
        assert store.run("export", {}, fill_with("graph")) == folder
        store.public.put(folder / "out.txt", "onnx/fp32.onnx")
        assert public.read_text() == "graph"
        assert sorted(path.name for path in folder.iterdir()) == [".stage.json", "out.txt"]


def test_run_in_a_copied_build_with_other_times_reuses_it(tmp_path: Path) -> None:
    with Store.open(tmp_path, "toy") as store:
        folder = store.run("export", {}, fill_with("graph"))
        os.utime(folder / "out.txt", ns=(1, 1))
        assert store.run("export", {}, _never) == folder


def test_stage_of_the_build_around_is_not_made_again_and_takes_no_room(tmp_path: Path) -> None:
    with Store.open(tmp_path, "around") as around:
        made = around.run("plan", {"width": 1}, fill_with("plan"))
    with Store.open(tmp_path / "point", "point") as point:
        found = point.run("plan", {"width": 1}, _never)
        assert (found / "out.txt").samefile(made / "out.txt")
        assert found == point.stage_path("plan", {"width": 1})


def test_stage_of_the_build_around_that_was_damaged_is_made_again(tmp_path: Path) -> None:
    with Store.open(tmp_path, "around") as around:
        (around.run("plan", {"width": 1}, fill_with("plan")) / "out.txt").write_text("planned")
    with Store.open(tmp_path / "point", "point") as point:
        assert (point.run("plan", {"width": 1}, fill_with("plan")) / "out.txt").read_text() == "plan"


def test_finish_keeps_unused_stages_only_up_to_the_size_of_the_used(tmp_path: Path) -> None:
    with Store.open(tmp_path, "toy") as store:
        for n in range(3):
            os.utime(store.run("slim", {"n": n}, fill_with("x" * 50_000)), ns=(n, n))
    with Store.open(tmp_path, "toy") as store:
        store.run("slim", {"n": 3}, fill_with("x" * 60_000))
        store.finish()
        assert [_is_there(store, "slim", {"n": n}) for n in range(4)] == [False, False, True, True]


def test_open_of_a_directory_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    # Root may write everywhere but below /proc.
    root = Path("/proc/edgevit") if os.geteuid() == 0 else tmp_path / "closed" / "build"
    with pytest.raises(OutputError, match=rf"{root}: cannot be written .*--out DIR"):
        Store.open(root, "toy")


def test_canonical_json_does_not_depend_on_order_and_refuses_nan() -> None:
    assert canonical_json({"b": [1, 2.5], "a": None}) == canonical_json({"a": None, "b": [1, 2.5]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_build_killed_in_the_middle_of_make_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    script = BUILD + (
        "from pathlib import Path\n"
        "def half(folder):\n"
        "    (folder / 'half.bin').write_bytes(b'x' * 100_000)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "with Store.open(Path(sys.argv[1]), 'toy') as store: store.run('slim', {'a': 1}, half)\n"
    )
    assert _python(script, tmp_path).returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("half.bin"))) == 1
    with Store.open(tmp_path, "toy") as store:
        assert list(tmp_path.rglob("half.bin")) == []
        assert not _is_there(store, "slim", {"a": 1})
        assert (store.run("slim", {"a": 1}, fill_with("whole")) / "out.txt").read_text() == "whole"


def test_build_killed_at_any_system_event_never_shows_a_half_file_and_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    space: dict[str, object] = {}
    exec(BUILD, space)  # the same source that the killed processes run
    build = space["build"]
    assert callable(build)
    build(tmp_path / "old", 1)
    build(tmp_path / "new", 2)
    old, new = public_bytes(tmp_path / "old"), public_bytes(tmp_path / "new")
    done = _python(KILLED_EVERYWHERE, tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 60
    mixed = 0
    for n in range(1, int(done.stdout) + 1):
        root = tmp_path / "killed" / str(n)
        shown = public_bytes(root)
        assert all(raw in (old.get(name), new.get(name)) for name, raw in shown.items()), (n, shown)
        mixed += shown not in (old, new)
        build(root, 2)
        assert public_bytes(root) == new, n
        assert sha256_tree(root / ".edgevit" / "tmp") == sha256_tree(tmp_path / "new" / ".edgevit" / "tmp"), n
    assert mixed > 3  # some were killed between the files of one publish


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_run_on_a_full_disk_names_the_free_bytes_and_leaves_nothing(small_disk: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "small.bin").write_bytes(b"x" * 50_000)
        (folder / "large.bin").write_bytes(b"x" * 500_000)

    with Store.open(small_disk / "b", "toy") as store:
        kept = store.run("plan", {}, fill_with("x" * 20_000))
        with pytest.raises(DiskFullError, match=r"stages/export-\w+: no space left .*\(0 bytes free\).*kept"):
            store.run("export", {}, make)
        assert list(small_disk.rglob("*.bin")) == []
        assert store.run("plan", {}, _never) == kept
        assert (store.run("export", {}, fill_with("x" * 100_000)) / "out.txt").stat().st_size == 100_000


def test_run_whose_writer_ignores_a_full_disk_is_still_refused(small_disk: Path) -> None:
    def careless(folder: Path) -> None:
        with (folder / "model.bin").open("wb", buffering=0) as file:
            for _ in itertools.repeat(None, 200):
                try:
                    file.write(b"x" * 4096)
                except OSError:
                    return

    with Store.open(small_disk, "toy") as store:
        with pytest.raises(DiskFullError, match="no space left"):
            store.run("ir", {}, careless)
        assert not _is_there(store, "ir", {})


def test_publish_of_a_copy_on_a_full_disk_keeps_the_old_file(small_disk: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.bin"  # another file system: no hard link is possible
    with Store.open(small_disk, "toy") as store:
        outside.write_bytes(b"old")
        store.public.put(outside, "model.bin")
        outside.write_bytes(b"x" * 600_000)
        with pytest.raises(DiskFullError, match=r"model\.bin: .*\(600,000 bytes needed, [\d,]+ bytes free\)"):
            store.public.put(outside, "model.bin")
    assert public_bytes(small_disk) == {"model.bin": b"old"}


def test_open_on_a_read_only_disk_says_so(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputError, match=r"cannot be written \(Read-only file system\). Make it writable"):
        Store.open(small_disk / "b", "toy")


def test_work_path_outlives_an_interrupted_stage_and_goes_with_a_finished_one(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    with Store.open(tmp_path, "toy") as store:
        (store.work_path("train", {"lr": 1}) / "checkpoint").write_text("half")
        with pytest.raises(KeyboardInterrupt):
            store.run("train", {"lr": 1}, interrupted)
    with Store.open(tmp_path, "toy") as store:
        assert (store.work_path("train", {"lr": 1}) / "checkpoint").read_text() == "half"
        assert not list(store.work_path("train", {"lr": 2}).iterdir())
        store.run("train", {"lr": 1}, lambda folder: None)
        assert not list(store.work_path("train", {"lr": 1}).iterdir())


def test_finish_removes_work_that_no_stage_came_back_to(tmp_path: Path) -> None:
    with Store.open(tmp_path, "toy") as store:
        work = store.work_path("train", {"lr": 1})
        store.finish()
    assert not work.exists()


def test_store_that_held_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with Store.open(tmp_path / "build" / "typo", "typo"):
        pass
    assert not (tmp_path / "build" / "typo").exists()
    (tmp_path / "mine").mkdir()
    with Store.open(tmp_path / "mine", "toy") as store:
        store.run("stage", {}, lambda folder: None)
    with Store.open(tmp_path / "mine", "toy"):
        pass
    assert (tmp_path / "mine" / ".edgevit").is_dir()


def test_outputs_are_the_finished_folders_of_one_stage(tmp_path: Path) -> None:
    with Store.open(tmp_path / "out", "toy") as store:
        first = store.run("time", {"version": 1}, lambda folder: None)
        second = store.run("time", {"version": 2}, lambda folder: None)
        store.run("time-again", {"version": 1}, lambda folder: None)
        os.utime(first, ns=(1, 1))
        assert store.outputs("time") == [second, first]
        assert store.outputs("plan") == []


def make_five(folder: Path) -> None:
    (folder / "times.json").write_text("5")


def refuse_to_make(folder: Path) -> None:
    raise AssertionError("it is there already")


def test_shared_stage_is_taken_over_from_a_build_beside(tmp_path: Path) -> None:
    with Store.open(tmp_path / "one", "one") as store:
        store.run("time", {"of": "cpu"}, make_five)
    with Store.open(tmp_path / "two", "two") as store:
        assert [path.parents[2].name for path in store.outputs("time")] == ["one"]
        folder = store.run("time", {"of": "cpu"}, refuse_to_make, shared=True)
        assert folder.is_relative_to(tmp_path / "two")
        assert (folder / "times.json").read_text() == "5"
        assert store.run("time", {"of": "cpu"}, refuse_to_make) == folder
    shutil.rmtree(tmp_path / "one")
    assert (folder / "times.json").exists()


@pytest.mark.parametrize("shared", [False, True])
def test_stage_that_is_not_shared_or_of_another_key_is_made(tmp_path: Path, shared: bool) -> None:
    with Store.open(tmp_path / "one", "one") as store:
        store.run("time", {"of": "cpu"}, make_five)
    with Store.open(tmp_path / "two", "two") as store:
        made: list[Path] = []
        store.run("time", {"of": "gpu" if shared else "cpu"}, made.append, shared=shared)
    assert len(made) == 1


def test_shared_stage_that_was_cut_in_the_other_build_is_made(tmp_path: Path) -> None:
    with Store.open(tmp_path / "one", "one") as store:
        (store.run("time", {}, make_five) / "times.json").write_text("")
    with Store.open(tmp_path / "two", "two") as store:
        assert (store.run("time", {}, make_five, shared=True) / "times.json").read_text() == "5"


def test_shared_stage_of_another_user_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "one", "one") as store:
        store.run("time", {}, make_five)
    monkeypatch.setattr(os, "getuid", lambda: 10**6)
    with Store.open(tmp_path / "two", "two") as store:
        made: list[Path] = []
        store.run("time", {}, made.append, shared=True)
    assert len(made) == 1
