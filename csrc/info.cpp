// SPDX-License-Identifier: MIT
#include "info.h"

#include "number.h"

namespace emanest {

#ifdef __clang__
const char* const kCompiler = "clang " __VERSION__;
#else
const char* const kCompiler = "gcc " __VERSION__;
#endif

const long kStandard = __cplusplus;

const char* const kHash = EMANEST_HASH;
const char* const kBuiltFor = "torch " EMANEST_TORCH;
// In one piece: emanest/extension/sources.py looks for it in the file, without loading it.
__attribute__((used)) const char kBuild[] = "emanest-build:" EMANEST_HASH ":" EMANEST_TORCH ":";

const std::vector<std::string>& targets() {
  static const std::vector<std::string> all = {EMANEST_TARGETS};
  return all;
}

std::string chosen_target() {
#ifdef __x86_64__
  __builtin_cpu_init();
  if (targets().size() > 1 && __builtin_cpu_supports("x86-64-v4")) return targets()[2];
  if (targets().size() > 1 && __builtin_cpu_supports("x86-64-v3")) return targets()[1];
#endif
  return targets()[0];
}

}  // namespace emanest
