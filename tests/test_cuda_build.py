# SPDX-License-Identifier: MIT
"""What is in the extension that is imported here, and how its CUDA part is built."""

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch

from emanest.extension import compiling, cuda, running, sources
from emanest.rules import BASES, LOOKAHEADS, MOMENTA, POINTS, ROWS

ROOT = Path(__file__).parents[1]

cpp = pytest.importorskip("emanest.backends.cpp", exc_type=ImportError)
_C = cpp._C


def cuobjdump():
    """The disassembler of CUDA; Triton brings one."""
    beside = [os.path.dirname(path) for path in (cuda.find_nvcc(),) if path]
    try:
        import triton.backends.nvidia as nvidia

        beside.append(os.path.join(os.path.dirname(nvidia.__file__), "bin"))
    except ImportError:
        pass
    return shutil.which("cuobjdump", path=os.pathsep.join([os.environ.get("PATH", ""), *beside]))


needs_cuda = pytest.mark.skipif(not _C.build_info()["cuda"], reason="built without CUDA")
needs_objdump = pytest.mark.skipif(
    len(_C.build_info()["vector_widths"]) == 1 or not shutil.which("objdump"),
    reason="built for one kind of CPU, or there is no objdump",
)
needs_cuobjdump = pytest.mark.skipif(cuobjdump() is None, reason="there is no cuobjdump")


# ---- the extension ------------------------------------------------------------------------------


@cache
def dumped(*options):
    command = [cuobjdump(), *options, _C.__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_what_was_built_can_be_asked():
    info = _C.build_info()
    assert info["cuda"] == bool(info["cuda_archs"])
    assert re.match(r"(gcc|clang) \d+\.\d+", info["compiler"])
    assert info["chosen"] in info["vector_widths"]
    assert info["vector_widths"][0] == "default"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="there is no /proc/cpuinfo")
def test_the_widest_vectors_of_this_cpu_are_chosen():
    info, flags = _C.build_info(), Path("/proc/cpuinfo").read_text()
    level = 4 if "avx512vl" in flags else 3 if "avx2" in flags else None
    if len(info["vector_widths"]) > 1:
        assert info["chosen"] == (f"arch=x86-64-v{level}" if level else "default")


# registers as wide as each kind of CPU has them
VECTORS = {"default": "%xmm", "arch_x86_64_v3": "%[yz]mm", "arch_x86_64_v4": "%[yz]mm"}


@cache
def disassembled():
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", _C.__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@needs_objdump
def test_the_next_tensor_is_fetched_while_one_is_worked_on():
    """A function that only fetches does nothing that compilers know of, and they leave it out."""
    assert "\tprefetcht0" in disassembled()


@needs_objdump
def test_every_loop_over_elements_is_in_vectors_for_every_kind_of_cpu():
    text = disassembled()
    head = r"^\w+ <.* emanest::cpu::.*::(\w*loop<.*>)\(.*\[clone \.(default|arch_\w+)\]>:\n"
    loops = re.findall(head + r"((?:.+\n)+)", text, re.MULTILINE)
    if not loops:
        pytest.skip("the extension is stripped of its symbols")
    passes = len(BASES) * len(LOOKAHEADS) + len(LOOKAHEADS) + len(POINTS) + len(MOMENTA)
    assert sum(name.startswith("loop<") for name, *_ in loops) == 2 * len(VECTORS) * passes
    arithmetic = r"\tv?(?:add|sub|mul|div|sqrt)"
    scalar = {
        (name, target)
        for name, target, code in loops
        if re.search(arithmetic + r"s[sd] ", code)
        and not re.search(arithmetic + rf"p[sd] .*{VECTORS[target]}", code)
    }
    # SSE2 has no conversion that gcc would take for the result of comparing doubles
    amsgrad = {each for each in scalar if "<double, emanest::bases::amsgrad," in each[0]}
    assert scalar - amsgrad == set()
    assert {target for _, target in amsgrad} <= {"default"}


