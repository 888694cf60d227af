// What is in the extension.
#include <pybind11/stl.h>

#include "bindings.h"
#include "cuda.h"

namespace py = pybind11;

namespace emanest {
namespace {

// A table as Python's rules.py has it: name -> (state tensors, numbers).
template <class... Rules>
py::dict describe(const std::variant<Rules...>&) {
  py::dict rows;
  ((rows[Rules::name] = std::pair(Rules::states, Rules::numbers)), ...);
  return rows;
}

py::dict rules() {
  py::dict tables;
  tables["BASES"] = describe(Base());
  tables["MOMENTA"] = describe(Momentum());
  tables["NORMS"] = describe(Norm());
  tables["ROWS"] = describe(RowRule());
  tables["LOOKAHEADS"] = describe(Lookahead());
  tables["POINTS"] = describe(Point());
  return tables;
}

#ifdef __clang__
constexpr const char* kCompiler = "clang " __VERSION__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif

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
  m.def("rules", &rules);
  m.def("build_info", &build_info);
}

}  // namespace emanest
