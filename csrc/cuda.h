// SPDX-License-Identifier: MIT
// The CUDA back end: one launch for a bucket. No torch header: step_cuda.cu needs none.
#pragma once

#include "launches.h"

namespace emanest::cuda {

// out: as on the CPU, but on the device, and for `Nonfinite` 0 before. Errors of CUDA are
// std::runtime_error; nothing has changed then.
void run(const Pass& pass, const Bucket& bucket, void* out, const device::Call& call);

// compute capabilities with machine code of their own, such as 90; empty: built without CUDA
std::vector<int> archs();

}  // namespace emanest::cuda