@pytest.mark.parametrize(
    ("has_cuda", "cuda_version", "devices"),
    [
        (True, "13.0", ("cpu", "cuda")),
        # of the torch for CPUs, and for ROCm, which calls its devices "cuda" too
        (True, None, ("cpu",)),
        (False, "13.0", ("cpu",)),
    ],
)
def test_gpus_are_served_if_the_extension_and_torch_have_cuda(has_cuda, cuda_version, devices):
    assert cpp._devices(has_cuda, cuda_version) == devices


@pytest.mark.skipif(
    cuda.reason_against(torch.version.cuda) is not None,
    reason=f"{cuda.reason_against(torch.version.cuda)}",
)
def test_where_nvcc_is_the_extension_has_cuda():
    assert _C.build_info()["cuda"]
    assert _C.build_info()["cuda_archs"] == [80, 90]


@needs_cuda
def test_no_library_of_cuda_is_needed_to_import_it():
    """Nor does it share symbols with the CUDA runtime of torch."""
    needed = subprocess.run(["readelf", "-d", _C.__file__], capture_output=True, text=True).stdout
    assert "NEEDED" in needed
    assert not re.search(r"NEEDED.*cuda", needed)
    symbols = subprocess.run(["nm", "-D", _C.__file__], capture_output=True, text=True).stdout
    assert "PyInit__C" in symbols
    assert not re.search(r" (cuda|__cuda)\w+", symbols)


@needs_cuda
@needs_cuobjdump
def test_machine_code_is_there_for_both_architectures_and_ptx_for_newer_ones():
    assert set(re.findall(r"sm_\d+", dumped("--list-elf"))) == {"sm_80", "sm_90"}
    assert set(re.findall(r"sm_\d+", dumped("--list-ptx"))) == {"sm_90"}


@cache
def resources():
    """(architecture, kernel, what it takes) of every kernel."""
    found, arch = [], None
    for line in dumped("--dump-resource-usage").splitlines():
        if match := re.search(r"arch = (sm_\d+)", line):
            arch = match[1]
        elif match := re.search(r"Function (\S+):", line):
            name = match[1]
        elif "REG:" in line:
            found.append((arch, name, dict(re.findall(r"(\w+):(\d+)", line))))
    return found


@needs_cuda
@needs_cuobjdump
def test_no_kernel_spills():
    # every pair, every lookahead that follows, every point, the momentum pass, two for rows, in two
    # types; two for the table, nonfinite, three for sums
    steps = len(BASES) * len(LOOKAHEADS)
    typed = steps + len(LOOKAHEADS) + len(POINTS) + len(MOMENTA) + 2 * len(ROWS)
    assert len(resources()) == 2 * (2 * typed + 6)
    for arch, name, usage in resources():
        assert (usage["STACK"], usage["LOCAL"]) == ("0", "0"), (arch, name)
        # four blocks of 256 threads fit into a multiprocessor
        assert int(usage["REG"]) <= 64, (arch, name)


@needs_cuda
@needs_cuobjdump
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_float32_streams_are_read_and_written_16_bytes_at_a_time(arch):
    """In AdamW with EMA-Nesterov: four are read and written, the gradient is read."""
    names = [
        n for a, n, _ in resources() if a == arch and re.search(r"StepIfN.*5adamw.*12ema_nes", n)
    ]
    text = dumped("--dump-sass", "--gpu-architecture", arch, "--function", *names)
    assert len(names) == 1
    # and the chunk, which has 16 bytes; addresses and the like are read two at a time
    assert len(re.findall(r"\bLDG\.E\.128\b", text)) == 5 + 1 + 3
    assert len(re.findall(r"\bSTG\.E\.128\b", text)) == 4
    # narrow parameters and gradients, half as wide
    assert re.search(r"\bSTG\.E\.64\b", text)
    assert not re.search(r"\b(LDL|STL|LD\.E|ST\.E|FFMA\.FTZ)\b", text)


