// Shared by all packed matrices: rows in groups, tokens in tiles, threads over groups.
//
//               tokens, in tiles of at most Kernel::max_tokens
//              +----+----+----+-
//   rows,      |    |    |    |        one cell = one call of Kernel::multiply: all columns of a group's rows,
//   in groups  +----+----+----+-       of which each vector lane is one, against all columns of a tile's tokens
//              |    |    |    |
//
// A cell's sums stay in registers from the first column to the last, and lanes are never added to each other. A token's
// output is always summed in the order of the columns, so it does not depend on the tile's size, the other tokens or
// the threads.
//
// For few tokens this streams the weights once, in order. For many, all groups are multiplied with one batch of tiles
// before the next; a batch is small enough to stay in the second-level cache.
//
// A Kernel has:
//   max_tokens, vectors                       a group is `vectors` vectors of rows
//   group_bytes(cols), tile_bytes(cols)       multiples of 64; tile_bytes for max_tokens
//   pack_group(data, rows, cols, out)         from the file's rows; rows past the last are zero
//   pack_tile(x, x_stride, n, cols, out)
//   multiply<n>(group, tile, cols, sums)      sums[token][vector]
#pragma once
#include <algorithm>
#include <array>
#include <memory>

#include "octavo/matmul.h"
#include "packed_memory.h"
#include "simd.h"

namespace octavo {

constexpr int64_t kCacheLine = 64;

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Hidden: two builds of this library in one process must not share kMultiply.
template <typename Kernel>
class [[gnu::visibility("hidden")]] GroupedMatrix final : public PackedMatrix {
 public:
  static constexpr int group_rows = Kernel::vectors * simd::kLanes;

  GroupedMatrix(ThreadPool& pool, const uint8_t* data, int64_t row_bytes, int64_t rows, int64_t cols)
      : num_groups_((rows + group_rows - 1) / group_rows),
        group_bytes_(Kernel::group_bytes(cols)),
        tile_bytes_(Kernel::tile_bytes(cols)),
        packed_(data ? allocate_packed(num_groups_ * group_bytes_) : nullptr) {
    rows_ = rows;
    cols_ = cols;
    if (!data) return;
    pool.parallel_for(num_groups_, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t g = begin; g < end; ++g) {
        Kernel::pack_group(data + g * group_rows * row_bytes, rows_in_group(g), cols, group(g));
      }
    });
  }

  int64_t packed_bytes() const override { return num_groups_ * group_bytes_; }
  uint8_t* packed_data() const override { return packed_.get(); }

  int64_t scratch_bytes(int64_t num_tokens) const override { return num_tiles(num_tokens) * tile_bytes_; }

  int64_t num_tiles(int64_t num_tokens) const override {
    return (num_tokens + Kernel::max_tokens - 1) / Kernel::max_tokens;
  }

  int64_t num_cells(int64_t num_tokens) const override { return num_batches(num_tokens) * num_groups_; }

  int64_t grain(int64_t num_tokens) const override {
    return std::max<int64_t>(1, kRangeBytes / (group_bytes_ * batch_tiles(num_tokens)));
  }

  void pack_tiles(const Product& p, int64_t begin, int64_t end) const override {
    auto* tiles = static_cast<uint8_t*>(p.scratch);
    for (int64_t t = begin; t < end; ++t) {
      const Tile tile(t, num_tiles(p.num_tokens), p.num_tokens);
      Kernel::pack_tile(p.x + tile.first * p.x_stride, p.x_stride, tile.size, cols_, tiles + t * tile_bytes_);
    }
  }

  // Cells in the order of batches of tiles, and in each the order of groups.
  void compute_cells(const Product& p, int64_t begin, int64_t end) const override {
    const auto* tiles = static_cast<const uint8_t*>(p.scratch);
    const int64_t batch = batch_tiles(p.num_tokens), count = num_tiles(p.num_tokens);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i / num_groups_ * batch, g = i % num_groups_;
      for (int64_t t = first; t < std::min(first + batch, count); ++t) {
        const Tile tile(t, count, p.num_tokens);
        const Cell cell{group(g), tiles + t * tile_bytes_, cols_, p.bias ? p.bias + g * group_rows : nullptr,
                        p.y + tile.first * p.y_stride + g * group_rows, p.y_stride, rows_in_group(g)};
        kMultiply[static_cast<size_t>(tile.size) - 1](cell);
      }
    }
  }

 private:
  static constexpr int64_t kBatchBytes = 128 << 10;
  static constexpr int64_t kRangeBytes = 16 << 10;  // weights times tiles in the smallest range worth handing out

  // As few tiles as can hold the tokens, with sizes that differ by at most one: small tiles waste loads.
  struct Tile {
    Tile(int64_t index, int64_t count, int64_t num_tokens) {
      const int64_t even = num_tokens / count, larger = num_tokens % count;
      first = index * even + std::min(index, larger);
      size = static_cast<int>(even + (index < larger ? 1 : 0));
    }
    int64_t first;
    int size;
  };

  struct Cell {
    const uint8_t* group;
    const uint8_t* tile;
    int64_t cols;
    const float* bias;
    float* y;
    int64_t y_stride;
    int rows;
  };

  // Flattened: a lambda that is not inlined moves its arrays out of the registers.
  template <int n>
  [[gnu::flatten]] static void multiply_cell(const Cell& cell) {
    simd::F32 sums[n][Kernel::vectors];
    Kernel::template multiply<n>(cell.group, cell.tile, cell.cols, sums);
    simd::unroll<n>([&](auto t) { store_rows(sums[t], cell.rows, cell.bias, cell.y + t * cell.y_stride); });
  }

  static void store_rows(const simd::F32 (&sums)[Kernel::vectors], int rows, const float* bias, float* y) {
    float partial[group_rows];
    float* out = rows == group_rows ? y : partial;
    simd::unroll<Kernel::vectors>([&](auto v) { simd::store(out + v * simd::kLanes, sums[v]); });
    if (out == partial) std::copy_n(partial, rows, y);
    if (bias) {
      for (int row = 0; row < rows; ++row) y[row] += bias[row];
    }
  }

  using Multiply = void (*)(const Cell&);
  template <int... i>
  static constexpr std::array<Multiply, Kernel::max_tokens> table(std::integer_sequence<int, i...>) {
    return {multiply_cell<i + 1>...};
  }
  static constexpr std::array<Multiply, Kernel::max_tokens> kMultiply =
      table(std::make_integer_sequence<int, Kernel::max_tokens>{});

  int64_t batch_tiles(int64_t num_tokens) const {
    return std::clamp<int64_t>(kBatchBytes / tile_bytes_, 1, std::max<int64_t>(1, num_tiles(num_tokens)));
  }
  int64_t num_batches(int64_t num_tokens) const {
    return (num_tiles(num_tokens) + batch_tiles(num_tokens) - 1) / batch_tiles(num_tokens);
  }
  int rows_in_group(int64_t g) const { return static_cast<int>(std::min<int64_t>(group_rows, rows_ - g * group_rows)); }
  uint8_t* group(int64_t g) const { return packed_.get() + g * group_bytes_; }

  int64_t num_groups_, group_bytes_, tile_bytes_;
  std::shared_ptr<uint8_t> packed_;
};

}  // namespace octavo
