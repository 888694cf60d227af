// SPDX-License-Identifier: MIT
// What stands in for step_cuda.cu where there is no nvcc.
#include <stdexcept>

#include "cuda.h"

namespace emanest::cuda {

void run(const Pass&, const Bucket&, void*, const device::Call&) {
  throw std::runtime_error("the extension was built without CUDA; its build said why");
}

std::vector<int> archs() { return {}; }

}  // namespace emanest::cuda
