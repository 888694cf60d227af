// SPDX-License-Identifier: MIT
// The CUDA back end. Nothing here needs torch, or a GPU before the first call.
#include <cuda_runtime.h>

#include <limits>
#include <stdexcept>
#include <string>

#include "cuda.h"

namespace emanest::cuda {
namespace {

// the argument stays where launches put it: a copy of it would not fit into registers
template <class Kernel>
__global__ void __launch_bounds__(device::kThreads, 4) kernel(const __grid_constant__ Kernel work) {
  work(blockIdx.x, int(threadIdx.x));
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would report it again
  throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

class Launch {
 public:
  explicit Launch(const device::Call& call) : stream_(static_cast<cudaStream_t>(call.stream)) {
    // the caller has chosen the device in torch's copy of the CUDA runtime, this is another one
    check(cudaSetDevice(call.device), "no device");
  }

  bool capturing() const {
    cudaStreamCaptureStatus status;
    check(cudaStreamIsCapturing(stream_, &status), "no stream");
    return status != cudaStreamCaptureStatusNone;
  }

  template <class Kernel>
  void operator()(const Kernel& work, int64_t blocks) const {
    static_assert(sizeof(Kernel) <= 4096, "more does not fit into the arguments of a launch");
    if (blocks > std::numeric_limits<int>::max()) throw std::length_error("too many chunks");
    kernel<<<unsigned(blocks), device::kThreads, 0, stream_>>>(work);
    check(cudaGetLastError(), "a launch failed");
  }

 private:
  cudaStream_t stream_;
};

}  // namespace

void run(const Pass& pass, const Bucket& bucket, void* out, const device::Call& call) {
  device::run(pass, bucket, out, call, Launch(call));
}

std::vector<int> archs() {
  std::vector<int> found = {__CUDA_ARCH_LIST__};  // nvcc's own, such as 800, 900
  for (int& each : found) each /= 10;
  return found;
}

}  // namespace emanest::cuda
