// Adapters: shrink and expand, for each token separately, so that its numbers do not depend on its company.
#include "adapter.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "vectors.h"

namespace octavo {
namespace {

constexpr int64_t kColumns = 512;  // outputs that a thread expands at a time
constexpr int64_t kGrain = 4;

// Four dot products with the same x; each is summed in one order, whatever else is computed.
void dot_four(const float* x, const float* a, int64_t stride, int64_t count, float* out) {
  Floats<kWidth> sums[4] = {};
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    const auto own = load<kWidth>(x + i);
    for (int r = 0; r < 4; ++r) sums[r] = fused<kWidth>(own, load<kWidth>(a + r * stride + i), sums[r]);
  }
  for (int r = 0; r < 4; ++r) {
    float total = sum<kWidth>(sums[r]);
    for (int64_t j = i; j < count; ++j) total = fused(x[j], a[r * stride + j], total);
    out[r] = total;
  }
}

float dot(const float* x, const float* a, int64_t count) {
  Floats<kWidth> sums = {};
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) sums = fused<kWidth>(load<kWidth>(x + i), load<kWidth>(a + i), sums);
  float total = sum<kWidth>(sums);
  for (; i < count; ++i) total = fused(x[i], a[i], total);
  return total;
}

// The tokens with an adapter of this module, and memory for what they are shrunk to. False: there are none.
bool begin(const AdapterSpec& spec, const int32_t* slots, int64_t num_tokens, AdapterScratch& scratch) {
  scratch.tokens.clear();
  for (int64_t t = 0; slots && t < num_tokens; ++t) {
    if (slots[t] >= spec.num_slots) throw std::out_of_range("adapter slot " + std::to_string(slots[t]));
    if (slots[t] >= 0 && spec.ranks[slots[t]] > 0) scratch.tokens.push_back(t);
  }
  scratch.shrunk.reserve(int64_t(scratch.tokens.size()) * spec.num_parts * spec.max_rank);
  return !scratch.tokens.empty();
}

// y[t][first .. last-1] += the part's numbers of h, each times its row of B.
void expand_columns(const float* h, int64_t rank, const float* b, int64_t stride, float* y, int64_t count) {
  for_each_vector(count, [&](int64_t i, auto lanes) {
    auto total = broadcast<lanes>(0.0f);
    for (int64_t r = 0; r < rank; ++r) total = fused<lanes>(broadcast<lanes>(h[r]), load<lanes>(b + r * stride + i), total);
    store<lanes>(y + i, load<lanes>(y + i) + total);
  });
}

void expand(ThreadPool& pool, const AdapterSpec& spec, const int32_t* slots, Rows y, const AdapterScratch& scratch) {
  const int64_t chunks = (spec.out_features + kColumns - 1) / kColumns, width = spec.num_parts * spec.max_rank;
  pool.parallel_for(int64_t(scratch.tokens.size()) * chunks, kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t place = item / chunks, t = scratch.tokens[place], slot = slots[t];
      const int64_t last = std::min(spec.out_features, (item % chunks + 1) * kColumns);
      const float* b = spec.b + slot * spec.max_rank * spec.out_features;
      int64_t first = item % chunks * kColumns;
      for (int64_t part = 0; part < spec.num_parts && first < last; ++part) {
        const int64_t stop = std::min(last, spec.ends[part]);
        if (first >= stop) continue;
        const float* h = scratch.shrunk.data() + place * width + part * spec.max_rank;
        expand_columns(h, spec.ranks[slot], b + first, spec.out_features, y[t] + first, stop - first);
        first = stop;
      }
    }
  });
}

}  // namespace

void add_adapters(ThreadPool& pool, const AdapterSpec& spec, const int32_t* slots, Rows x, Rows y, int64_t num_tokens,
                  AdapterScratch& scratch) {
  if (!begin(spec, slots, num_tokens, scratch)) return;
  const int64_t width = spec.num_parts * spec.max_rank, columns = spec.in_features;
  const int64_t runs = (spec.max_rank + 3) / 4;  // of four rows of A, of each part
  float* shrunk = scratch.shrunk.data();
  pool.parallel_for(int64_t(scratch.tokens.size()) * spec.num_parts * runs, kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t place = item / (spec.num_parts * runs), t = scratch.tokens[place], slot = slots[t];
      const int64_t part = item / runs % spec.num_parts, first = item % runs * 4;
      const int64_t rank = spec.ranks[slot], row = part * spec.max_rank + first;
      const float* a = spec.a + (slot * width + row) * columns;
      float* out = shrunk + place * width + row;
      if (first + 4 <= rank) {
        dot_four(x[t], a, columns, columns, out);
        continue;
      }
      for (int64_t r = 0; first + r < rank; ++r) out[r] = dot(x[t], a + r * columns, columns);
    }
  });
  expand(pool, spec, slots, y, scratch);
}

void add_table_adapters(ThreadPool& pool, const AdapterSpec& spec, const int32_t* slots, const int32_t* ids,
                        int64_t offset, Rows y, int64_t num_tokens, AdapterScratch& scratch) {
  if (!begin(spec, slots, num_tokens, scratch)) return;
  for (size_t place = 0; place < scratch.tokens.size(); ++place) {
    const int64_t t = scratch.tokens[place], id = ids[t] + offset;
    float* out = scratch.shrunk.data() + int64_t(place) * spec.max_rank;
    const bool is_here = id >= 0 && id < spec.in_features;
    const float* row = spec.a + (slots[t] * spec.in_features + (is_here ? id : 0)) * spec.max_rank;
    for (int64_t r = 0; r < spec.max_rank; ++r) out[r] = is_here ? row[r] : 0.0f;
  }
  expand(pool, spec, slots, y, scratch);
}

}  // namespace octavo
