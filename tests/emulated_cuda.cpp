// SPDX-License-Identifier: MIT
// The CUDA back end without a GPU: what its threads do, done one after another by the CPU.
//
// Linked with the bindings in place of step_cuda.cu and of all that the extension has for the CPU.
#include <stdexcept>

#include "../csrc/bindings.h"
#include "../csrc/cuda.h"
#include "../csrc/products.h"

namespace emanest {
namespace {

// what a test looks at, and sets, through the stream handle
struct Stream {
  bool capturing = false;
  int64_t entries = 0;  // launches that wrote entries
  int64_t chunks = 0;
  int64_t others = 0;
  int64_t fails_at = -1;  // that many launches succeed
};

class Launch {
 public:
  explicit Launch(const device::Call& call) : stream_(*static_cast<Stream*>(call.stream)) {}

  bool capturing() const { return stream_.capturing; }

  template <class Kernel>
  void operator()(const Kernel& kernel, int64_t blocks) const {
    static_assert(sizeof(Kernel) <= 4096);
    if (stream_.fails_at == 0) throw std::runtime_error("CUDA: a launch failed: as told");
    if (stream_.fails_at > 0) stream_.fails_at--;
    count(kernel)++;
    for (int64_t block = 0; block < blocks; block++) {
      for (int thread = 0; thread < device::kThreads; thread++) kernel(block, thread);
    }
  }

 private:
  int64_t& count(const device::WriteEntries&) const { return stream_.entries; }
  int64_t& count(const device::WriteChunks&) const { return stream_.chunks; }
  template <class Kernel>
  int64_t& count(const Kernel&) const { return stream_.others; }

  Stream& stream_;
};

}  // namespace

namespace cuda {

void run(const Pass& pass, const Bucket& bucket, void* out, const device::Call& call) {
  device::run(pass, bucket, out, call, Launch(call));
}

std::vector<int> archs() { return {}; }

}  // namespace cuda

namespace cpu {

void run(const Pass&, const Bucket&, const double*, void*) {}

}  // namespace cpu

at::Tensor product(Kind, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                   const at::Tensor&, double, double) {
  return {};
}

// in the place of the guards, which need no GPU
void bind_guards(pybind11::module_& m) {
  pybind11::class_<Stream>(m, "Stream")
      .def(pybind11::init<>())
      .def_readwrite("capturing", &Stream::capturing)
      .def_readwrite("fails_at", &Stream::fails_at)
      .def_readonly("entries", &Stream::entries)
      .def_readonly("chunks", &Stream::chunks)
      .def_readonly("others", &Stream::others)
      .def_property_readonly("handle", [](Stream& s) { return reinterpret_cast<intptr_t>(&s); });
  m.attr("CHUNK") = device::kChunk;
  m.attr("BATCH") = device::kBatch;
}

}  // namespace emanest
