# SPDX-License-Identifier: MIT
"""``python -m emanest.build``, and which extension is loaded: with sources that compile at once."""

import re
import subprocess
import sys
import threading
import types

import pytest
import torch

import emanest
import fresh
from emanest import build, extension
from emanest.extension import cleaning, compiling, places, running, sources

COMMAND = "run `python -m emanest.build`"

BINDINGS = """
#include <Python.h>
#include "note.h"
const char* built();
static PyObject* info(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s,s:i}", "hash", built(), "cuda", 0);
}
static PyMethodDef methods[] = {{"build_info", info, METH_NOARGS, ""}, {nullptr, nullptr, 0, ""}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", "", -1, methods};
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
  return PyModule_Create(&module);
}
"""
INFO = """
extern const char kBuild[];
__attribute__((used)) const char kBuild[] = "emanest-build:" EMANEST_HASH ":" EMANEST_TORCH ":";
const char* built() { return EMANEST_HASH; }
"""
TINY = {"bindings.cpp": BINDINGS, "info.cpp": INFO, "no_cuda.cpp": "", "note.h": "// 1\n"}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Tiny sources in place of the real ones; the folder of the package, which has no extension."""
    package = tmp_path / "emanest"
    (package / "csrc").mkdir(parents=True)
    for name, text in TINY.items():
        (package / "csrc" / name).write_text(text)
    monkeypatch.setattr(sources, "PACKAGE", package)
    monkeypatch.setattr(sources, "NAMES", ["bindings", "info"])
    monkeypatch.setattr(sources, "FLAGS", ["-O0", "-fopenmp", "-fvisibility=hidden"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("EMANEST_CUDA", "0")
    # a process that imports torch takes two seconds: where it matters, ``trying`` has it
    monkeypatch.setattr(build, "_try", lambda path: None)
    # what the test imports is forgotten after it
    real = sys.modules["emanest.extension.loaded"]
    monkeypatch.setattr(extension, "loaded", real)
    monkeypatch.setattr(emanest, "_C", None, raising=False)
    forget(monkeypatch)
    return package


TRY = build._try


@pytest.fixture
def trying(tiny, monkeypatch):
    """The same, and what was built is tried in a process of its own."""
    monkeypatch.setattr(build, "_try", TRY)
    return tiny


def in_a_fork(command, **options):
    """``subprocess.run`` of what ``build`` tries, in a process that need not import torch."""
    python, flag, code, path = command
    assert (python, flag) == (sys.executable, "-c")
    return fresh.python(f"import sys; sys.argv = ['-c', {path!r}]\n{code}")


def forget(monkeypatch):
    for name in ("emanest._C", "emanest.extension.loaded"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def load():
    from emanest.extension.loaded import _C

    return _C


def cached():
    return places.cached(sources.wanted(str(torch.__version__)))


def install(**options):
    """Build into the package, as setup.py does."""
    compiling.build(
        places.installed(), sources.PACKAGE.parent / "temp", lambda line: None, **options
    )


def change(package, text="// 2\n"):
    (package / "csrc" / "note.h").write_text(text)


# ---- the command --------------------------------------------------------------------------------


def test_it_builds_into_the_cache_with_a_line_for_each_source(tiny, capsys, monkeypatch):
    assert build.main([]) == 0
    first, where, *lines, last = capsys.readouterr().out.splitlines()
    version = torch.__version__
    assert first == f"emanest: the extension is not built for torch {version}: {COMMAND}"
    assert where == f"emanest: building for torch {version}, in {cached().parent}"
    assert lines[0] == "emanest: without CUDA: EMANEST_CUDA is 0"
    pattern = r"emanest: \[(\d)/3\] (\w+\.cpp)  \d+\.\d s"
    found = [re.fullmatch(pattern, line).groups() for line in lines[1:]]
    assert [count for count, _ in found] == ["1", "2", "3"]
    assert {name for _, name in found} == {"bindings.cpp", "info.cpp", "no_cuda.cpp"}
    assert re.fullmatch(rf"emanest: built in \d+ s: {re.escape(str(cached()))}", last)
    assert load().__file__ == str(cached())
    assert emanest._C is sys.modules["emanest._C"] is load()
    # and objects are not kept
    names = {path.name for path in cached().parent.iterdir()}
    assert names == {places.NAME, "build.log", "lock"}


def test_it_is_not_built_twice_unless_it_is_asked_for(tiny, capsys, monkeypatch):
    build.main([])
    before = cached().stat().st_ino, cached().stat().st_mtime_ns
    capsys.readouterr()
    forget(monkeypatch)
    assert build.main([]) == 0
    assert capsys.readouterr().out == f"emanest: already built: {cached()}\n"
    assert (cached().stat().st_ino, cached().stat().st_mtime_ns) == before
    assert build.main(["--force"]) == 0
    assert (cached().stat().st_ino, cached().stat().st_mtime_ns) != before


def test_by_force_beside_an_installed_one_it_says_which_is_used(tiny, capsys):
    install()
    assert build.main([]) == 0
    assert capsys.readouterr().out == f"emanest: already built: {places.installed()}\n"
    assert build.main(["--force"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"emanest: as long as {places.installed()} fits, that is used, not this one"


def test_a_source_that_does_not_compile_is_a_line_and_its_reason_is_kept(tiny, capsys, monkeypatch):
    change(tiny, "int f() { return nothing; }\n")
    assert build.main([]) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert re.match(r"emanest: (c\+\+|g\+\+|clang\+\+) failed with status 1: .*error: .*noth", line)
    log = cached().parent / "build.log"
    assert line.endswith(f"; {log} has all of it")
    assert "note.h" in log.read_text()
    reason = line.removeprefix("emanest: ")
    with pytest.raises(ImportError) as raised:
        load()
    assert str(raised.value) == f"the extension could not be built ({reason}): {COMMAND}"


def test_a_failure_is_forgotten_once_it_works(tiny, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -x")
    assert build.main([]) == 1
    assert places.failure(cached()) == (
        "no C++ compiler was found: CXX is no-such-compiler, and there is none"
    )
    monkeypatch.delenv("CXX")
    assert build.main([]) == 0
    assert places.failure(cached()) is None
    assert load().build_info()["hash"] == sources.wanted(str(torch.__version__))


def test_what_was_built_and_does_not_load_is_a_failure(trying, capsys, monkeypatch):
    assert build.main([]) == 0
    good = cached().read_bytes()
    monkeypatch.setattr(build, "subprocess", types.SimpleNamespace(run=in_a_fork))
    forget(monkeypatch)
    text = BINDINGS.replace("PyModule_Create(&module)", "nullptr").replace("nullptr;", "missing();")
    (trying / "csrc" / "bindings.cpp").write_text(
        f"void* missing_();\n{text}".replace("return missing();", "return (PyObject*)missing_();")
    )
    assert build.main([]) == 1
    line = capsys.readouterr().err
    assert "it was built, and cannot be loaded: ImportError: " in line
    assert "undefined symbol" in line
    # and it is tried again, as there is none
    assert build.main([]) == 1
    assert not cached().exists()
    # what loads is not replaced by it
    cached().write_bytes(good)
    assert build.main(["--force"]) == 1
    assert cached().read_bytes() == good


def test_without_a_home_there_is_no_cache(tiny, capsys, monkeypatch):
    """Not one in a folder that is called ~, wherever Python is started."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert build.main([]) == 1
    assert capsys.readouterr().err == (
        "emanest: this user has no home: set XDG_CACHE_HOME to the path of a folder\n"
    )
    assert build.main(["--clean"]) == 1
    with pytest.raises(ImportError, match="is not built"):
        load()


