// SPDX-License-Identifier: MIT
// Whether a tensor's values are where its address says.
#pragma once

#include <ATen/core/Tensor.h>

#include <exception>

namespace emanest {

// Thrown for a tensor that `in_storage` refuses; Python gets what emanest/backends/storage.py raises for it.
struct NotInStorage : std::exception {
  explicit NotInStorage(const at::Tensor& t) : tensor(t) {}
  const char* what() const noexcept override { return "a tensor's values are not in its storage"; }
  at::Tensor tensor;
};

// Whether a tensor is of a class with a __torch_dispatch__, which decides what it holds.
inline bool is_subclass(const at::Tensor& t) {
  return t.unsafeGetTensorImpl()->is_python_dispatch();
}

// As emanest/backends/storage.py has it, of tensors that are strided.
inline bool in_storage(const at::Tensor& t) {
  if (is_subclass(t)) return false;
  if (!t.has_storage()) return t.numel() == 0;
  // not data_ptr(), which adds an offset to what may be null
  return t.storage().unsafeGetStorageImpl()->_mutable_data_ptr_no_checks().get() || !t.numel();
}

// The address of a tensor's values.
inline void* address(const at::Tensor& t) {
  if (!in_storage(t)) throw NotInStorage(t);
  return t.data_ptr();
}

}  // namespace emanest