# ---- how it is built ----------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder with sources; nothing of CUDA is found."""
    (tmp_path / "csrc").mkdir()
    for name in ("step_cuda.cu", "rules.h"):
        (tmp_path / "csrc" / name).write_text("")
    for name in ("EMANEST_CUDA", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    use(monkeypatch, None)
    return tmp_path


def fake_nvcc(folder, body):
    """A shell script in place of nvcc, which writes down how it is called."""
    path = folder / "bin" / "nvcc"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n{body}\n')
    path.chmod(0o755)
    return str(path)


WORKS = """
case "$1" in --dryrun) echo '#$ LIBRARIES=  "-L/a b/stubs" "-L/a b/lib"' >&2;; *) ;; esac
for last; do :; done
[ "$last" = /dev/null ] || echo object > "$last"
"""


def use(monkeypatch, nvcc):
    monkeypatch.setattr(cuda, "find_nvcc", lambda: nvcc)


def compile_in(folder):
    csrc = folder / "csrc"
    headers = [path for path in sources.files(csrc) if path.suffix == ".h"]
    return cuda.compiled(csrc, folder / "build" / "step_cuda.o", headers)


def calls(folder):
    return (folder / "calls").read_text().splitlines()


def test_the_command_line():
    command = cuda.nvcc_command("/cuda/bin/nvcc", "a.cu", "a.o")
    assert command[0] == "/cuda/bin/nvcc"
    assert command[-4:] == ["-c", "a.cu", "-o", "a.o"]
    assert [option for option in command if option.startswith("-gencode")] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    # as eager and C++ compute
    assert {"-fmad=false", "-prec-div=true", "-prec-sqrt=true", "-ftz=false"} <= set(command)
    assert "--use_fast_math" not in command


def test_the_runtime_is_linked_statically_and_kept_private(elsewhere):
    args = cuda.runtime_link_args(fake_nvcc(elsewhere, WORKS))
    assert args[:2] == ["-L/a b/stubs", "-L/a b/lib"]
    assert "-l:libcudart_static.a" in args
    assert "-Wl,--exclude-libs,libcudart_static.a" in args


def compilations(folder):
    return sum(" -c step_cuda.cu" in call for call in calls(folder))


def aged(path, record, seconds):
    """Change when a file was written."""
    then = os.path.getmtime(record) - seconds
    os.utime(path, (then, then))


def test_it_is_compiled_again_only_if_something_changed(elsewhere, monkeypatch):
    use(monkeypatch, fake_nvcc(elsewhere, WORKS))
    header, record = elsewhere / "csrc" / "number.h", elsewhere / "build" / "step_cuda.made_of"
    changes = {
        "at first": (lambda: None, 1),
        "nothing": (lambda: None, 0),
        "there is a new one": (lambda: header.write_text("a"), 1),
        # one that git or tar brings back has the time that it had
        "it holds something else, and is old": (
            lambda: (header.write_text("b"), aged(header, record, 20)),
            1,
        ),
        "it is gone": (header.unlink, 1),
        "the source holds something else": (
            lambda: (elsewhere / "csrc" / "step_cuda.cu").write_text("c"),
            1,
        ),
        "the object is gone": (record.with_suffix(".o").unlink, 1),
        "another command": (lambda: monkeypatch.setattr(cuda, "CUDA_FLAGS", ["-O1"]), 1),
        "a header is touched": (lambda: aged(elsewhere / "csrc" / "rules.h", record, -10), 0),
    }
    found, before = {}, 0
    for what, (change, _) in changes.items():
        change()
        compile_in(elsewhere)
        found[what], before = compilations(elsewhere) - before, compilations(elsewhere)
    assert found == {what: count for what, (_, count) in changes.items()}


def test_a_failure_is_not_taken_for_an_object(elsewhere, monkeypatch):
    use(monkeypatch, fake_nvcc(elsewhere, WORKS + "[ $1 = --dryrun ] || exit 1"))
    for _ in range(2):
        with pytest.raises(running.BuildError, match="nvcc failed"):
            compile_in(elsewhere)
    assert compilations(elsewhere) == 2


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "echo 'a.cu(3): error: no such thing' >&2\necho '1 error detected' >&2\nexit 2",
            "nvcc failed with status 2: a.cu(3): error: no such thing",
        ),
        ("exit 1", "nvcc failed with status 1: it says nothing"),
        ("#", "nvcc --dryrun names no LIBRARIES"),
    ],
)
def test_why_nvcc_does_not_work_is_one_line(elsewhere, monkeypatch, body, reason):
    use(monkeypatch, fake_nvcc(elsewhere, body))
    with pytest.raises(running.BuildError) as raised:
        compile_in(elsewhere)
    assert str(raised.value) == reason


