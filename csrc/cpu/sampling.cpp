// Draws tokens without sorting the vocabulary.
//
// How an entry finds its token:
//
//   best logit ── temperature 0 ──> its first occurrence
//       │
//       ├─ nothing to filter ──> mass of every block, draw a block, draw a token in it
//       │
//       └─ floor = max(min_p's, top_k's) ──> candidates of at least the floor, in id order
//                  top_p alone: a floor below which all tokens together hold less than 1 - top_p
//              then top_p among the candidates (top_p.h), then draw
//
// For any numbers, an entry yields a token of the vocabulary or kNoToken: NaNs are found before anything is sorted, and
// nothing is drawn from zero mass. Bias, bans and penalties work on a copy of the row.
#include "sampling.h"

#include <bit>
#include <span>

#include "logits_row.h"
#include "random.h"
#include "top_p.h"

namespace octavo {
namespace {

using namespace logits_row;

using Ids = std::span<const int32_t>;

// Entry i's values of a ragged column.
Ids run(const int32_t* values, const int32_t* offsets, int64_t i) {
  return {values + offsets[i], values + offsets[i + 1]};
}

bool are_within(Ids ids, int64_t vocab_size) {
  return std::all_of(ids.begin(), ids.end(), [&](int32_t id) { return 0 <= id && id < vocab_size; });
}

// The smallest float that passes `accepts`, a test that all larger floats pass too. Bisects the 2^32 floats in order.
template <class Accepts>
float lowest(const Accepts& accepts) {
  const auto float_at = [](uint32_t place) {  // places number the floats upwards from -inf
    return std::bit_cast<float>(place & 0x80000000u ? place ^ 0x80000000u : ~place);
  };
  uint32_t low = 0x007FFFFFu, high = 0xFF800000u;  // -inf, +inf
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (accepts(float_at(middle))) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return float_at(low);
}

// Draws one entry at a time. Each thread has one, for its scratch memory.
class EntrySampler {
 public:
  int32_t sample(const float* row, int64_t vocab_size, const SamplingBatch& batch, int64_t entry) {
    const bool is_greedy = batch.temperature[entry] == 0.0f;
    if (const int32_t failure = prepare(row, vocab_size, batch, entry, is_greedy)) return failure;
    if (is_greedy) return first_token_of(best_);
    const double u = uniform(batch.seeds[entry], batch.sample_indices[entry], batch.positions[entry]);
    if (!has_filters(batch, entry)) return static_cast<int32_t>(draw(row_, size_, u));
    filter(batch, entry);
    return candidates_.ids[draw(candidates_.values.data(), candidates_.size, u)];
  }

  // Writes the logits that `sample` would draw from to `processed`. Returns 0, or an entry's code if it has no token.
  int32_t process(const float* row, int64_t vocab_size, const SamplingBatch& batch, int64_t entry, float* processed) {
    if (const int32_t failure = prepare(row, vocab_size, batch, entry, false)) {
      std::fill_n(processed, vocab_size, std::numeric_limits<float>::quiet_NaN());
      return failure;
    }
    if (batch.temperature[entry] == 0.0f) {
      std::copy_n(row_, size_, processed);
    } else if (!has_filters(batch, entry)) {
      for (int64_t i = 0; i < size_; ++i) processed[i] = quotient(row_[i]);
    } else {
      filter(batch, entry);
      std::fill_n(processed, size_, -kInfinity);
      for (int64_t i = 0; i < candidates_.size; ++i) processed[candidates_.ids[i]] = quotient(candidates_.values[i]);
    }
    return 0;
  }

 private:
  // Edits the row, and finds its best token and its scaling. Returns 0, or an entry's code if it has no token. If only
  // the best is wanted, and no more than a mask is given that allows it, the row is not copied.
  int32_t prepare(const float* row, int64_t vocab_size, const SamplingBatch& batch, int64_t entry, bool wants_best) {
    row_ = row;
    size_ = vocab_size;
    RowMaximum found = maximum(row_, size_, block_max_);
    if (found.has_nan) return kNoToken;
    best_ = found.best;
    if (wants_best && best_ > -kInfinity && is_valid(batch, entry) && allows_best(batch, entry)) return 0;
    if (!is_valid(batch, entry) || !edit(batch, entry)) return kInvalidEntry;
    if (row_ != row) found = maximum(row_, size_, block_max_);
    if (found.has_nan || found.best == -kInfinity) return kNoToken;
    best_ = found.best;
    const float temperature = batch.temperature[entry];
    if (temperature == 0.0f) return 0;
    scaling_ = {temperature, best_ / temperature};
    shares_infinite_ = scaling_.best == kInfinity;
    if (shares_infinite_) share_among_infinite();
    return scaling_.best == -kInfinity ? kNoToken : 0;  // even the best underflows to -infinity in float32
  }

