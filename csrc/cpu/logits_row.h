// One row of logits, read in blocks of 128 tokens: its best token, its mass, its tokens above a bound.
//
//   values     | block 0      | block 1      | block 2      | ...        49k to 262k floats
//   maximum      one float      one float      one float                 shows which blocks a bound lets us skip
//   mass         one double     one double     one double                shows which block a draw falls into
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "vector_math.h"

namespace octavo::logits_row {

constexpr int64_t kBlock = 128;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline int64_t num_blocks(int64_t size) { return (size + kBlock - 1) / kBlock; }

// How logits become scores: divided by the temperature, relative to the best, which has score 0.
struct Scaling {
  float temperature;
  float best;  // the best logit over the temperature

  float score(float logit) const { return logit / temperature - best; }
};

// e^score of up to kBlock logits; the rest of `weights` is 0.
inline void block_weights(const float* values, int64_t count, Scaling scaling, float* weights) {
  float padded[kBlock];
  if (count < kBlock) {
    std::fill(std::copy(values, values + count, padded), padded + kBlock, -kInfinity);
    values = padded;
  }
  for (int64_t i = 0; i < kBlock; i += kWidth)
    store<kWidth>(weights + i, exp<kWidth>(load<kWidth>(values + i) / scaling.temperature - scaling.best));
}

// The mass of each block, and the total.
inline double mass(const float* values, int64_t size, Scaling scaling, std::vector<double>& block_mass) {
  block_mass.resize(num_blocks(size));
  double total = 0;
  for (int64_t start = 0; start < size; start += kBlock) {
    float weights[kBlock];
    block_weights(values + start, std::min(kBlock, size - start), scaling, weights);
    double lanes[8] = {};
    for (int64_t i = 0; i < kBlock; i += 8)
      for (int64_t lane = 0; lane < 8; ++lane) lanes[lane] += weights[i + lane];
    const double sum = ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
    block_mass[start / kBlock] = sum;
    total += sum;
  }
  return total;
}

struct RowMaximum {
  float best;
  bool has_nan;
};

// The maximum of each block, and of the row.
inline RowMaximum maximum(const float* values, int64_t size, std::vector<float>& block_max) {
  block_max.resize(num_blocks(size));
  Ints<kWidth> nan = {};
  float best = -kInfinity;
  int64_t start = 0;
  for (; start + kBlock <= size; start += kBlock) {
    Floats<kWidth> lanes = load<kWidth>(values + start);
    nan |= lanes != lanes;
    for (int64_t i = kWidth; i < kBlock; i += kWidth) {
      const Floats<kWidth> value = load<kWidth>(values + start + i);
      nan |= value != value;
      lanes = value > lanes ? value : lanes;
    }
    float block_best = lanes[0];
    for (int64_t lane = 1; lane < kWidth; ++lane) block_best = std::max(block_best, lanes[lane]);
    block_max[start / kBlock] = block_best;
    best = std::max(best, block_best);
  }
  bool has_nan = false;
  for (int64_t lane = 0; lane < kWidth; ++lane) has_nan |= nan[lane] != 0;
  if (start < size) {
    const float tail = *std::max_element(values + start, values + size);
    for (int64_t i = start; i < size; ++i) has_nan |= std::isnan(values[i]);
    block_max.back() = tail;
    best = std::max(best, tail);
  }
  return {best, has_nan};
}

// Tokens of at least `floor`, in id order. Only blocks whose maximum reaches it are read.
struct Candidates {
  std::vector<float> values;
  std::vector<int32_t> ids;
  int64_t size = 0;

  void collect(const float* row, int64_t row_size, const std::vector<float>& block_max, float floor) {
    values.resize(row_size + 1);  // one more: a token that fails the test is written, then overwritten
    ids.resize(row_size + 1);
    size = 0;
    for (int64_t start = 0; start < row_size; start += kBlock) {
      if (block_max[start / kBlock] < floor) continue;
      const int64_t end = std::min(start + kBlock, row_size);
      for (int64_t i = start; i < end; ++i) {
        values[size] = row[i];
        ids[size] = static_cast<int32_t>(i);
        size += row[i] >= floor;
      }
    }
  }
};

// The k-th largest value, 1 <= k <= size. The k-th largest maximum of disjoint runs bounds it from below, because
// each of k runs holds a value as large; so few values need to be examined.
inline float kth_largest(const float* row, int64_t size, int64_t k, const std::vector<float>& block_max,
                         Candidates& scratch) {
  constexpr int64_t kShortRun = 16;  // used if there are fewer blocks than k
  std::vector<float> maxima;
  if (k <= static_cast<int64_t>(block_max.size())) {
    maxima = block_max;
  } else if (k <= size / kShortRun) {
    for (int64_t start = 0; start + kShortRun <= size; start += kShortRun)
      maxima.push_back(*std::max_element(row + start, row + start + kShortRun));
  }
  float bound = -kInfinity;
  if (!maxima.empty()) {
    std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), std::greater<>());
    bound = maxima[k - 1];
  }
  scratch.collect(row, size, block_max, bound);
  const auto begin = scratch.values.begin();
  std::nth_element(begin, begin + (k - 1), begin + scratch.size, std::greater<>());
  return begin[k - 1];
}

}  // namespace octavo::logits_row
