# SPDX-License-Identifier: MIT
"""What the C++ code has room for follows its tables: a rule larger than all others fits at once."""

import os
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from emanest.backends import eager
from emanest.rules import LOOKAHEADS

CSRC = Path(__file__).parents[1] / "csrc"
GENERATOR = runpy.run_path(str(CSRC / "generate_rules.py"))
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
# an index outside of an array is an illegal instruction
FLAGS = ["-std=c++17", "-O0", "-ffp-contract=off", "-D_GLIBCXX_ASSERTIONS", "-fsanitize=bounds"]
FLAGS += ["-fsanitize-undefined-trap-on-error", "-Wall", "-Werror"]


# with AMSGrad six states and eleven numbers, more than any pair of the library has; no other base
# and no other lookahead, since fewer pairs are compiled sooner
WIDE = """

def wide(w, u, state, numbers):
    '''The largest rule, with all operations that number.h has.'''
    a, b, c = state
    p, q, r, s = numbers
    near = (p >= q) * 1.0 - (p > q) * s + (p <= q) * p / (1.0 + q)
    a = (a - p) * near + u / p
    b = b + (q - a) * (a > q) + (q <= u) * u
    c = c / r + r / (a + 7.0) - (-s) * b
    return w + (s - r) * c, (a, b, c)


BASES = {"amsgrad": BASES["amsgrad"]}
LOOKAHEADS = {"wide": Rule(wide, ("a", "b", "c"), ("p", "q", "r", "s"))}
"""
NUMBERS = [1.0, 0.5, 0.25, 0.125, 0.0625, 1.5, 0.75, 0.5, 0.25, 2.0, 3.0]

# the CPU's loop, with streams of one format and of all four in turn, then a GPU's kernels, each
# from the same values; all that is left is printed
PROGRAM = """
#include <cstdio>
#include <cstdlib>

#include "cpu.h"
#include "launches.h"

using namespace emanest;

struct Launch {
  bool capturing() const { return false; }
  template <class Kernel>
  void operator()(const Kernel& kernel, int64_t blocks) const {
    static_assert(sizeof(Kernel) <= 4096);
    for (int64_t block = 0; block < blocks; block++) {
      for (int thread = 0; thread < device::kThreads; thread++) kernel(block, thread);
    }
  }
};

template <class Run>
void print(Run run, int formats = 1) {
  std::vector<std::vector<float>> values(8);
  for (int k = 0; k < 8; k++) {
    for (int i = 0; i < 50; i++) values[k].push_back(float((i + 1) * (k + 1)) / 64);
  }
  Tensors row{{}, 50};
  double memory[8][50];
  for (int k = 0; k < 8; k++) {
    row.address[k] = memory[k];
    row.dtype[k] = Dtype(k % formats);
    cpu::kFormats<float>[k % formats].narrow(values[k].data(), memory[k], 0, 50);
  }
  run(Bucket{{row}, false});
  for (int k = 0; k < 8; k++) {
    cpu::kFormats<float>[k % formats].widen(memory[k], 0, values[k].data(), 50);
  }
  for (const auto& each : values) {
    for (float value : each) std::printf("%.9g ", value);
  }
}

int main() {
  const std::vector<double> numbers{NUMBERS};
  const PassOf<Step, Base, Lookahead> pass{{bases::amsgrad{}, lookaheads::wide{}}};
  const auto on_cpu = [&](const Bucket& bucket) {
    cpu::run(pass, bucket, numbers.data(), nullptr);
  };
  print(on_cpu);
  print(on_cpu, 4);
  print([&](const Bucket& bucket) {
    device::Tables tables;
    const auto allocate = [](size_t size) { return device::Memory(std::malloc(size), std::free); };
    const device::Call call{tables, allocate, numbers.data(), nullptr, nullptr};
    device::run(pass, bucket, nullptr, call, Launch{});
  });
}
"""
PARALLEL = """
#pragma once
#include <cstdint>
namespace at {
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t, F f) { if (begin < end) f(begin, end); }
}
"""


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_a_lookahead_larger_than_all_others_is_stepped_right(tmp_path, monkeypatch):
    shutil.copytree(CSRC, tmp_path, dirs_exist_ok=True)
    rules = tmp_path / "rules.py"
    rules.write_text(GENERATOR["RULES"].read_text() + WIDE)
    (tmp_path / "rules.h").write_text(GENERATOR["generate"](rules))
    (tmp_path / "ATen").mkdir()
    (tmp_path / "ATen" / "Parallel.h").write_text(PARALLEL)
    (tmp_path / "main.cpp").write_text(PROGRAM.replace("NUMBERS", ", ".join(map(str, NUMBERS))))
    command = [COMPILER, *FLAGS, "-I.", "main.cpp", "cpu.cpp", "-o", "program"]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "program"], capture_output=True, text=True, check=True)
    found = torch.tensor(list(map(float, done.stdout.split()))).view(3, 8, 50)

    monkeypatch.setitem(LOOKAHEADS, "wide", runpy.run_path(str(rules))["LOOKAHEADS"]["wide"])
    formats = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
    for own, each in zip([formats[:1] * 8, formats * 2, formats[:1] * 8], found, strict=True):
        streams = [(torch.arange(1, 51.0) * k / 64).to(f).float() for k, f in enumerate(own, 1)]
        y, g, *state = streams
        columns = [[s] for s in state]
        eager.apply_("step", ("amsgrad", "wide"), [y], [g], columns, NUMBERS, torch.float32)
        expected = [s.to(f).float() for s, f in zip(streams, own, strict=True)]
        assert torch.equal(each, torch.stack(expected))
