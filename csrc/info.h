// SPDX-License-Identifier: MIT
// How the extension was built.
#pragma once

#include <string>
#include <vector>

namespace emanest {

extern const char* const kCompiler;
// of C++
extern const long kStandard;
// of sources, flags and what it was built for, as emanest/extension/sources.py finds it
extern const char* const kHash;
extern const char* const kBuiltFor;
// kinds of CPU that loops are compiled for
const std::vector<std::string>& targets();
// The kind that this CPU takes, by the rule of `target_clones`.
std::string chosen_target();

}  // namespace emanest
