// A layer of experts: choosing them, sorting rows by expert, and the products.
#include "mixture.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "activations.h"

namespace octavo {
namespace {

// Scores [E] over the logits, in place.
void score(const MixtureSpec& spec, float* logits) {
  const int64_t count = spec.num_experts;
  if (spec.scoring == Scoring::sigmoid) {
    for (int64_t e = 0; e < count; ++e) logits[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  const float most = *std::max_element(logits, logits + count);
  float total = 0;
  for (int64_t e = 0; e < count; ++e) total += logits[e] = std::exp(logits[e] - most);
  for (int64_t e = 0; e < count; ++e) logits[e] /= total;
}

// The index of the largest value that is not taken; a NaN is chosen only before all that follow it.
int64_t best(const float* values, const std::vector<char>& taken, int64_t begin, int64_t end) {
  int64_t found = -1;
  for (int64_t i = begin; i < end; ++i) {
    if (!taken[i] && (found < 0 || values[i] > values[found])) found = i;
  }
  return found;
}

// Takes away the experts of all groups but the best.
void keep_groups(const MixtureSpec& spec, const float* ranked, std::vector<char>& taken) {
  const int64_t size = spec.num_experts / spec.num_groups;
  std::vector<float> scores(spec.num_groups);
  for (int64_t g = 0; g < spec.num_groups; ++g) {
    const int64_t begin = g * size, end = begin + size, first = best(ranked, taken, begin, end);
    scores[g] = ranked[first];
    if (spec.group_score == GroupScore::sum_of_two) {
      taken[first] = 1;
      scores[g] += ranked[best(ranked, taken, begin, end)];
      taken[first] = 0;
    }
  }
  std::vector<char> kept(spec.num_groups, 0);
  for (int64_t i = 0; i < spec.top_groups; ++i) kept[best(scores.data(), kept, 0, spec.num_groups)] = 1;
  for (int64_t e = 0; e < spec.num_experts; ++e) taken[e] = !kept[e / size];
}

// One token's experts, best first, and their weights.
void choose(const MixtureSpec& spec, float* logits, int32_t* ids, float* weights) {
  score(spec, logits);
  std::vector<float> ranked(logits, logits + spec.num_experts);
  for (int64_t e = 0; e < spec.num_experts && spec.bias; ++e) ranked[e] += spec.bias[e];
  std::vector<char> taken(spec.num_experts, 0);
  if (spec.top_groups < spec.num_groups) keep_groups(spec, ranked.data(), taken);
  float total = 0;
  for (int64_t k = 0; k < spec.num_chosen; ++k) {
    const int64_t expert = best(ranked.data(), taken, 0, spec.num_experts);
    taken[expert] = 1;
    ids[k] = int32_t(expert);
    total += weights[k] = logits[expert];
  }
  const float factor = spec.renormalises ? spec.scale / (total + 1e-20f) : spec.scale;
  for (int64_t k = 0; k < spec.num_chosen; ++k) weights[k] *= factor;
}

// act(gate) * up, over the gate.
void gate_row(const MixtureSpec& spec, float* gate_up) {
  float *gate = gate_up, *up = gate_up + spec.inner_size;
  if (spec.gate != Gate::clamped) {
    with_kind(Activation(spec.gate), [&](auto act) {
      map_row([=](auto lanes, auto g, auto u) { return act(lanes, g) * u; }, spec.inner_size, gate, gate, up);
    });
    return;
  }
  const float alpha = spec.alpha, limit = spec.limit;
  const auto clamped = [=](auto lanes, auto g, auto u) {
    const auto most = broadcast<lanes>(limit);
    g = g > most ? most : g;
    u = u > most ? most : (u < -most ? -most : u);
    return g / (1.0f + exp<lanes>(-alpha * g)) * (u + 1.0f);
  };
  map_row(clamped, spec.inner_size, gate, gate, up);
}

int64_t padded(int64_t floats) { return (floats + 15) / 16 * 16; }

}  // namespace

int64_t mixture_row_bytes(const MixtureSpec& spec, int64_t num_tokens) {
  const int64_t tokens = std::min(num_tokens, kMostTokens), rows = tokens * spec.num_chosen;
  return 4 * (padded(tokens * spec.num_experts) + padded(rows * spec.hidden_size) + padded(rows * 2 * spec.inner_size)) +
         12 * rows;
}

void Mixture::add(MixtureProduct product, int64_t expert, std::unique_ptr<PackedMatrix> matrix, const float* bias) {
  Weight& weight = product == MixtureProduct::router    ? router_
                   : product == MixtureProduct::gate_up ? gate_up_.at(expert)
                                                        : down_.at(expert);
  weight.push_back({std::move(matrix), bias});
}

int64_t Mixture::packed_bytes() const {
  int64_t total = 0;
  const auto count = [&](const Weight& weight) {
    for (const Part& part : weight) total += part.matrix->packed_bytes();
  };
  count(router_);
  for (const Weight& weight : gate_up_) count(weight);
  for (const Weight& weight : down_) count(weight);
  return total;
}

const PackedMatrix* Mixture::matrix(MixtureProduct product, int64_t expert, int64_t part) const {
  const Weight& weight = product == MixtureProduct::gate_up ? gate_up_.at(expert) : down_.at(expert);
  return part < int64_t(weight.size()) ? weight[part].matrix.get() : nullptr;
}

void Mixture::run(ThreadPool& pool, Rows x, Rows out, int64_t num_tokens, MixtureScratch& scratch) const {
  for (int64_t first = 0; first < num_tokens; first += kMostTokens) {
    const Rows some{x[first], x.width, x.stride}, result{out[first], out.width, out.stride};
    run_some(pool, some, result, std::min(kMostTokens, num_tokens - first), scratch);
  }
}

void Mixture::run_some(ThreadPool& pool, Rows x, Rows out, int64_t num_tokens, MixtureScratch& scratch) const {
  const int64_t k = spec_.num_chosen, num_rows = num_tokens * k, hidden = spec_.hidden_size, inner = spec_.inner_size;
  const int64_t logits_floats = padded(num_tokens * spec_.num_experts);
  scratch.rows.reserve(logits_floats + padded(num_rows * hidden) + padded(num_rows * 2 * inner));
  route(pool, x, num_tokens, scratch);
  if (spec_.loads) place(num_tokens, scratch);
  sort(num_tokens, scratch);

  const Rows sorted{scratch.rows.data() + logits_floats, hidden, hidden};
  const Rows gate_up{sorted.data + padded(num_rows * hidden), 2 * inner, 2 * inner};
  for_each_token(pool, num_rows, hidden, [&](int64_t i) {
    if (scratch.places[i] >= 0) std::copy_n(x[i / k], hidden, sorted[scratch.places[i]]);
  });
  multiply_own(pool, gate_up_, sorted, gate_up, scratch);
  const int64_t num_own_rows = scratch.ends.empty() ? 0 : scratch.ends.back();
  for_each_token(pool, num_own_rows, 8 * inner, [&](int64_t row) { gate_row(spec_, gate_up[row]); });
  multiply_own(pool, down_, gate_up, sorted, scratch);
  for_each_token(pool, num_tokens, k * hidden, [&](int64_t t) {
    std::fill_n(out[t], hidden, 0.0f);
    for (int64_t i = t * k; i < (t + 1) * k; ++i) {
      if (scratch.places[i] < 0) continue;
      const float weight = scratch.weights[i];
      map_row([=](auto, auto sum, auto y) { return sum + weight * y; }, hidden, out[t], out[t],
              sorted[scratch.places[i]]);
    }
  });
}

void Mixture::route(ThreadPool& pool, Rows x, int64_t num_tokens, MixtureScratch& scratch) const {
  const int64_t count = spec_.num_experts;
  scratch.ids.resize(num_tokens * spec_.num_chosen);
  scratch.weights.resize(num_tokens * spec_.num_chosen);
  scratch.products.clear();
  float* logits = scratch.rows.data();
  for (int64_t first = 0; const Part& part : router_) {
    scratch.products.push_back(
        {part.matrix.get(), x.data, x.stride, num_tokens, part.bias, logits + first, count, nullptr});
    first += part.matrix->rows();
  }
  multiply_all(pool, scratch);
  for_each_token(pool, num_tokens, (8 + spec_.num_chosen) * count, [&](int64_t t) {
    choose(spec_, logits + t * count, &scratch.ids[t * spec_.num_chosen], &scratch.weights[t * spec_.num_chosen]);
  });
}

// Counts the rows of each expert, and puts slots in the place of experts.
void Mixture::place(int64_t num_tokens, MixtureScratch& scratch) const {
  for (int64_t i = 0; i < num_tokens * spec_.num_chosen; ++i) {
    int32_t& id = scratch.ids[i];
    ++spec_.loads[id];
    const int32_t* slots = spec_.places + id * spec_.place_width;
    id = slots[1 + i / spec_.num_chosen % slots[0]];
  }
}

// Rows by expert, and each expert's by token.
void Mixture::sort(int64_t num_tokens, MixtureScratch& scratch) const {
  const auto own = [&](int32_t id) { return uint64_t(id - spec_.first_expert) < uint64_t(spec_.num_own); };
  scratch.places.assign(num_tokens * spec_.num_chosen, -1);
  scratch.ends.assign(spec_.num_own, 0);
  for (const int32_t id : scratch.ids) {
    if (own(id)) ++scratch.ends[id - spec_.first_expert];
  }
  int64_t begin = 0;
  for (int64_t& end : scratch.ends) begin += std::exchange(end, begin);
  for (size_t i = 0; i < scratch.ids.size(); ++i) {
    if (own(scratch.ids[i])) scratch.places[i] = int32_t(scratch.ends[scratch.ids[i] - spec_.first_expert]++);
  }
}

// Each expert's rows of x times its weight.
void Mixture::multiply_own(ThreadPool& pool, const std::vector<Weight>& weights, Rows x, Rows y,
                           MixtureScratch& scratch) const {
  scratch.products.clear();
  for (int64_t expert = 0, begin = 0; expert < spec_.num_own; begin = scratch.ends[expert++]) {
    const int64_t count = scratch.ends[expert] - begin;
    int64_t first = 0;
    for (const Part& part : weights[expert]) {
      if (count == 0) break;
      scratch.products.push_back({part.matrix.get(), x[begin], x.stride, count, part.bias, y[begin] + first, y.stride, nullptr});
      first += part.matrix->rows();
    }
  }
  multiply_all(pool, scratch);
}

// Gives each product its scratch memory, and computes them.
void Mixture::multiply_all(ThreadPool& pool, MixtureScratch& scratch) {
  const auto floats = [](const Product& p) { return padded((p.matrix->scratch_bytes(p.num_tokens) + 3) / 4); };
  int64_t total = 0;
  for (const Product& product : scratch.products) total += floats(product);
  scratch.tiles.reserve(total);
  float* next = scratch.tiles.data();
  for (Product& product : scratch.products) {
    product.scratch = next;
    next += floats(product);
  }
  multiply(pool, scratch.products);
}

}  // namespace octavo