  // A logit of the prepared row divided by the temperature; -infinity if it is too far below the best to be drawn.
  float quotient(float logit) const {
    if (scaling_.score(logit) == -kInfinity) return -kInfinity;
    return shares_infinite_ ? kInfinity : logit / scaling_.temperature;
  }

  // Comparisons that a NaN fails as well.
  static bool is_valid(const SamplingBatch& batch, int64_t entry) {
    const float temperature = batch.temperature[entry];
    return temperature >= 0.0f && temperature < kInfinity && batch.top_p[entry] >= 0.0f && batch.min_p[entry] <= 1.0f;
  }

  // Points row_ to an edited copy if anything is to be edited. False if an id is outside of the vocabulary.
  bool edit(const SamplingBatch& batch, int64_t entry) {
    const Ids allowed = run(batch.allowed, batch.allowed_offsets, entry);
    const Ids banned = run(batch.banned, batch.banned_offsets, entry);
    const Ids biased = run(batch.bias_ids, batch.bias_offsets, entry);
    const Ids history = run(batch.history, batch.history_offsets, entry);
    const Ids mask = run(batch.mask, batch.mask_offsets, entry);
    if (allowed.empty() && mask.empty() && banned.empty() && biased.empty() && history.empty()) return true;
    for (const Ids ids : {allowed, banned, biased, history})
      if (!are_within(ids, size_)) return false;
    if (!mask.empty() && static_cast<int64_t>(mask.size()) != (size_ + 31) / 32) return false;

    if (allowed.empty()) {
      edited_.assign(row_, row_ + size_);
    } else {
      edited_.assign(size_, -kInfinity);
      for (int32_t id : allowed) edited_[id] = row_[id];
    }
    apply(mask);
    for (int32_t id : banned) edited_[id] = -kInfinity;
    const float* bias = batch.bias_values + batch.bias_offsets[entry];
    for (int32_t id : biased) edited_[id] += *bias++;
    penalise(history, batch, entry);
    row_ = edited_.data();
    return true;
  }

  // Whether a mask is all that edits the row, and allows its best token.
  bool allows_best(const SamplingBatch& batch, int64_t entry) const {
    const Ids mask = run(batch.mask, batch.mask_offsets, entry);
    if (static_cast<int64_t>(mask.size()) != (size_ + 31) / 32) return false;
    if (!run(batch.allowed, batch.allowed_offsets, entry).empty()) return false;
    if (!run(batch.banned, batch.banned_offsets, entry).empty()) return false;
    if (!run(batch.bias_ids, batch.bias_offsets, entry).empty()) return false;
    if (!run(batch.history, batch.history_offsets, entry).empty()) return false;
    const int32_t token = first_token_of(best_);
    return static_cast<uint32_t>(mask[token / 32]) >> token % 32 & 1;
  }

  // A word of the mask has 32 tokens; mostly all of them or none are allowed.
  void apply(Ids mask) {
    for (size_t i = 0; i < mask.size(); ++i) {
      const uint32_t word = static_cast<uint32_t>(mask[i]);
      if (word == ~uint32_t{0}) continue;
      float* first = edited_.data() + 32 * i;
      const int64_t count = std::min<int64_t>(32, size_ - 32 * static_cast<int64_t>(i));
      for (int64_t bit = 0; bit < count; ++bit) first[bit] = word >> bit & 1 ? first[bit] : -kInfinity;
    }
  }

  void penalise(Ids history, const SamplingBatch& batch, int64_t entry) {
    if (history.empty()) return;
    const double repetition = batch.repetition_penalty[entry];
    const double frequency = batch.frequency_penalty[entry];
    const double presence = batch.presence_penalty[entry];
    occurrences_.resize(size_);
    const size_t prompt_len = batch.prompt_lens[entry];
    seen_.clear();
    for (size_t i = 0; i < history.size(); ++i) {
      Occurrences& times = occurrences_[history[i]];
      if (times.anywhere++ == 0) seen_.push_back(history[i]);
      times.in_output += i >= prompt_len;
    }
    for (int32_t id : seen_) {
      const double logit = edited_[id];
      float value = static_cast<float>(logit > 0 ? logit / repetition : logit * repetition);
      if (const uint32_t count = occurrences_[id].in_output)
        value = static_cast<float>(value - frequency * count - presence);
      edited_[id] = value;
      occurrences_[id] = {};
    }
  }

  int32_t first_token_of(float best) const {
    const int64_t block = std::find(block_max_.begin(), block_max_.end(), best) - block_max_.begin();
    return static_cast<int32_t>(std::find(row_ + block * kBlock, row_ + size_, best) - row_);
  }

