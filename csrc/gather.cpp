#include "gather.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/python_variable.h>

#include <atomic>
#include <sstream>

#include "storage.h"

namespace emanest {
namespace {

// tensors worth a thread: what is asked of one takes about 40 ns, a thread's start 20 us and more
constexpr int64_t kGrain = 512;

// by the C API: pybind11's accessor of list elements costs more than all the rest of `gather`
const at::Tensor& tensor(Column list, size_t i) {
  return THPVariable_Unpack(PyList_GET_ITEM(list.ptr(), Py_ssize_t(i)));
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

void check_device(const at::Tensor& t, at::Device expected) {
  // of such a class the device, too, may be a question to Python, whose lock a thread does not have
  if (is_subclass(t)) throw NotInStorage(t);
  if (t.device() == expected) return;
  throw std::runtime_error("tensors of one call are on " + expected.str() + " and on " +
                           t.device().str());
}

void* address_on(const at::Tensor& t, at::Device device) {
  check_device(t, device);
  return address(t);
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

std::optional<Bucket> gather(Column ys, Column input, Columns state, bool in_double,
                             Column scales) {
  const bool alone = input.empty(), scaled = !scales.empty();
  if (scaled) check_count("scales", scales.size(), ys.size());
  for (Column column : state) check_count("tensors of state", column.size(), ys.size());
  if (ys.empty()) return Bucket{{}, Dtype::float32, in_double};
  const auto wide = in_double ? at::kDouble : at::kFloat;
  const at::Device device = device_of(ys);
  const auto first = dtype_of(tensor(ys, 0));
  if (!first) return std::nullopt;
  Bucket bucket{std::vector<Tensors>(ys.size()), *first, in_double};
  const auto fill = [&](size_t i) {
    const at::Tensor& y = tensor(ys, i);
    Tensors& row = bucket.tensors[i];
    row = {address_on(y, device), nullptr, {}, y.numel(), Dtype::float32};
    if (dtype_of(y) != first || !aligned(y, y)) return false;
    if (scaled) {
      const at::Tensor& s = tensor(scales, i);
      check_scales(s, device, wide, y.sizes());
      row.scales = address(s);
      row.run = std::max<int64_t>(1, s.numel() ? y.numel() / s.numel() : 0);
    }
    if (!alone) {
      const at::Tensor& g = tensor(input, i);
      row.input = address_on(g, device);
      const auto g_dtype = dtype_of(g);
      if (!g_dtype || !aligned(y, g)) return false;
      row.input_dtype = *g_dtype;
    }
    for (size_t k = 0; k < state.size(); k++) {
      const at::Tensor& s = tensor(state[k], i);
      row.state[k] = address_on(s, device);
      if (s.scalar_type() != wide || !aligned(y, s)) return false;
    }
    return true;
  };
  // the lists are read without Python's lock, which this call holds for all of its threads
  std::atomic<bool> fits{true};
  at::parallel_for(0, int64_t(ys.size()), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end && fits.load(std::memory_order_relaxed); i++) {
      if (!fill(size_t(i))) fits = false;
    }
  });
  return fits ? std::optional(std::move(bucket)) : std::nullopt;
}

std::optional<Bucket> gather_rows(Column matrices, Columns columns, bool in_double,
                                  Column scales) {
  check_count("scales", scales.size(), matrices.size());
  for (Column column : columns) check_count("tensors of a column", column.size(), matrices.size());
  Bucket bucket{{}, Dtype::float32, in_double};
  const auto wide = in_double ? at::kDouble : at::kFloat;
  for (size_t i = 0; i < matrices.size(); i++) {
    const at::Tensor& matrix = tensor(matrices, i);
    const auto dtype = dtype_of(matrix);
    if (matrix.dim() != 2) throw std::invalid_argument("expected matrices");
    if (!dtype || !matrix.is_contiguous() || matrix.is_neg()) return std::nullopt;
    const int64_t rows = matrix.size(0);
    check_scales(tensor(scales, i), matrix.device(), wide, {});
    Tensors row{address(matrix), nullptr, {}, rows, Dtype::float32};
    row.scales = address(tensor(scales, i));
    row.run = matrix.size(1);
    for (size_t k = 0; k < columns.size(); k++) {
      const at::Tensor& s = tensor(columns[k], i);
      row.state[k] = address_on(s, matrix.device());
      if (s.numel() != rows) {
        throw std::invalid_argument("expected a value for each of " + std::to_string(rows) +
                                    " rows, got " + std::to_string(s.numel()));
      }
      if (s.scalar_type() != wide || !s.is_contiguous() || s.is_neg()) return std::nullopt;
    }
    if (i > 0 && *dtype != bucket.y_dtype) return std::nullopt;
    bucket.y_dtype = *dtype;
    bucket.tensors.push_back(row);
  }
  return bucket;
}

std::optional<Bucket> gather(Column gs) {
  Bucket bucket{{}, Dtype::float32, false};
  bucket.tensors.reserve(gs.size());
  for (size_t i = 0; i < gs.size(); i++) {
    const at::Tensor& g = tensor(gs, i);
    void* const from = address_on(g, device_of(gs));
    const auto dtype = dtype_of(g);
    if (!dtype || !aligned(g, g)) return std::nullopt;
    bucket.tensors.push_back({nullptr, from, {}, g.numel(), *dtype});
  }
  return bucket;
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