@pytest.mark.parametrize(
    ("asked", "of_torch", "nvcc", "against"),
    [
        (None, "13.0", "nvcc", None),
        (None, "13.0", None, "no nvcc was found"),
        # minutes, for what this torch never uses
        (None, None, "nvcc", "this torch has none; EMANEST_CUDA=1 asks for it"),
        ("", None, "nvcc", "this torch has none; EMANEST_CUDA=1 asks for it"),
        ("1", None, "nvcc", None),
        ("1", None, None, "no nvcc was found"),
        ("0", "13.0", "nvcc", "EMANEST_CUDA is 0"),
    ],
)
def test_cuda_is_built_where_torch_has_it_or_it_is_asked_for(
    elsewhere, monkeypatch, asked, of_torch, nvcc, against
):
    use(monkeypatch, nvcc)
    if asked is not None:
        monkeypatch.setenv("EMANEST_CUDA", asked)
    assert cuda.reason_against(of_torch) == against


def test_nvcc_is_found_on_the_path_and_where_cuda_is_said_to_be(tmp_path, monkeypatch):
    nvcc = fake_nvcc(tmp_path, "")
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
        monkeypatch.setenv("PATH", "")
        assert cuda.find_nvcc() == nvcc
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert cuda.find_nvcc() == nvcc


def included(source):
    """The headers that a source includes, and that those include."""
    seen, todo = set(), [source]
    while todo:
        text = (ROOT / "csrc" / todo.pop()).read_text()
        for name in re.findall(r'#include ["<]([^">]+)', text):
            if (ROOT / "csrc" / name).exists() and name not in seen:
                todo.append(name)
            seen.add(name)
    return seen


def test_no_torch_header_is_read_by_the_cuda_source():
    seen = included("step_cuda.cu")
    assert "rules.h" in seen
    assert not [name for name in seen if re.match(r"(torch|ATen|c10|pybind11)/", name)]


@pytest.mark.parametrize(
    ("header", "sources"),
    [
        ("torch/csrc/autograd/python_variable.h", {"bindings.cpp"}),
        ("pybind11/pybind11.h", {"bindings.cpp", "guards.cpp"}),
        ("ATen/Functions.h", set()),
        ("torch/extension.h", set()),
    ],
)
def test_headers_that_take_seconds_are_read_by_few(header, sources):
    """More than half of a build was the same few headers, read again by every file."""
    every = sorted((ROOT / "csrc").glob("*.cpp"))
    assert {path.name for path in every if header in included(path.name)} == sources


def test_all_of_csrc_is_cpp_17():
    """As it is built; with a torch whose headers are not, what reads none of them but a loop's."""
    if sources.standard(torch.__version__) == "-std=c++17":
        assert _C.build_info()["standard"] == 201703
        return
    ours = [path for path in sorted((ROOT / "csrc").glob("*.cpp")) if loops_alone(path.name)]
    assert {"cpu.cpp", "info.cpp"} <= {path.name for path in ours}
    macros = [f'-D{name}=""' for name in ("EMANEST_HASH", "EMANEST_TORCH")]
    flags = ["-std=c++17", "-fsyntax-only", *compiling.includes(), *macros]
    subprocess.run([*compiling.compiler(), *flags, *map(str, ours)], check=True)


def loops_alone(source):
    of_torch = {name for name in included(source) if re.match(r"(torch|ATen|c10)/", name)}
    return of_torch <= {"ATen/Parallel.h"}


@pytest.mark.parametrize(
    ("version", "flag"),
    [
        *((version, "-std=c++17") for version in ("2.11.0+cu130", "2.13.0+cpu")),
        *((version, "-std=c++20") for version in ("2.14.0", "2.15.0a0+git1", "3.0.0")),
    ],
)
def test_with_newer_torches_the_standard_is_theirs(version, flag):
    assert sources.standard(version) == flag
