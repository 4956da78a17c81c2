// The smallest set of best tokens that holds a given mass, found without sorting.
//
//   score   0 ......... -1 ......... -2 ......... -3 ...       32 steps to a unit of score
//   mass    |||||||||||||||||||||||||||||||||| ...
//           kept whole                  ^ the step in which the target is reached: only its tokens are ranked,
//                                         and only as far as a weighted quickselect needs
//
// Better means a higher score, or a lower id at the same score.
#pragma once
#include <bit>

#include "logits_row.h"

namespace octavo {

class TopP {
 public:
  // Takes tokens, best first, until they hold `target`, and at least one. The others are removed from `candidates`.
  void keep(logits_row::Candidates& candidates, logits_row::Scaling scaling, double target) {
    weigh_steps(candidates, scaling);
    double held = 0;
    int32_t step = 0;
    while (step < last_step_ && held + step_mass_[step] < target) held += step_mass_[step++];

    rank_tokens_of(step, candidates, scaling);
    const uint64_t last = last_rank(target - held);
    int64_t kept = 0;
    for (int64_t i = 0; i < candidates.size; ++i) {
      const float value = candidates.values[i];
      const int32_t id = candidates.ids[i];
      candidates.values[kept] = value;
      candidates.ids[kept] = id;
      bool is_taken = steps_[i] < step;  // no branch: it would be unpredictable
      if (steps_[i] == step) is_taken = rank(scaling.score(value), id) <= last;
      kept += is_taken;
    }
    candidates.size = kept;
  }

 private:
  static constexpr int32_t kNumSteps = 1024;
  static constexpr float kStepsPerUnit = 32.0f;
  static constexpr int64_t kSortedAtOnce = 32;

  struct RankedToken {
    uint64_t rank;
    float weight;
    bool operator<(const RankedToken& other) const { return rank < other.rank; }
  };

  // Smaller is better. The bits of non-negative floats sort in the same order as the floats.
  static uint64_t rank(float score, int32_t id) {
    return uint64_t{std::bit_cast<uint32_t>(std::fabs(score))} << 32 | static_cast<uint32_t>(id);
  }

  void weigh_steps(const logits_row::Candidates& candidates, logits_row::Scaling scaling) {
    using logits_row::kBlock;
    steps_.resize(candidates.size);
    step_mass_.assign(kNumSteps, 0.0);
    last_step_ = 0;
    for (int64_t start = 0; start < candidates.size; start += kBlock) {
      const int64_t count = std::min(kBlock, candidates.size - start);
      const float* values = &candidates.values[start];
      int32_t* steps = &steps_[start];
      for (int64_t i = 0; i < count; ++i) {
        const float place = -scaling.score(values[i]) * kStepsPerUnit;
        steps[i] = place < kNumSteps - 1 ? static_cast<int32_t>(place) : kNumSteps - 1;
      }
      float weights[kBlock];
      block_weights(values, count, scaling, weights);
      for (int64_t i = 0; i < count; ++i) step_mass_[steps[i]] += weights[i];
      last_step_ = std::max(last_step_, *std::max_element(steps, steps + count));
    }
  }

  void rank_tokens_of(int32_t step, const logits_row::Candidates& candidates, logits_row::Scaling scaling) {
    using logits_row::kBlock;
    in_step_.clear();
    ranked_.clear();
    for (int64_t i = 0; i < candidates.size; ++i) {
      if (steps_[i] != step) continue;
      in_step_.push_back(candidates.values[i]);
      ranked_.push_back({rank(scaling.score(candidates.values[i]), candidates.ids[i]), 0.0f});
    }
    for (size_t start = 0; start < in_step_.size(); start += kBlock) {
      float weights[kBlock];
      const int64_t count = std::min<int64_t>(kBlock, in_step_.size() - start);
      block_weights(&in_step_[start], count, scaling, weights);
      for (int64_t i = 0; i < count; ++i) ranked_[start + i].weight = weights[i];
    }
  }

  // The rank of the last ranked token that is taken: quickselect, by mass instead of by number.
  uint64_t last_rank(double target) {
    RankedToken* begin = ranked_.data();
    RankedToken* end = begin + ranked_.size();
    double held = 0;
    while (end - begin > kSortedAtOnce) {
      const uint64_t pivot = middle(begin->rank, begin[(end - begin) / 2].rank, end[-1].rank);
      RankedToken* split = std::partition(begin, end, [&](const RankedToken& token) { return token.rank <= pivot; });
      double better_mass = 0;
      for (const RankedToken* token = begin; token != split; ++token) better_mass += token->weight;
      if (held + better_mass >= target) {
        end = split;
      } else {
        held += better_mass;
        begin = split;
      }
    }
    std::sort(begin, end);
    const RankedToken* last = begin;
    for (const RankedToken* token = begin; token != end && (token == begin || held < target); ++token) {
      held += token->weight;
      last = token;
    }
    return last->rank;
  }

  static uint64_t middle(uint64_t a, uint64_t b, uint64_t c) {
    return std::max(std::min(a, b), std::min(std::max(a, b), c));
  }

  std::vector<int32_t> steps_;  // of each candidate
  std::vector<double> step_mass_;
  int32_t last_step_ = 0;  // that has a candidate
  std::vector<float> in_step_;  // logits of the step that is ranked
  std::vector<RankedToken> ranked_;
};

}  // namespace octavo
