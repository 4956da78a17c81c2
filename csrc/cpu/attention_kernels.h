// The two matrix products of attention over one run of tokens, kept in registers.
//
//     scores[r][t] = sum_d q[r][d] * K[d][t]        K as stored: [head_dim][block_size]
//     out[r][d]    = sum_t p[r][t] * V[t][d]        V as stored: [block_size][head_dim]
//
// Elements of K and V are widened as they are loaded. Latents are float32, one row a token:
//
//     scores[r][t] = sum_d q[r][d] * K[t][d]        out[r][d] = sum_t p[r][t] * K[t][d], of the first dimensions
//
// A row r is one query of one head. Each product computes R rows by N vectors at a time, so that each load of K or V
// serves R rows, and enough sums are in flight to hide the latency of a multiply-add. Every element is one chain of
// multiply-adds in the order of d, or of t, for any R and N: a row's result does not depend on the rows it was
// computed with.
#pragma once
#include <algorithm>

#include "float_formats.h"

namespace octavo {
namespace attention {

inline constexpr int kMaxRows = 6;

// Vectors at a time for R rows: sums, loads and broadcasts together fit in 16 registers.
constexpr int vectors_beside(int rows) { return rows == 1 ? 8 : rows <= 3 ? 4 : 2; }

template <int W, int R, int N>
using Sums = Floats<W>[R][N];

// sums[r][n] += x[r] * v[n]. Loads each operand once, and keeps the fewer of the two in registers.
template <int W, int R, int N, class Element>
inline void multiply_add(Sums<W, R, N>& sums, const float* x, int64_t x_stride, const Element* const* v,
                         int64_t offset) {
  if constexpr (R < N) {
    Floats<W> held[R];
    for (int r = 0; r < R; ++r) held[r] = broadcast<W>(x[r * x_stride]);
    for (int n = 0; n < N; ++n) {
      const Floats<W> loaded = load<W>(v[n] + offset);
      for (int r = 0; r < R; ++r) sums[r][n] = fused<W>(held[r], loaded, sums[r][n]);
    }
  } else {
    Floats<W> held[N];
    for (int n = 0; n < N; ++n) held[n] = load<W>(v[n] + offset);
    for (int r = 0; r < R; ++r) {
      const Floats<W> value = broadcast<W>(x[r * x_stride]);
      for (int n = 0; n < N; ++n) sums[r][n] = fused<W>(value, held[n], sums[r][n]);
    }
  }
}

template <int W, int R, int N>
inline void store_sums(const Sums<W, R, N>& sums, float* out, int64_t stride) {
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) store<W>(out + r * stride + n * W, sums[r][n]);
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

// Calls body(first vector, vectors constant) until `count` vectors are covered, N at a time while they last.
template <int N, class Body>
inline void for_each_vector_group(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + N <= count; i += N) body(i, std::integral_constant<int, N>{});
  for (; i + 2 <= count; i += 2) body(i, std::integral_constant<int, 2>{});
  for (; i < count; ++i) body(i, std::integral_constant<int, 1>{});
}

}  // namespace attention

// Scores of `num_rows` queries [rows, head_dim] against vectors of W tokens each: keys[i] points at the first
// dimension of vector i, the next dimension lies block_size further; scores[r][i * W ...] is written.
template <int W, class Element>
void attention_scores(const float* q, int64_t num_rows, int64_t head_dim, const Element* const* keys,
                      int64_t num_vectors, int64_t block_size, float* scores, int64_t score_stride) {
  using namespace attention;
  for_each_row_group(num_rows, [&](int64_t row, auto rows) {
    for_each_vector_group<vectors_beside(rows)>(num_vectors, [&](int64_t first, auto vectors) {
      Sums<W, rows, vectors> sums = {};
      const float* x = q + row * head_dim;
      for (int64_t d = 0; d < head_dim; ++d) {
        multiply_add<W, rows, vectors, Element>(sums, x + d, head_dim, keys + first, d * block_size);
      }
      store_sums<W, rows, vectors>(sums, scores + row * score_stride + first * W, score_stride);
    });
  });
}

// Scores of `num_rows` queries [rows, dim] against tokens, each a row of dim numbers.
template <int W>
void latent_scores(const float* q, int64_t num_rows, int64_t dim, const float* const* tokens, int64_t num_tokens,
                   float* scores, int64_t score_stride) {
  using namespace attention;
  constexpr int kRows = 3, kTokens = 4;
  const auto block = [&](int64_t row, int64_t token, auto rows, auto count) {
    Sums<W, rows, count> sums = {};
    for (int64_t d = 0; d < dim; d += W) {
      Floats<W> x[rows];
      for (int r = 0; r < rows; ++r) x[r] = load<W>(q + (row + r) * dim + d);
      for (int t = 0; t < count; ++t) {
        const Floats<W> key = load<W>(tokens[token + t] + d);
        for (int r = 0; r < rows; ++r) sums[r][t] = fused<W>(x[r], key, sums[r][t]);
      }
    }
    for (int r = 0; r < rows; ++r)
      for (int t = 0; t < count; ++t) scores[(row + r) * score_stride + token + t] = sum<W>(sums[r][t]);
  };
  using Rows = std::integral_constant<int, kRows>;
  using Tokens = std::integral_constant<int, kTokens>;
  using One = std::integral_constant<int, 1>;
  int64_t row = 0;
  const auto all_tokens = [&](auto rows) {
    int64_t t = 0;
    for (; t + kTokens <= num_tokens; t += kTokens) block(row, t, rows, Tokens{});
    for (; t < num_tokens; ++t) block(row, t, rows, One{});
  };
  for (; row + kRows <= num_rows; row += kRows) all_tokens(Rows{});
  for (; row < num_rows; ++row) all_tokens(One{});
}

// Weighted sums of the values of tokens [begin, end) in a run of blocks: out is [rows, head_dim]. token_stride: elements
// from a token's value to the next one's.
template <int W, class Element>
void weighted_values(const float* weights, int64_t weight_stride, int64_t num_rows, const Element* const* blocks,
                     int64_t block_size, int64_t begin, int64_t end, int64_t head_dim, int64_t token_stride, float* out) {
  using namespace attention;
  for_each_row_group(num_rows, [&](int64_t row, auto rows) {
    for_each_vector_group<vectors_beside(rows)>(head_dim / W, [&](int64_t first, auto vectors) {
      Sums<W, rows, vectors> sums = {};
      const float* x = weights + row * weight_stride;
      for (int64_t t = begin; t < end;) {
        const int64_t block_begin = t / block_size * block_size, block_end = std::min(end, block_begin + block_size);
        const Element* value[vectors];
        for (int n = 0; n < vectors; ++n) {
          value[n] = blocks[block_begin / block_size] - block_begin * token_stride + (first + n) * W;
        }
        for (; t < block_end; ++t) {
          multiply_add<W, rows, vectors, Element>(sums, x + t, weight_stride, value, t * token_stride);
        }
      }
      store_sums<W, rows, vectors>(sums, out + row * head_dim + first * W, head_dim);
    });
  });
}

}  // namespace octavo
