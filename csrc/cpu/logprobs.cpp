#include "logprobs.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "vector_math.h"

namespace octavo {
namespace {

// log(sum of exponentials); the sum is kept in double, because it may have hundreds of thousands of terms.
float log_sum_exp(const float* logits, int64_t count) {
  float maximum = logits[0];
  for (int64_t i = 1; i < count; ++i) maximum = logits[i] > maximum ? logits[i] : maximum;
  double total = 0;
  for_each_vector(count, [&](int64_t i, auto lanes) {
    total += sum<lanes>(exp<lanes>(load<lanes>(logits + i) - maximum));
  });
  return maximum + float(std::log(total));
}

void best_tokens(const float* logits, int64_t count, int64_t k, std::vector<int32_t>& order) {
  order.resize(count);
  std::iota(order.begin(), order.end(), 0);
  const auto better = [=](int32_t a, int32_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
  std::partial_sort(order.begin(), order.begin() + k, order.end(), better);
}

// The token's place in that order, from 1.
int32_t rank(const float* logits, int64_t count, int32_t token) {
  const float chosen = logits[token];
  int32_t better = 0;
  for (int64_t i = 0; i < count; ++i) better += logits[i] > chosen;
  for (int64_t i = 0; i < token; ++i) better += logits[i] == chosen;
  return 1 + better;
}

}  // namespace

void top_logprobs(ThreadPool& pool, const float* logits, int64_t num_rows, int64_t vocab_size, const int32_t* tokens,
                  int64_t k, int32_t* ids, float* logprobs, int32_t* ranks) {
  pool.parallel_for(num_rows, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<int32_t> order;
    for (int64_t row = begin; row < end; ++row) {
      const float* x = logits + row * vocab_size;
      const float normaliser = log_sum_exp(x, vocab_size);
      if (k > 0) best_tokens(x, vocab_size, k, order);
      int32_t* row_ids = ids + row * (k + 1);
      row_ids[0] = tokens[row];
      std::copy_n(order.begin(), k, row_ids + 1);
      for (int64_t i = 0; i <= k; ++i) logprobs[row * (k + 1) + i] = x[row_ids[i]] - normaliser;
      ranks[row] = rank(x, vocab_size, tokens[row]);
    }
  });
}

}  // namespace octavo
