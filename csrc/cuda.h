// The CUDA back end: one launch for a bucket. No torch header: step_cuda.cu needs none.
#pragma once

#include "calls.h"

namespace emanest::cuda {

// Where kernels are launched.
struct Place {
  int device;
  void* stream;
};

// Errors of CUDA are std::runtime_error; nothing has changed then.
void step(const Base& base, const Lookahead& lookahead, const Bucket& bucket,
          const device::Call& call, Place place);
void follow(const Lookahead& lookahead, const Bucket& bucket, const device::Call& call,
            Place place);
void move(const Point& point, const Bucket& bucket, const device::Call& call, Place place);
// squares: on the device, one for each tensor
void momentum(const Momentum& rule, const Bucket& bucket, double* squares,
              const device::Call& call, Place place);
void rows(const RowRule& rule, const Bucket& bucket, const device::Call& call, Place place);
// sets `found`, on the device, to 1 if a gradient holds NaN or an infinity
void nonfinite(const Bucket& bucket, float* found, const device::Call& call, Place place);

// compute capabilities with machine code of their own, such as 90; empty: built without CUDA
std::vector<int> archs();

}  // namespace emanest::cuda
