// The loader of one_sequence_attention.cu: a warp that copies keys and values, and adds those of the newest token.
#pragma once

#include "one_sequence_kind.cuh"

namespace octavo {
namespace {

// A lane's dims of a head
struct alignas(4 * kLaneDims) Dims {
  float x[kLaneDims];
};
struct alignas(2 * kLaneDims) Pairs {
  uint32_t x[kLaneDims / 2];
};

__device__ __forceinline__ Dims dims_at(const float* from) { return *reinterpret_cast<const Dims*>(from); }

__device__ __forceinline__ Dims dims_at(const Element* from) {
  const Pairs pairs = *reinterpret_cast<const Pairs*>(from);
  Dims dims;
#pragma unroll
  for (int i = 0; i < kLaneDims / 2; ++i) {
    dims.x[2 * i] = low_half<Element>(pairs.x[i]);
    dims.x[2 * i + 1] = high_half<Element>(pairs.x[i]);
  }
  return dims;
}

__device__ __forceinline__ void store_dims(void* to, const Dims& dims) {
  Pairs pairs;
#pragma unroll
  for (int i = 0; i < kLaneDims / 2; ++i) pairs.x[i] = pack<Element>(dims.x[2 * i], dims.x[2 * i + 1]);
  *reinterpret_cast<Pairs*>(to) = pairs;
}

// A head that a warp norms and rotates, kLaneDims dims a lane. What does not depend on the row is read before it is
// there.
struct Head {
  const int d = threadIdx.x % 32 * kLaneDims;
  const bool turns = d < ROTARY_DIM, is_low = d < ROTARY_DIM / 2;
  const int partner = turns ? is_low ? d + ROTARY_DIM / 2 : d - ROTARY_DIM / 2 : d;
  Dims weight, partner_weight, cos, sin;

  __device__ Head(const Launch& launch, const float* norm, int position) {
    if (HAS_NORM) weight = dims_at(norm + d), partner_weight = dims_at(norm + partner);
    if (turns) {
      const int64_t angle = int64_t(position) * (ROTARY_DIM / 2) + min(d, partner);
      cos = dims_at(launch.cos + angle), sin = dims_at(launch.sin + angle);
    }
  }

  // from: the head's dim 0
  __device__ __forceinline__ Dims turned(const Element* from, float eps) const {
    Dims own = dims_at(from + d), other = dims_at(from + partner);
    if (HAS_NORM) {
      float square = 0;
#pragma unroll
      for (int i = 0; i < kLaneDims; ++i) square += own.x[i] * own.x[i];
#pragma unroll
      for (int step = 16; step > 0; step /= 2) square += __shfl_xor_sync(~0u, square, step);
      const float factor = rsqrtf(square / kDim + eps);
#pragma unroll
      for (int i = 0; i < kLaneDims; ++i) {
        own.x[i] *= factor * weight.x[i];
        other.x[i] *= factor * partner_weight.x[i];
      }
    }
    if (turns) {
#pragma unroll
      for (int i = 0; i < kLaneDims; ++i) {
        own.x[i] = own.x[i] * cos.x[i] + (is_low ? -other.x[i] : other.x[i]) * sin.x[i];
      }
    }
    return own;
  }
};

struct Loader {
  const Launch& launch;
  const void* map;
  OneShared& shared;
  const Share& share;
  const int* table;
  const int lane = threadIdx.x % 32;

  __device__ __forceinline__ void init_barriers() const {
    if (lane == 0) {
      prefetch_map(map);
      for (int i = 0; i < kOneEntries; ++i) {
        barrier_init(address(shared.full[i]), 1);
        barrier_init(address(shared.free[i]), kWarps);
      }
      barrier_init(address(shared.newest), 1);
      barrier_init(address(shared.arrived), 1);
      barrier_fence_init();
      barrier_arrive_expecting(address(shared.arrived), sizeof(shared.sums) + sizeof(shared.max_sum));
    }
    __syncwarp();
  }

  __device__ void copy() const {
    const int num_boxes = share.num_boxes();
    for (int first = 0, use = 0; first < num_boxes; first += kWarps) {
      const int boxes = min(num_boxes - first, kWarps), box = lane % kWarps, slab = lane / kWarps;
      const int token = share.begin + (first + min(box, boxes - 1)) * kBox;
      const int row = table[token / BLOCK_SIZE] * launch.block_rows + launch.layer_row + token % BLOCK_SIZE;
      for (int kind = 0; kind < 2; ++kind, ++use) {  // keys, values
        const int entry = entry_of(use);
        const uint32_t full = address(shared.full[entry]);
        barrier_wait(address(shared.free[entry]), parity_of(use) ^ 1);
        if (kind == 1) clear(shared.ring[entry], boxes * kBox, kOneStage);
        if (lane == 0) barrier_arrive_expecting(full, boxes * kSlabs * kBox * 128);
        __syncwarp();
        if (box < boxes && slab < kSlabs) {
          const int head = share.kv_head + kind * launch.num_kv_heads;
          const uint32_t to = shared_address(shared.ring[entry]) + slab * kOneSlabBytes + box * (kBox * 128);
          copy_box(to, map, slab * 64, row + head * BLOCK_SIZE, full);
        }
      }
    }
  }

  // Values of tokens that are not there: they may hold NaN, and 0 * NaN is NaN
  __device__ __forceinline__ void clear(unsigned char* values, int begin, int end) const {
    for (int i = lane; i < (end - begin) * kSlabs * 8; i += 32) {
      *reinterpret_cast<uint4*>(values + stage_offset(begin + i / (kSlabs * 8), i % (kSlabs * 8))) = uint4{};
    }
    __syncwarp();
  }

  // The newest token's key and value come to the cache, and to their place in the block's last stage
  __device__ void add_newest(int row) const {
    const int stage = (share.num_boxes() - 1) / kWarps, last = share.tokens - 1 - share.begin - stage * kOneStage;
    const int position = share.tokens - 1;
    const Head head(launch, launch.k_norm, position);
    unsigned char* entries[2];
#pragma unroll
    for (int kind = 0; kind < 2; ++kind) {
      const int use = 2 * stage + kind;
      entries[kind] = shared.ring[entry_of(use)];
      barrier_wait(address(shared.full[entry_of(use)]), parity_of(use));
    }
    clear(entries[1], last + 1, (last / kBox + 1) * kBox);
    const uint32_t at = stage_offset(last, head.d / 8) + head.d % 8 * sizeof(Element);
    Element* cell = launch.pool + table[position / BLOCK_SIZE] * launch.block_stride +
                    (share.kv_head * BLOCK_SIZE + position % BLOCK_SIZE) * kDim + head.d;
    if (IS_CHAINED) wait_for_previous();
    const int num_heads = launch.num_kv_heads * GROUP;
    const Element* heads = launch.q + row * launch.q_stride;
    const Dims value = dims_at(heads + (num_heads + launch.num_kv_heads + share.kv_head) * kDim + head.d);
    const Dims key = head.turned(heads + (num_heads + share.kv_head) * kDim, launch.eps);
    store_dims(entries[0] + at, key);
    store_dims(entries[1] + at, value);
    __syncwarp();
    if (lane == 0) barrier_arrive(address(shared.newest));
    store_dims(cell, key);
    store_dims(cell + launch.value_offset, value);
  }
};

}  // namespace
}  // namespace octavo
