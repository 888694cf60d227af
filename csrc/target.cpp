// SPDX-License-Identifier: MIT
#include "target.h"

#include <ATen/ops/empty.h>

#include "gather.h"
#include "storage.h"

namespace emanest {
namespace {

void check_vector(const char* what, const at::Tensor& t, at::Device device, at::ScalarType dtype,
                  size_t size) {
  if (t.device() == device && t.scalar_type() == dtype && t.numel() == int64_t(size) &&
      t.is_contiguous()) {
    return;
  }
  throw std::invalid_argument(std::string(what) + ": expected " + std::to_string(size) + " of " +
                              at::toString(dtype) + " on " + device.str() + ", got " +
                              std::to_string(t.numel()) + " of " + at::toString(t.scalar_type()) +
                              " on " + t.device().str());
}

template <class T>
const T* values(const at::Tensor& t) {
  return t.defined() ? static_cast<const T*>(address(t)) : nullptr;
}

}  // namespace

void* place(const char* what, const at::Tensor& out, at::Device device, at::ScalarType dtype,
            size_t size) {
  if (!out.defined()) throw std::invalid_argument(std::string(what) + ": expected a tensor");
  check_vector(what, out, device, dtype, size);
  return address(out);
}

Target::Target(std::vector<double> numbers, at::Tensor vector, std::vector<int64_t> begins,
               at::Tensor skip, std::shared_ptr<device::Tables> tables, intptr_t stream)
    : numbers_(std::move(numbers)),
      begins_(std::move(begins)),
      vector_(std::move(vector)),
      skip_(std::move(skip)),
      tables_(std::move(tables)),
      stream_(stream) {}

void Target::check(at::Device device, size_t numbers) const {
  if (!on_gpu() && !device.is_cpu()) {
    throw std::invalid_argument("expected tensors on the CPU, got " + device.str());
  }
  if (vector_.defined()) check_vector("numbers", vector_, device, at::kDouble, numbers);
  else check_count("numbers", numbers_.size(), numbers);
  if (skip_.defined()) check_vector("skip", skip_, device, at::kFloat, 1);
}

bool Target::skipped() const {
  return !on_gpu() && skip_.defined() && *values<float>(skip_) != 0;
}

const double* Target::numbers() const {
  return vector_.defined() ? values<double>(vector_) : numbers_.data();
}

void Target::distribute(Bucket& bucket) const {
  if (begins_.empty()) return;
  check_count("beginnings of numbers", begins_.size(), bucket.tensors.size());
  for (size_t i = 0; i < begins_.size(); i++) bucket.tensors[i].numbers = begins_[i];
}

device::Call Target::call(at::Device device) const {
  // freed in the order of the stream, which is the one that torch is using
  const auto allocate = [device](size_t bytes) {
    const auto options = at::TensorOptions().dtype(at::kByte).device(device);
    auto memory = std::make_shared<at::Tensor>(at::empty({int64_t(bytes)}, options));
    return device::Memory(memory, memory->data_ptr());
  };
  return {*tables_, allocate, numbers_.data(), values<double>(vector_), values<float>(skip_),
          device.index(), reinterpret_cast<void*>(stream_)};
}

}  // namespace emanest