  // The limit of a row whose best logits are infinite: only these can be drawn, all equally likely.
  void share_among_infinite() {
    infinite_.resize(size_);
    for (int64_t i = 0; i < size_; ++i) infinite_[i] = row_[i] / scaling_.temperature == kInfinity ? 0.0f : -kInfinity;
    row_ = infinite_.data();
    maximum(row_, size_, block_max_);
    scaling_ = {1.0f, 0.0f};
  }

  bool cuts_top_k(const SamplingBatch& batch, int64_t entry) const {
    return batch.top_k[entry] > 0 && batch.top_k[entry] < size_;
  }

  bool has_filters(const SamplingBatch& batch, int64_t entry) const {
    return batch.min_p[entry] > 0.0f || cuts_top_k(batch, entry) || batch.top_p[entry] < 1.0f;
  }

  // Leaves in candidates_ the tokens that min_p, top_k and top_p keep.
  void filter(const SamplingBatch& batch, int64_t entry) {
    float floor = -kInfinity;  // of scores
    if (batch.min_p[entry] > 0.0f) floor = static_cast<float>(std::log(static_cast<double>(batch.min_p[entry])));
    if (cuts_top_k(batch, entry))
      floor = std::max(floor, scaling_.score(kth_largest(row_, size_, batch.top_k[entry], block_max_, candidates_)));
    const double top_p = batch.top_p[entry];
    if (top_p >= 1.0) {
      collect(floor);
    } else if (floor > -kInfinity) {
      collect(floor);
      const double total = mass(candidates_.values.data(), candidates_.size, scaling_, block_mass_);
      top_p_.keep(candidates_, scaling_, top_p * total);
    } else {
      const double total = mass(row_, size_, scaling_, block_mass_);
      // 0.99 covers rounding; the floor may be too low, never too high
      collect(static_cast<float>(std::log(0.99 * (1.0 - top_p) * total / static_cast<double>(size_))));
      top_p_.keep(candidates_, scaling_, top_p * total);
    }
  }

  void collect(float floor) {
    const float lowest_logit = lowest([&](float logit) { return scaling_.score(logit) >= floor; });
    candidates_.collect(row_, size_, block_max_, lowest_logit);
  }

  // The first index whose cumulative mass exceeds u * mass. Within a block the weights are computed again. The best
  // token is among the values, and has a weight of 1.
  int64_t draw(const float* values, int64_t size, double u) {
    const double target = u * mass(values, size, scaling_, block_mass_);
    while (block_mass_.back() == 0) block_mass_.pop_back();
    const int64_t last_block = static_cast<int64_t>(block_mass_.size()) - 1;
    int64_t block = 0;
    double before = 0;
    while (block < last_block && before + block_mass_[block] <= target) before += block_mass_[block++];

    const int64_t start = block * kBlock;
    float weights[kBlock];
    block_weights(values + start, std::min(kBlock, size - start), scaling_, weights);
    int64_t last_with_mass = 0;  // the answer where rounding lets the target reach the end of the block
    for (int64_t i = 0; i < kBlock; ++i) {
      before += weights[i];
      if (before > target) return start + i;
      if (weights[i] > 0) last_with_mass = i;
    }
    return start + last_with_mass;
  }

  struct Occurrences {
    uint32_t anywhere, in_output;
  };

  const float* row_ = nullptr;  // of the current entry, edited if needed
  int64_t size_ = 0;
  float best_ = 0;  // its best logit
  Scaling scaling_{};
  bool shares_infinite_ = false;  // its best logits are infinite when divided; row_ has 0 for them
  std::vector<float> block_max_;
  std::vector<double> block_mass_;
  Candidates candidates_;
  TopP top_p_;
  std::vector<float> edited_, infinite_;
  std::vector<Occurrences> occurrences_;  // by token id; all zero between entries
  std::vector<int32_t> seen_;
};

EntrySampler& thread_sampler() {
  static thread_local EntrySampler sampler;
  return sampler;
}

}  // namespace

void sample(ThreadPool& pool, const float* logits, int64_t vocab_size, const SamplingBatch& batch, int64_t num_entries,
            int32_t* tokens) {
  pool.parallel_for(num_entries, 1, [&](int64_t begin, int64_t end, int) {
    EntrySampler& sampler = thread_sampler();
    for (int64_t i = begin; i < end; ++i)
      tokens[i] = sampler.sample(logits + batch.logits_rows[i] * vocab_size, vocab_size, batch, i);
  });
}

void processed_logits(ThreadPool& pool, const float* logits, int64_t vocab_size, const SamplingBatch& batch,
                      int64_t num_entries, float* processed, int32_t* results) {
  pool.parallel_for(num_entries, 1, [&](int64_t begin, int64_t end, int) {
    EntrySampler& sampler = thread_sampler();
    for (int64_t i = begin; i < end; ++i) {
      const float* row = logits + batch.logits_rows[i] * vocab_size;
      results[i] = sampler.process(row, vocab_size, batch, i, processed + i * vocab_size);
    }
  });
}

}  // namespace octavo
