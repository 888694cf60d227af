// SPDX-License-Identifier: MIT
// A result is cut into tiles by its shape alone, and each tile is one product of torch's that runs on
// one thread and knows of no other: its bits depend neither on the number of threads nor on the
// batch. Of a symmetric result the tiles on and below the diagonal are computed and mirrored while
// they are in the cache; none reads what another writes, so the addend may be the result itself.
#include "products.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include "storage.h"

// MKL's, where torch has it: how many threads products of the calling thread may use (0: the global
// number); returns what it was
extern "C" __attribute__((weak)) int MKL_Set_Num_Threads_Local(int threads);

namespace emanest {
namespace {

// A strip of a symmetric result, up to its diagonal, is n / kStrips rows high within these bounds:
// lower strips waste less of the triangle above the diagonal, higher ones multiply faster.
constexpr int64_t kStrips = 8, kLeast = 64, kMost = 256;
// tiles of other results: two for a square of 768; a strip is cut into pieces as wide
constexpr int64_t kHeight = 384, kWidth = 768;
// large results have higher tiles, for which MKL copies less of the factors, if there are so many
constexpr int64_t kHigh = 768, kMany = 4;
// side of the blocks that are mirrored: two of them are in the first-level cache
constexpr int64_t kBlock = 32;

struct Tile { int64_t matrix, row, rows, column, columns; };
using Tiles = std::vector<Tile>;

int64_t height_of(Kind kind, int64_t n, int64_t m) {
  switch (kind) {
    case Kind::symmetric: return std::clamp((n / kStrips + 15) / 16 * 16, kLeast, kMost);
    case Kind::plain: return kHeight;
    default: return n * m < kMany * kHigh * kWidth ? kHeight : kHigh;
  }
}

// Of (n, m) results; of symmetric ones as far as the diagonal.
Tiles tiles_of(Kind kind, int64_t batch, int64_t n, int64_t m) {
  const bool symmetric = kind == Kind::symmetric;
  const int64_t height = height_of(kind, n, m);
  Tiles tiles;
  for (int64_t matrix = 0; matrix < batch; matrix++) {
    for (int64_t row = 0; row < n; row += height) {
      const int64_t bottom = std::min(row + height, n), width = symmetric ? bottom : m;
      for (int64_t column = 0; column < width; column += kWidth) {
        // a piece that begins within the diagonal's square has rows above it, which others mirror
        const int64_t top = symmetric ? std::max(row, column) : row;
        tiles.push_back({matrix, top, bottom - top, column, std::min(kWidth, width - column)});
      }
    }
  }
  // the longest strip first: short ones fill the gaps at the end
  if (symmetric) std::reverse(tiles.begin(), tiles.end());
  return tiles;
}

// While it lives, products of the calling thread run on it alone. Inside a parallel region they do
// anyway, but MKL and oneDNN block them by the number of threads that is set, and bits follow.
class Alone {
 public:
  // torch sets both numbers when a thread first asks for its own: that comes first
  Alone() : openmp_(at::get_num_threads()), mkl_(set_mkl(1)) { omp_set_num_threads(1); }
  ~Alone() {
    omp_set_num_threads(openmp_);
    set_mkl(mkl_);
  }
  Alone(const Alone&) = delete;
  Alone& operator=(const Alone&) = delete;

 private:
  static int set_mkl(int threads) {
    return MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(threads) : 0;
  }

  const int openmp_, mkl_;
};

// While it lives, the calling thread takes subnormal numbers for zero. A polynomial of a Gram matrix
// that has come to I has them off its diagonal, and a product of them takes ten times as long.
class Flushed {
 public:
  Flushed() : before_(flushes()) { at::globalContext().setFlushDenormal(true); }
  ~Flushed() { at::globalContext().setFlushDenormal(before_); }
  Flushed(const Flushed&) = delete;
  Flushed& operator=(const Flushed&) = delete;

 private:
  static bool flushes() {
    const volatile float least = std::numeric_limits<float>::min();
    const volatile float half = least * 0.5f;
    return half == 0;
  }

  const bool before_;
};

// Calls f(tile) for all tiles; a thread that is free takes the next one.
template <class F>
void for_each(const Tiles& tiles, F f) {
  std::atomic<size_t> next{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    const Alone alone;
    const Flushed flushed;
    // threads of the pool do not know that no gradient is wanted
    const at::AutoDispatchBelowADInplaceOrView guard;
    for (size_t k; (k = next++) < tiles.size();) f(tiles[k]);
  });
}

at::Tensor part(const at::Tensor& t, int64_t matrix, int64_t row, int64_t rows, int64_t column,
                int64_t columns) {
  const int64_t offset = matrix * t.stride(0) + row * t.stride(1) + column * t.stride(2);
  return t.as_strided({rows, columns}, {t.stride(1), t.stride(2)}, t.storage_offset() + offset);
}

// Copies what is below the diagonal of an (n, n) matrix above it, as far as a tile goes.
template <class Item>
void mirror(Item* matrix, int64_t n, const Tile& tile) {
  const int64_t bottom = tile.row + tile.rows, right = tile.column + tile.columns;
  for (int64_t row = tile.row; row < bottom; row += kBlock) {
    for (int64_t column = tile.column; column < right; column += kBlock) {
      for (int64_t j = column; j < std::min(column + kBlock, right); j++) {
        Item* const to = matrix + j * n;
        for (int64_t i = std::max(row, j + 1); i < std::min(row + kBlock, bottom); i++) {
          to[i] = matrix[i * n + j];
        }
      }
    }
  }
}

void mirror(const at::Tensor& out, const Tile& tile) {
  const int64_t n = out.size(1), bytes = out.element_size();
  char* const matrix = static_cast<char*>(out.data_ptr()) + tile.matrix * out.stride(0) * bytes;
  switch (bytes) {
    case 2: return mirror(reinterpret_cast<uint16_t*>(matrix), n, tile);
    case 4: return mirror(reinterpret_cast<uint32_t*>(matrix), n, tile);
    default: return mirror(reinterpret_cast<uint64_t*>(matrix), n, tile);
  }
}

}  // namespace

at::Tensor product(Kind kind, const at::Tensor& out, const at::Tensor& c, const at::Tensor& a,
                   const at::Tensor& b, double beta, double alpha) {
  // threads of a pool must not meet a tensor that calls Python
  for (const at::Tensor* each : {&out, &c, &a, &b}) address(*each);
  const int64_t batch = a.size(0), n = a.size(1), k = a.size(2);
  for_each(tiles_of(kind, batch, n, b.size(2)), [&](const Tile& t) {
    at::Tensor to = part(out, t.matrix, t.row, t.rows, t.column, t.columns);
    const at::Tensor left = part(a, t.matrix, t.row, t.rows, 0, k);
    const at::Tensor right = part(b, t.matrix, 0, k, t.column, t.columns);
    if (beta == 0 && alpha == 1) {
      at::mm_out(to, left, right);
    } else {
      const bool own = beta == 0 || c.is_same(out);
      const at::Tensor addend = own ? to : part(c, t.matrix, t.row, t.rows, t.column, t.columns);
      at::addmm_out(to, addend, left, right, beta, alpha);
    }
    if (kind == Kind::symmetric) mirror(out, t);
  });
  return out;
}

}  // namespace emanest
