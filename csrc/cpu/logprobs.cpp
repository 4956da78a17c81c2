// Log-probabilities in one pass over a row of logits.
#include "logprobs.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "vector_math.h"

namespace octavo {
namespace {

// Turns a row's logits into log-probabilities: subtracts the best, then the logarithm of the mass relative to it (their
// sum would round to the best where that is large). If the best is infinite, all logits equal to it share the mass, and
// the others have none. One NaN among the logits makes all log-probabilities NaN.
struct Normaliser {
  float best;
  float log_mass;

  float logprob(float logit) const {
    if (!std::isinf(best)) return logit - best - log_mass;
    return logit == best && best > 0 ? -log_mass : -std::numeric_limits<float>::infinity();
  }
};

// The sum is a double, because it may have hundreds of thousands of terms.
Normaliser normaliser(const float* logits, int64_t count) {
  float maximum = logits[0];
  bool has_nan = false;
  for (int64_t i = 0; i < count; ++i) {
    maximum = logits[i] > maximum ? logits[i] : maximum;
    has_nan |= std::isnan(logits[i]);
  }
  if (has_nan) return {std::numeric_limits<float>::quiet_NaN(), 0};
  if (std::isinf(maximum)) return {maximum, std::log(float(std::count(logits, logits + count, maximum)))};
  double total = 0;
  for_each_vector(count, [&](int64_t i, auto lanes) {
    total += sum<lanes>(exp<lanes>(load<lanes>(logits + i) - maximum));
  });
  return {maximum, float(std::log(total))};
}

// Orders a NaN below every number.
float key(float logit) { return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit; }

void best_tokens(const float* logits, int64_t count, int64_t k, std::vector<int32_t>& order) {
  order.resize(count);
  std::iota(order.begin(), order.end(), 0);
  const auto better = [=](int32_t a, int32_t b) {
    const float x = key(logits[a]), y = key(logits[b]);
    return x > y || (x == y && a < b);
  };
  std::partial_sort(order.begin(), order.begin() + k, order.end(), better);
}

// The token's place in that order, from 1.
int32_t rank(const float* logits, int64_t count, int32_t token) {
  const float chosen = key(logits[token]);
  int32_t better = 0;
  for (int64_t i = 0; i < count; ++i) better += key(logits[i]) > chosen;
  for (int64_t i = 0; i < token; ++i) better += key(logits[i]) == chosen;
  return 1 + better;
}

}  // namespace

void top_logprobs(ThreadPool& pool, const float* logits, int64_t num_rows, int64_t vocab_size, const int32_t* tokens,
                  int64_t k, bool as_logits, int32_t* ids, float* logprobs, int32_t* ranks) {
  const std::string of_all = " of a vocabulary of " + std::to_string(vocab_size);
  if (k < 0 || k > vocab_size) throw std::out_of_range("the best " + std::to_string(k) + of_all);
  for (int64_t row = 0; row < num_rows; ++row) {
    if (tokens[row] >= 0 && tokens[row] < vocab_size) continue;
    throw std::out_of_range("token " + std::to_string(tokens[row]) + of_all);
  }
  pool.parallel_for(num_rows, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<int32_t> order;
    for (int64_t row = begin; row < end; ++row) {
      const float* x = logits + row * vocab_size;
      const Normaliser scale = as_logits ? Normaliser{0, 0} : normaliser(x, vocab_size);
      if (k > 0) best_tokens(x, vocab_size, k, order);
      int32_t* row_ids = ids + row * (k + 1);
      row_ids[0] = tokens[row];
      std::copy_n(order.begin(), k, row_ids + 1);
      for (int64_t i = 0; i <= k; ++i) logprobs[row * (k + 1) + i] = scale.logprob(x[row_ids[i]]);
      ranks[row] = rank(x, vocab_size, tokens[row]);
    }
  });
}

}  // namespace octavo