def test_cuda_that_is_asked_for_is_built_though_there_is_one_without(tiny, capsys, monkeypatch):
    assert build.main([]) == 0
    monkeypatch.setenv("EMANEST_CUDA", "1")
    monkeypatch.setattr("emanest.extension.cuda.find_nvcc", lambda: None)
    assert build.main([]) == 1
    captured = capsys.readouterr()
    assert f"EMANEST_CUDA is 1, and {cached()} has no CUDA" in captured.out
    assert "EMANEST_CUDA is 1, and no nvcc was found" in captured.err


def test_a_cache_that_cannot_be_written_is_a_line(tiny, capsys, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert build.main([]) == 1
    assert capsys.readouterr().err == (
        f"emanest: cannot write to {cached().parent} (Not a directory): set XDG_CACHE_HOME to a "
        "folder that can be written, here and wherever emanest is used\n"
    )


def test_without_sources_there_is_nothing_to_build(tiny, capsys):
    (tiny / "csrc" / "bindings.cpp").unlink()
    assert build.main([]) == 1
    assert "there are no sources in" in capsys.readouterr().err


# ---- what else lies in the cache ----------------------------------------------------------------


def earlier(name, torch_version="2.12.0"):
    """A folder of the cache as an earlier build has left it, for another Python, of 0.1 MB."""
    folder = cached().parent.parent / name
    folder.mkdir(parents=True)
    mark = f"emanest-build:{name}:{torch_version}:".encode()
    (folder / "_C.cpython-39-x86_64-linux-gnu.so").write_bytes(mark.ljust(100_000))
    (folder / "lock").write_text("")
    return folder


HASHES = "0123456789abcdef", "00000000000000aa"


def test_a_build_says_what_else_lies_there_and_leaves_it(tiny, capsys):
    folders = [earlier(name) for name in HASHES]
    assert build.main([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "emanest: 2 of other sources, or for another torch or Python, take 0.2 MB beside it: "
        "`python -m emanest.build --clean` removes them"
    )
    assert all(folder.exists() for folder in folders)


def test_clean_removes_all_builds_but_the_one_that_is_wanted(tiny, capsys):
    build.main([])
    second, first = (earlier(name) for name in HASHES)
    (second / "objects").mkdir()
    (second / "objects" / "cpu.o").write_text("")
    failed = cached().parent.parent / ("f" * 16)
    places.note_failure(failed / places.NAME, "no compiler")
    elsewhere = cached().parent.parent / "notes"
    elsewhere.mkdir()
    before = sorted(cached().parent.iterdir())
    capsys.readouterr()
    assert build.main(["--clean"]) == 0
    what = "torch 2.12.0, _C.cpython-39-x86_64-linux-gnu.so, 0.1 MB"
    assert capsys.readouterr().out.splitlines() == [
        f"emanest: removed {first} ({what})",
        f"emanest: removed {second} ({what})",
        f"emanest: removed {failed} (no extension, 0.0 MB)",
    ]
    assert {*cached().parent.parent.iterdir()} == {cached().parent, elsewhere}
    assert sorted(cached().parent.iterdir()) == before
    assert load().__file__ == str(cached())
    assert build.main(["--clean"]) == 0
    nothing = f"emanest: nothing to remove in {cached().parent.parent}\n"
    assert capsys.readouterr().out == nothing


def test_clean_builds_nothing(tiny, capsys):
    folder = earlier(HASHES[0])
    assert build.main(["--clean"]) == 0
    assert not folder.exists()
    assert not cached().parent.exists()


def test_clean_leaves_what_another_process_is_building(tiny, capsys):
    folder = earlier(HASHES[0])
    with places.locked(folder, lambda line: None):
        assert build.main(["--clean"]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"emanest: left {folder} (")
        assert line.endswith("MB): another process is building it")
    assert (folder / "_C.cpython-39-x86_64-linux-gnu.so").exists()


def test_a_builder_whose_folder_is_removed_while_it_waits_builds_anew(tiny, monkeypatch):
    target, waits = cached(), threading.Event()
    target.parent.mkdir(parents=True)
    # one was there when it asked, as under --force
    target.write_bytes(b"an earlier one")
    said = []

    def say(line):
        said.append(line)
        if "waiting" in line:
            waits.set()

    # another environment, to which this folder is one of the others
    holds, real = threading.Event(), cleaning.shutil.rmtree

    def slow(path):
        holds.set()
        assert waits.wait(20)
        real(path)

    (target.parent / "objects").mkdir()
    monkeypatch.setattr(cleaning.shutil, "rmtree", slow)
    removed = []
    other = cleaning.Build(target.parent, 0)
    remover = threading.Thread(target=lambda: removed.append(cleaning.remove(other)))
    remover.start()
    assert holds.wait(20)
    monkeypatch.setattr(cleaning.shutil, "rmtree", real)
    assert build.build(say) == target
    remover.join()
    assert removed == [True]
    assert said[0] == "another process is building it: waiting"
    assert said[-1].startswith("built in")
    assert load().__file__ == str(target)


def test_what_cannot_be_removed_is_a_line(tiny, capsys, monkeypatch):
    folder = earlier(HASHES[0])
    (folder / "objects").mkdir()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(cleaning.shutil, "rmtree", refuse)
    assert build.main(["--clean"]) == 1
    assert capsys.readouterr().err == (
        f"emanest: cannot remove {folder} (Permission denied): remove it by hand\n"
    )


# ---- one builder at a time ----------------------------------------------------------------------


def test_of_two_at_once_one_builds_and_the_other_finds_it(tiny, monkeypatch):
    """Locks are of open files: two threads are as two processes."""
    began, count, real = threading.Event(), [], compiling.build

    def counted(*args):
        count.append(1)
        began.set()
        # until the other waits
        assert waits.wait(20)
        return real(*args)

    waits, said = threading.Event(), []

    def say(line):
        said.append(line)
        if line == "another process is building it: waiting":
            waits.set()

    monkeypatch.setattr(compiling, "build", counted)
    first = threading.Thread(target=build.build, args=(say,))
    first.start()
    assert began.wait(20)
    assert build.build(say) == cached()
    first.join()
    assert len(count) == 1
    assert said[-1] == f"another process has built it: {cached()}"


def test_two_that_build_into_the_package_do_not_disturb_each_other(tiny):
    threads = [threading.Thread(target=install) for _ in range(3)]
    failures = []
    hook, threading.excepthook = threading.excepthook, failures.append
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = hook
    assert failures == []
    assert {path.name for path in tiny.glob("_C*")} == {places.NAME}


def test_a_killed_builder_does_not_block(tiny):
    cached().parent.mkdir(parents=True)
    code = f"""if True:
        import fcntl, time
        file = open({str(cached().parent / "lock")!r}, "w")
        fcntl.flock(file, fcntl.LOCK_EX)
        print("locked", flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"locked\n"
        said = []

        def say(line):
            said.append(line)
            if "waiting" in line:
                holder.kill()

        assert build.build(say) == cached()
        holder.wait()
    assert said[0] == "another process is building it: waiting"
    assert said[-1].startswith("built in")


# ---- which one is loaded ------------------------------------------------------------------------


def test_the_installed_one_comes_first(tiny):
    install()
    build.build(lambda line: None)
    assert load().__file__ == str(places.installed())


def test_one_of_other_sources_is_refused(tiny):
    install()
    change(tiny)
    with pytest.raises(ImportError) as raised:
        load()
    where = f"the extension in {tiny}"
    assert str(raised.value) == f"{where} is built from other sources than these: {COMMAND}"
    # the one in the cache then serves
    assert build.main([]) == 0
    assert load().__file__ == str(cached())


def test_one_of_other_sources_is_refused_even_where_somebody_has_imported_it(tiny, monkeypatch):
    install()
    there = load()
    assert sys.modules["emanest._C"] is there
    change(tiny)
    monkeypatch.delitem(sys.modules, "emanest.extension.loaded")
    with pytest.raises(ImportError, match="is built from other sources than these"):
        load()


def test_one_for_another_torch_is_refused(tiny):
    install(torch_version="2.0.0+other")
    with pytest.raises(ImportError) as raised:
        load()
    news = f"is for torch 2.0.0+other, and this is {torch.__version__}"
    assert str(raised.value) == f"the extension in {tiny} {news}: {COMMAND}"


@pytest.mark.parametrize("content", [b"", b"an earlier one, without a mark"])
def test_one_without_a_mark_is_refused(tiny, content):
    places.installed().write_bytes(content)
    with pytest.raises(ImportError, match=f"other sources than these: {COMMAND}"):
        load()


def test_one_that_cannot_be_loaded_gives_way(tiny):
    fitting = sources.wanted(str(torch.__version__))
    places.installed().write_bytes(f"emanest-build:{fitting}:{torch.__version__}:".encode())
    with pytest.raises(ImportError, match=f"cannot be loaded .*: {COMMAND}"):
        load()
    assert build.main([]) == 0
    assert load().__file__ == str(cached())


def test_without_sources_the_installed_one_is_taken(tiny):
    install(torch_version="1.0")
    (tiny / "csrc" / "bindings.cpp").unlink()
    assert load().__file__ == str(places.installed())


def test_why_setup_py_built_none_is_said(tiny):
    places.note_failure(places.installed(), "no\n compiler")
    with pytest.raises(ImportError) as raised:
        load()
    assert str(raised.value) == f"the extension could not be built (no compiler): {COMMAND}"


# ---- the hash -----------------------------------------------------------------------------------


def test_the_extension_carries_the_hash_that_is_wanted():
    info = load().build_info()
    assert info["hash"] == sources.wanted(str(torch.__version__))
    assert info["built_for"] == f"torch {torch.__version__}"


CHANGES = {
    "a header": lambda package, patch: change(package),
    "a new header": lambda package, patch: (package / "csrc" / "a.h").write_text(""),
    "CUDA": lambda package, patch: (package / "csrc" / "step.cu").write_text(""),
    "a name": lambda package, patch: (package / "csrc" / "note.h").rename(package / "csrc" / "b.h"),
    "flags": lambda package, patch: patch.setattr(sources, "FLAGS", ["-O1"]),
    "flags of nvcc": lambda package, patch: patch.setattr(sources, "CUDA_FLAGS", []),
    "Python": lambda package, patch: patch.setattr(sources, "SUFFIX", ".abi3.so"),
    "the machine": lambda package, patch: patch.setattr(sources.platform, "machine", lambda: "z80"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_decides_what_is_built_changes_the_hash(tiny, monkeypatch, what):
    before = sources.wanted("2.13.0")
    (tiny / "csrc" / "script.py").write_text("")
    assert sources.wanted("2.13.0") == before
    CHANGES[what](tiny, monkeypatch)
    assert sources.wanted("2.13.0") != before


def test_another_build_of_torch_changes_the_hash():
    versions = ("2.13.0", "2.13.0+cpu", "2.13.0+cu130", "2.14.0")
    assert len({sources.wanted(version) for version in versions}) == len(versions)


# ---- what a build needs -------------------------------------------------------------------------


def executable(folder, name):
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_the_compiler_is_that_of_cxx_or_the_first_that_is_there(tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        running.BuildError, match=r"looked for c\+\+, g\+\+, clang\+\+ on PATH; inst"
    ):
        compiling.compiler()
    clang = executable(tmp_path, "clang++")
    assert compiling.compiler() == [clang]
    gcc = executable(tmp_path, "g++")
    assert compiling.compiler() == [gcc]
    monkeypatch.setenv("CXX", f"{clang} -stdlib=libc++")
    assert compiling.compiler() == [clang, "-stdlib=libc++"]


def test_elsewhere_than_on_linux_and_macos_nothing_is_built(monkeypatch):
    monkeypatch.setattr(compiling.sys, "platform", "win32")
    with pytest.raises(running.BuildError, match="for linux and darwin, and this is win32"):
        compiling.compiler()


def test_headers_of_python_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(running.BuildError, match=r"no Python\.h in .*: install the headers of Pyt"):
        compiling.includes()


def test_cuda_that_is_asked_for_and_cannot_be_is_an_error(tiny, capsys, monkeypatch):
    monkeypatch.setenv("EMANEST_CUDA", "1")
    monkeypatch.setattr(compiling.cuda, "find_nvcc", lambda: None)
    assert build.main([]) == 1
    assert capsys.readouterr().err == "emanest: EMANEST_CUDA is 1, and no nvcc was found\n"


def test_cuda_that_fails_is_left_out_with_a_line_or_an_error_if_asked_for(
    tiny, capsys, monkeypatch
):
    def fails(*args):
        raise running.BuildError("nvcc failed with status 1: no such GPU")

    monkeypatch.setattr(compiling.cuda, "compiled", fails)
    monkeypatch.setattr(compiling.cuda, "find_nvcc", lambda: "nvcc")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("EMANEST_CUDA")
    assert build.main([]) == 0
    line = "emanest: without CUDA: nvcc failed with status 1: no such GPU"
    assert line in capsys.readouterr().out.splitlines()
    monkeypatch.setenv("EMANEST_CUDA", "1")
    assert build.main(["--force"]) == 1
    assert capsys.readouterr().err == "emanest: nvcc failed with status 1: no such GPU\n"


def test_what_runs_at_once_can_be_limited(monkeypatch):
    monkeypatch.setenv("MAX_JOBS", "1")
    active, most = [], []

    def work():
        active.append(1)
        most.append(len(active))
        threading.Event().wait(0.01)
        active.pop()

    running.run_all(dict.fromkeys("abc", work), lambda line: None)
    assert most == [1, 1, 1]


def test_after_a_failure_nothing_more_begins(monkeypatch):
    monkeypatch.setenv("MAX_JOBS", "1")
    begun = []

    def fails():
        begun.append(1)
        threading.Event().wait(0.05)
        raise running.BuildError("no")

    with pytest.raises(running.BuildError, match="no"):
        running.run_all(dict.fromkeys("abcd", fails), lambda line: None)
    assert len(begun) <= 2
