// Decode attention of a made-up model: ALiBi instead of a rotation, and sinks.
//
// ALiBi (Press et al., 2022) lowers a score by the head's slope for each token of distance. A sink is one more score of
// a head's softmax, learned, which has no value: a head that finds nothing gives it its weight.
#include "hooks.cuh"

namespace octavo {

struct AlibiSinks : PlainHooks {
  const float* slopes;  // of each query head, times log2(e)
  const float* sinks;   // too

  static constexpr bool kChangesScores = true;
  __device__ float score(float score, int head, int distance) const { return score - __ldg(slopes + head) * distance; }

  static constexpr bool kHasSinks = true;
  __device__ float sink(int head) const { return __ldg(sinks + head); }
};

}  // namespace octavo

#define HOOKS AlibiSinks
#include "decode_attention.cu"
