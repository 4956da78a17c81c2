// The two matrix products of attention over one run of tokens, kept in registers.
//
//     scores[r][t] = sum_d q[r][d] * K[d][t]        K as stored: [head_dim][block_size]
//     out[r][d]    = sum_t p[r][t] * V[t][d]        V as stored: [block_size][head_dim]
//
// A row r is one query of one head. Each product runs R rows by N vectors at a time, so that what is loaded
// of K and V serves R rows. Every element is one chain of multiply-adds in the order of d, or of t, whatever
// R and N are: a row's result does not depend on which rows it was computed with.
#pragma once
#include "vectors.h"

namespace octavo {

inline constexpr int kMaxRows = 6;  // rows at a time: 6 x 2 sums, 2 loads and a broadcast fill 16 registers

namespace attention {

template <int W, int R, int N>
inline void scores_tile(const float* q, int64_t head_dim, const float* keys, int64_t key_stride, float* scores,
                        int64_t score_stride) {
  Floats<W> sums[R][N] = {};
  for (int64_t d = 0; d < head_dim; ++d) {
    Floats<W> k[N];
    for (int n = 0; n < N; ++n) k[n] = load<W>(keys + d * key_stride + n * W);
    for (int r = 0; r < R; ++r) {
      const Floats<W> x = broadcast<W>(q[r * head_dim + d]);
      for (int n = 0; n < N; ++n) sums[r][n] += x * k[n];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) store<W>(scores + r * score_stride + n * W, sums[r][n]);
}

template <int W, int R, int N>
inline void values_tile(const float* weights, int64_t weight_stride, const float* const* blocks, int64_t block_size,
                        int64_t begin, int64_t end, int64_t head_dim, int64_t first, float* out) {
  Floats<W> sums[R][N] = {};
  for (int64_t t = begin; t < end;) {
    const int64_t block = t / block_size, block_end = end < (block + 1) * block_size ? end : (block + 1) * block_size;
    const float* value = blocks[block] + (t - block * block_size) * head_dim + first;
    for (; t < block_end; ++t, value += head_dim) {
      Floats<W> v[N];
      for (int n = 0; n < N; ++n) v[n] = load<W>(value + n * W);
      for (int r = 0; r < R; ++r) {
        const Floats<W> weight = broadcast<W>(weights[r * weight_stride + t]);
        for (int n = 0; n < N; ++n) sums[r][n] += weight * v[n];
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) store<W>(out + r * head_dim + first + n * W, sums[r][n]);
}

// Calls body(first row, rows constant) until `num_rows` are covered.
template <class Body>
inline void for_each_row_group(int64_t num_rows, const Body& body) {
  int64_t row = 0;
  for (; row + kMaxRows <= num_rows; row += kMaxRows) body(row, std::integral_constant<int, kMaxRows>{});
  switch (num_rows - row) {
    case 5: return body(row, std::integral_constant<int, 5>{});
    case 4: return body(row, std::integral_constant<int, 4>{});
    case 3: return body(row, std::integral_constant<int, 3>{});
    case 2: return body(row, std::integral_constant<int, 2>{});
    case 1: return body(row, std::integral_constant<int, 1>{});
  }
}

// Calls body(first element, vectors constant) until `count`, a multiple of W, is covered.
template <int W, class Body>
inline void for_each_vector_group(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + 2 * W <= count; i += 2 * W) body(i, std::integral_constant<int, 2>{});
  for (; i < count; i += W) body(i, std::integral_constant<int, 1>{});
}

}  // namespace attention

// Scores of `num_rows` queries against one block. W divides block_size.
template <int W>
void block_scores(const float* q, int64_t num_rows, int64_t head_dim, const float* keys, int64_t block_size,
                  float* scores, int64_t score_stride) {
  attention::for_each_row_group(num_rows, [&](int64_t row, auto rows) {
    attention::for_each_vector_group<W>(block_size, [&](int64_t t, auto vectors) {
      attention::scores_tile<W, rows, vectors>(q + row * head_dim, head_dim, keys + t, block_size,
                                               scores + row * score_stride + t, score_stride);
    });
  });
}

// Weighted sums of the values of tokens [begin, end) of a run of blocks. W divides head_dim.
template <int W>
void weighted_values(const float* weights, int64_t weight_stride, int64_t num_rows, const float* const* blocks,
                     int64_t block_size, int64_t begin, int64_t end, int64_t head_dim, float* out) {
  attention::for_each_row_group(num_rows, [&](int64_t row, auto rows) {
    attention::for_each_vector_group<W>(head_dim, [&](int64_t d, auto vectors) {
      attention::values_tile<W, rows, vectors>(weights + row * weight_stride, weight_stride, blocks, block_size,
                                               begin, end, head_dim, d, out + row * head_dim);
    });
  });
}

}  // namespace octavo
