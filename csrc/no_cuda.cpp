// What stands in for step_cuda.cu where there is no nvcc.
#include "cuda.h"

namespace emanest::cuda {
namespace {

[[noreturn]] void missing() {
  throw std::runtime_error("the extension was built without CUDA; its build said why");
}

}  // namespace

void step(const Base&, const Lookahead&, const Bucket&, const device::Call&, Place) { missing(); }
void follow(const Lookahead&, const Bucket&, const device::Call&, Place) { missing(); }
void move(const Point&, const Bucket&, const device::Call&, Place) { missing(); }
void momentum(const Momentum&, const Bucket&, double*, const device::Call&, Place) { missing(); }
void rows(const RowRule&, const Bucket&, const device::Call&, Place) { missing(); }
void nonfinite(const Bucket&, float*, const device::Call&, Place) { missing(); }
std::vector<int> archs() { return {}; }

}  // namespace emanest::cuda
