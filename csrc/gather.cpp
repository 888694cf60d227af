// SPDX-License-Identifier: MIT
#include "gather.h"

#include <ATen/Parallel.h>

#include <atomic>
#include <sstream>

#include "storage.h"
#include "tensors.h"

namespace emanest {
namespace {

// tensors worth a thread: what is asked of one takes about 40 ns, a thread's start 20 us and more
constexpr int64_t kGrain = 512;

// by the C API: pybind11's accessor of list elements costs more than all the rest of `gather`
const at::Tensor& tensor(Column list, size_t i) {
  return unpack(PyList_GET_ITEM(list.ptr(), Py_ssize_t(i)));
}

std::optional<Dtype> dtype_of(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat: return Dtype::float32;
    case at::kDouble: return Dtype::float64;
    case at::kBFloat16: return Dtype::bfloat16;
    case at::kHalf: return Dtype::float16;
    default: return std::nullopt;
  }
}

// Whether two tensors hold their elements in the same order without gaps, so that one index serves
// both, and as they are, not with a pending negation. The stride of a dimension of size 1 does not
// matter.
bool aligned(const at::Tensor& a, const at::Tensor& b) {
  if (b.is_neg()) return false;
  if (a.is_contiguous() && b.is_contiguous()) return a.sizes() == b.sizes();
  if (a.sizes() != b.sizes() || !a.is_non_overlapping_and_dense()) return false;
  for (int64_t i = 0; i < a.dim(); i++) {
    if (a.size(i) != 1 && a.stride(i) != b.stride(i)) return false;
  }
  return true;
}

// Whether a matrix, or the values of its rows, lie one after another, and as they are.
bool fits_rows(const at::Tensor& matrix, const at::Tensor& t, int stream) {
  if (matrix.dim() != 2) throw std::invalid_argument("expected matrices");
  if (stream != kY && t.numel() != matrix.size(0)) {
    throw std::invalid_argument("expected a value for each of " + std::to_string(matrix.size(0)) +
                                " rows, got " + std::to_string(t.numel()));
  }
  return t.is_contiguous() && !t.is_neg();
}

void check_device(const at::Tensor& t, at::Device expected) {
  if (t.device() == expected) return;
  throw std::runtime_error("tensors of one call are on " + expected.str() + " and on " +
                           t.device().str());
}

// Whether so many scales are one in all, or one for each index of the first few dimensions.
bool counts_rows(int64_t count, at::IntArrayRef sizes) {
  int64_t rows = 1;
  for (size_t i = 0; rows != count && i < sizes.size(); i++) rows *= sizes[i];
  return rows == count;
}

void check_scales(const at::Tensor& t, at::Device device, at::ScalarType dtype,
                  at::IntArrayRef sizes) {
  check_device(t, device);
  if (t.scalar_type() == dtype && t.is_contiguous() && counts_rows(t.numel(), sizes)) return;
  std::ostringstream message;
  message << "scales of a parameter of sizes " << sizes << ": expected 1, or one for each index of "
          << "its first dimensions, of " << dtype << ", got " << t.numel() << " of "
          << t.scalar_type();
  throw std::invalid_argument(message.str());
}

}  // namespace

void check_count(const char* what, size_t found, size_t expected) {
  if (found == expected) return;
  throw std::invalid_argument("expected " + std::to_string(expected) + " " + what + ", got " +
                              std::to_string(found));
}

std::optional<Bucket> gather(const Use& use, Columns columns, bool in_double, Column scales) {
  const Set used = use.reads | use.writes;
  const Column likes = columns[use.first()];
  const bool scaled = use.by_rows || !scales.empty();
  if (scaled) check_count("scales", scales.size(), likes.size());
  for (int k = 0; k < use.streams; k++) {
    check_count(k == kInput ? "inputs" : "tensors of a column", columns[k].size(),
                has(used, k) ? likes.size() : 0);
  }
  const auto wide = in_double ? at::kDouble : at::kFloat;
  const at::Device device = device_of(likes);
  Bucket bucket{std::vector<Tensors>(likes.size()), in_double};
  // of a tensor's references Python's lock takes care, which threads do not have: none throws one
  std::atomic<const at::Tensor*> elsewhere{nullptr};
  const auto here = [&](const at::Tensor& t) {
    // of such a class the device, too, may be a question to Python
    if (!is_subclass(t)) check_device(t, device);
    const bool found = in_storage(t);
    if (!found) elsewhere = &t;
    return found;
  };
  const auto fill = [&](size_t i) {
    const at::Tensor& like = tensor(likes, i);
    Tensors& row = bucket.tensors[i];
    for (int k = 0; k < use.streams; k++) {
      if (!has(used, k)) continue;
      const at::Tensor& t = tensor(columns[k], i);
      if (!here(t)) return false;
      row.address[k] = t.data_ptr();
      const bool fits = use.by_rows ? fits_rows(like, t, k) : aligned(like, t);
      const auto dtype = dtype_of(t);
      if (!fits || !dtype || (has(use.plain, k) && t.scalar_type() != wide)) return false;
      row.dtype[k] = *dtype;
    }
    row.size = use.by_rows ? like.size(0) : like.numel();
    if (scaled) {
      const at::Tensor& s = tensor(scales, i);
      if (!here(s)) return false;
      check_scales(s, device, wide, use.by_rows ? at::IntArrayRef() : like.sizes());
      row.scales = s.data_ptr();
      row.run = use.by_rows ? like.size(1)
                            : std::max<int64_t>(1, s.numel() ? like.numel() / s.numel() : 0);
    }
    return true;
  };
  // the lists are read without Python's lock, which this call holds for all of its threads
  std::atomic<bool> fits{true};
  at::parallel_for(0, int64_t(likes.size()), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end && fits.load(std::memory_order_relaxed); i++) {
      if (!fill(size_t(i))) fits = false;
    }
  });
  if (elsewhere) throw NotInStorage(*elsewhere);
  return fits ? std::optional(std::move(bucket)) : std::nullopt;
}

void count_writes(Column tensors) {
  at::parallel_for(0, int64_t(tensors.size()), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      tensor(tensors, size_t(i)).unsafeGetTensorImpl()->bump_version();
    }
  });
}

at::Device device_of(Column tensors) {
  return tensors.empty() ? at::Device(at::kCPU) : tensor(tensors, 0).device();
}

}  // namespace emanest
