// Mixture: a layer of experts, of which each token uses a few.
//
//   x [T, H] --router--> logits --choose--> K experts and weights a token
//      \--sorted by expert--> [T * K, H] --gate_up--> --gate--> [T * K, F] --down--> [T * K, H] --weighted sum--> [T, H]
//
// An expert's product reads its weights once for all of its tokens, and the products of all experts share the threads.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "aligned_floats.h"
#include "octavo/matmul.h"
#include "rows.h"

namespace octavo {

// Values agree with octavo/kernels/mixture.py, in order.
enum class Scoring : int32_t { softmax, sigmoid };
enum class GroupScore : int32_t { largest, sum_of_two };
enum class Gate : int32_t { silu, gelu, gelu_tanh, relu, clamped };

// The fields of Routing, Gate and Mixture in octavo/kernels/mixture.py.
struct MixtureSpec {
  int64_t num_experts, num_chosen, num_groups, top_groups;
  Scoring scoring;
  GroupScore group_score;
  int32_t renormalises;
  float scale;
  const float* bias;  // added to scores where experts are chosen; or null
  Gate gate;
  float alpha, limit;  // of a clamped gate
  int64_t hidden_size, inner_size;
  int64_t first_expert, num_own;  // the experts that are here, or the slots
  int64_t* loads;         // [experts]: rows that chose each; or null: experts stay where they are
  const int32_t* places;  // [experts, place_width]: the number of an expert's slots, and the slots
  int64_t place_width;
};

// Scratch memory, kept from one run to the next.
struct MixtureScratch {
  AlignedFloats rows, tiles;
  std::vector<int32_t> ids, places;    // [T, K]: the chosen experts, and their rows in the order by expert; -1: not here
  std::vector<float> weights;          // [T, K]
  std::vector<int64_t> ends;           // [experts]: where each expert's rows end
  std::vector<Product> products;

  int64_t bytes() const { return rows.bytes() + tiles.bytes() + int64_t(ids.capacity() * 12 + ends.capacity() * 8); }
};

// Tokens that are computed at once; more are computed in turns, so that scratch memory stays bounded.
constexpr int64_t kMostTokens = 512;

// Bytes of a mixture's rows in the order by expert.
int64_t mixture_row_bytes(const MixtureSpec& spec, int64_t num_tokens);

enum class MixtureProduct : int32_t { router, gate_up, down };

class Mixture {
 public:
  explicit Mixture(const MixtureSpec& spec) : spec_(spec), gate_up_(spec.num_own), down_(spec.num_own) {}

  // Adds a matrix with the product's next outputs. expert: counted among those that are here.
  void add(MixtureProduct product, int64_t expert, std::unique_ptr<PackedMatrix> matrix, const float* bias);
  int64_t packed_bytes() const;
  // One of the matrices that an expert's product was made of; null: there are fewer.
  const PackedMatrix* matrix(MixtureProduct product, int64_t expert, int64_t part) const;
  void run(ThreadPool& pool, Rows x, Rows out, int64_t num_tokens, MixtureScratch& scratch) const;

 private:
  struct Part {
    std::unique_ptr<PackedMatrix> matrix;
    const float* bias;
  };
  using Weight = std::vector<Part>;  // one below the other

  void run_some(ThreadPool& pool, Rows x, Rows out, int64_t num_tokens, MixtureScratch& scratch) const;
  void route(ThreadPool& pool, Rows x, int64_t num_tokens, MixtureScratch& scratch) const;
  void place(int64_t num_tokens, MixtureScratch& scratch) const;
  void sort(int64_t num_tokens, MixtureScratch& scratch) const;
  void multiply_own(ThreadPool& pool, const std::vector<Weight>& weights, Rows x, Rows y, MixtureScratch& scratch) const;
  static void multiply_all(ThreadPool& pool, MixtureScratch& scratch);

  MixtureSpec spec_;
  Weight router_;
  std::vector<Weight> gate_up_, down_;
};

}  // namespace octavo
