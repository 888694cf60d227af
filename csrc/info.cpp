// How the extension was built.
#include <pybind11/stl.h>

#include "bindings.h"
#include "cuda.h"

namespace py = pybind11;

namespace emanest {
namespace {

#ifdef __clang__
constexpr const char* kCompiler = "clang " __VERSION__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif

// In one piece: emanest/extension/sources.py looks for it in the file, without loading it.
__attribute__((used)) const char kBuild[] = "emanest-build:" EMANEST_HASH ":" EMANEST_TORCH ":";

const std::vector<std::string> kTargets = {EMANEST_TARGETS};

// The target that this CPU takes, by the rule of `target_clones`.
std::string chosen() {
#ifdef __x86_64__
  __builtin_cpu_init();
  if (kTargets.size() > 1 && __builtin_cpu_supports("x86-64-v4")) return kTargets[2];
  if (kTargets.size() > 1 && __builtin_cpu_supports("x86-64-v3")) return kTargets[1];
#endif
  return kTargets[0];
}

py::dict build_info() {
  py::dict info;
  info["hash"] = EMANEST_HASH;
  info["built_for"] = "torch " EMANEST_TORCH;
  info["cuda"] = !cuda::archs().empty();
  info["cuda_archs"] = cuda::archs();
  info["compiler"] = kCompiler;
  info["standard"] = __cplusplus;
  info["vector_widths"] = kTargets;
  info["chosen"] = chosen();
  return info;
}

}  // namespace

void bind_info(py::module_& m) {
  m.def("build_info", &build_info);
}

}  // namespace emanest
