// SPDX-License-Identifier: MIT
// Where a call runs, and what it is given there besides lists of tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "cuda.h"

namespace emanest {

// Where a call leaves what it finds. An error unless `out` is a tensor of so many of a dtype there.
void* place(const char* what, const at::Tensor& out, at::Device device, at::ScalarType dtype,
            size_t size);

class Target {
 public:
  // numbers: floats, or, if it is defined, a float64 vector on the device. begins: none, or for each
  // tensor how far from that vector's its own numbers begin. skip: undefined, or one float32 there
  // that is 0 unless nothing shall happen. On a GPU also what the caller keeps from call to call, and
  // the stream.
  Target(std::vector<double> numbers, at::Tensor vector, std::vector<int64_t> begins,
         at::Tensor skip, std::shared_ptr<device::Tables> tables, intptr_t stream);

  // An error unless it has so many numbers and all is on that device.
  void check(at::Device device, size_t numbers) const;

  bool on_gpu() const { return tables_ != nullptr; }
  // On the CPU, where `skip` can be read.
  bool skipped() const;
  const double* numbers() const;
  // Tells each tensor of a bucket where its numbers begin.
  void distribute(Bucket& bucket) const;
  device::Call call(at::Device device) const;

 private:
  std::vector<double> numbers_;
  std::vector<int64_t> begins_;
  at::Tensor vector_, skip_;
  std::shared_ptr<device::Tables> tables_;
  intptr_t stream_;
};

}  // namespace emanest
