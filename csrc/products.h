// SPDX-License-Identifier: MIT
// Products of matrices on the CPU; emanest/backends/cpu_products.py documents them.
#pragma once

#include <ATen/core/Tensor.h>

namespace emanest {

enum class Kind { symmetric, plain, large };

// out <- beta c + alpha a b; a is (batch, n, k), b (batch, k, m); c is not read if beta is 0
at::Tensor product(Kind kind, const at::Tensor& out, const at::Tensor& c, const at::Tensor& a,
                   const at::Tensor& b, double beta, double alpha);

}  // namespace emanest
