// The CUDA back end. Nothing here needs torch, or a GPU before the first call.
#include <cuda_runtime.h>

#include <limits>

#include "cuda.h"

namespace emanest::cuda {
namespace {

// the argument stays where launches put it: a copy of it would not fit into registers
template <class Kernel>
__global__ void __launch_bounds__(device::kThreads, 4) run(const __grid_constant__ Kernel kernel) {
  kernel(blockIdx.x, int(threadIdx.x));
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would report it again
  throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

class Launch {
 public:
  explicit Launch(Place place) : stream_(static_cast<cudaStream_t>(place.stream)) {
    // the caller has chosen the device in torch's copy of the CUDA runtime, this is another one
    check(cudaSetDevice(place.device), "no device");
  }

  bool capturing() const {
    cudaStreamCaptureStatus status;
    check(cudaStreamIsCapturing(stream_, &status), "no stream");
    return status != cudaStreamCaptureStatusNone;
  }

  template <class Kernel>
  void operator()(const Kernel& kernel, int64_t blocks) const {
    static_assert(sizeof(Kernel) <= 4096, "more does not fit into the arguments of a launch");
    if (blocks > std::numeric_limits<int>::max()) throw std::length_error("too many chunks");
    run<<<unsigned(blocks), device::kThreads, 0, stream_>>>(kernel);
    check(cudaGetLastError(), "a launch failed");
  }

 private:
  cudaStream_t stream_;
};

}  // namespace

void step(const Base& base, const Lookahead& lookahead, const Bucket& bucket,
          const device::Call& call, Place place) {
  device::step(base, lookahead, bucket, call, Launch(place));
}

void follow(const Lookahead& lookahead, const Bucket& bucket, const device::Call& call,
            Place place) {
  device::follow(lookahead, bucket, call, Launch(place));
}

void move(const Point& point, const Bucket& bucket, const device::Call& call, Place place) {
  device::move(point, bucket, call, Launch(place));
}

void momentum(const Momentum& rule, const Bucket& bucket, double* squares,
              const device::Call& call, Place place) {
  device::momentum(rule, bucket, squares, call, Launch(place));
}

void rows(const RowRule& rule, const Bucket& bucket, const device::Call& call, Place place) {
  device::rows(rule, bucket, call, Launch(place));
}

void nonfinite(const Bucket& bucket, float* found, const device::Call& call, Place place) {
  device::nonfinite(bucket, found, call, Launch(place));
}

std::vector<int> archs() {
  std::vector<int> found = {__CUDA_ARCH_LIST__};  // nvcc's own, such as 800, 900
  for (int& each : found) each /= 10;
  return found;
}

}  // namespace emanest::cuda
