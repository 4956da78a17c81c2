// The products of a few rows with the experts that they chose, at the speed of reading these experts' weights once.
//
//   gate_up   for each pair of a row and one of its experts: act(gate) * up
//   down      for each row: the weighted sum over its experts, and the residual
//
// A persistent grid, one block a multiprocessor; two kernels share its shared memory. A tile is an expert and up to ROWS
// of its rows (expert_choice.cuh). A block has a run of units, one after another:
//
//   gate_up   a unit is a tile and 8 outputs of the gate and of up; tiles are the outer loop
//   down      a unit is 8 outputs and a tile; tiles are the inner loop, so that a block adds up all experts of its
//             outputs itself, in the order of the tiles
//
//   1 loader      weights, and the rows they meet, stage after stage ──> a ring in shared memory. `down` knows the choice
//                 before gate_up has ended, and begins with the weights
//   computers     in teams, each with units of its own, so that it waits for no other; stages of as many units are interleaved:
//
//                     unit 0, inputs 0 to 511 | unit 1, inputs 0 to 511 | ... | unit 0, inputs 512 to 1023 | ...
//
//                 A team shares a stage's spans, of 128 bytes of 8 outputs; mma 16 x 8 x 16: rows are the rows of the
//                 first operand, outputs the columns of the second. Sums of a team are added up in a fixed order, and in
//                 `down` those of all teams, when all tiles of 8 outputs are done
//
// Which inputs a thread multiplies: expert_rows.cuh.

#include "activate.cuh"
#include "expert_load.cuh"
#include "expert_scales.cuh"

namespace octavo {
namespace {

// Sums of 8 outputs, or 16. A product has 16 rows: a thread's four words of a row are those of two rows, of which each product
// is right for one, and what it gives for the other nobody reads. So no register is spent on zeros
struct Sums {
  float first[kHalves][4], second[kHalves][4];

  // p: the weights of 16 inputs, whose numbers of x are the words of `x`
  template <bool kBegins>
  __device__ __forceinline__ void add(int half, const uint4& x, const uint32_t (&p)[4]) {
    const uint32_t a[4] = {x.x, x.y, x.z, x.w};
    if constexpr (kBegins) {
      multiply_any_time<ELEMENT>(first[half], a, p[0], p[2]);
      multiply_any_time<ELEMENT>(second[half], a, p[1], p[3]);
    } else {
      multiply_add_any_time<ELEMENT>(first[half], a, p[0], p[2]);
      multiply_add_any_time<ELEMENT>(second[half], a, p[1], p[3]);
    }
  }

  // Row lane / 4; outputs 2 (lane % 4) and the next
  __device__ __forceinline__ float of(int half, int i) const { return first[half][i] + second[half][2 + i]; }
};

struct Computer {
  const Launch& launch;
  Shared& shared;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, team = warp / kTeam, member = warp % kTeam;
  // Where a thread's weights are in a span. The copy engine has swizzled chunks of 16 bytes by the output
  const uint32_t place = lane / 4 * 128 + (kBits == 4 ? lane / 4 * 16 + lane % 4 * 4 : lane / 4 * 16 ^ lane % 4 * 32);
  int turn = 0;              // gate_up: the team's units that are done; down: the block's outputs
  float totals[kHalves][2];  // row lane / 4; outputs 2 (lane % 4) and the next

  __device__ void run(Walk walk) {
    const int num_stages = walk.stages();
    int count = 0;
    if (IS_DOWN) clear();
    if (IS_DOWN && walk.num_tiles == 0) return finish_without_experts(walk);
    while (walk.has_more()) {
      const int units = walk.count(), out = walk.out;
      if (team < units) multiply_unit_of(walk, count + team, units);
      count += units * num_stages;
      walk.next_group();
      if (IS_DOWN && walk.out != out) finish_rows(out);
    }
  }

  // All inputs of 8 outputs, or 16; their stages are `count` and each `step` further on
  __device__ __forceinline__ void multiply_unit_of(const Walk& walk, int count, int step) {
    const int tile = walk.tile(team), out = walk.output(team);
    const int64_t output = int64_t(shared.choices.expert_of[tile]) * kHalves * launch.columns + out;
    const bool is_there = lane / 4 < kRows && lane / 4 < shared.choices.rows_in[tile];
    const bool finishes = IS_DOWN || member == turn % kTeam;
    // A row that is not there gives sums that nobody reads
    const uint32_t own_x = kWeightBytes + (is_there ? lane / 4 * kRowBytes : 0) + lane % 4 * (kBits == 4 ? 16 : 32);
    Ends ends;
    if (finishes) ends.load(launch, output + lane % 4 * 2);
    Sums sums = {};
#pragma unroll
    for (int i = 0; i < kHalves * 2; ++i) totals[i / 2][i % 2] = 0;
    for (int span = 0; span < walk.num_spans; span += SPANS, count += step) {
      const int entry = count % ENTRIES, spans = walk.spans(span);
      Scales next;
      if (kGroup > 0 && member < spans) next.load(launch, output, span + member);
      while (published(shared_address(&shared.num_begun)) <= uint32_t(count)) {
      }
      barrier_wait(shared_address(&shared.full[entry]), count / ENTRIES & 1);
      const uint32_t stage = shared_address(shared.ring[entry]);
#pragma unroll 1
      for (int i = member; i < spans; i += kTeam) {
        const Scales now = next;
        if (kGroup > 0 && i + kTeam < spans) next.load(launch, output, span + i + kTeam);
        multiply(sums, stage + i * 1024 + place, stage + own_x + i * (kInputs * 2), now);
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(shared_address(&shared.free[entry]));
    }
#pragma unroll
    for (int i = 0; kGroup == 0 && i < kHalves * 2; ++i) totals[i / 2][i % 2] = sums.of(i / 2, i % 2);
    if (IS_DOWN) {
      add_tile(tile, ends, is_there);
    } else {
      join_team(is_there);
      if (finishes) finish_pairs(tile, out, ends, is_there);
      ++turn;
    }
  }

  // A span of 8 outputs, or 16
  __device__ __forceinline__ void multiply(Sums& sums, uint32_t weights, uint32_t x, const Scales& scales) {
    if constexpr (kBits == 4) {
      constexpr int kUnits = 8 / kGroups;  // of a group
#pragma unroll
      for (int group = 0; group < kGroups; group += 2) {
        float2 scale[kHalves][2];
#pragma unroll
        for (int half = 0; kGroup > 0 && half < kHalves; ++half) scales.of_pair(scale[half], half, group);
#pragma unroll
        for (int i = group; i < min(group + 2, kGroups); ++i) {
          multiply_unit<(kGroup > 0)>(sums, weights, x, scales, i, i * kUnits);
#pragma unroll
          for (int unit = i * kUnits + 1; unit < (i + 1) * kUnits; ++unit) {
            multiply_unit<false>(sums, weights, x, scales, i, unit);
          }
          if constexpr (kGroup > 0) add_scaled(sums, scale, i - group);
        }
      }
    } else {
      multiply_chunk<(kGroup > 0)>(sums, weights, x, 0);
      multiply_chunk<false>(sums, weights, x, 16);
      if constexpr (kGroup > 0) {
        float2 scale[kHalves][2];
#pragma unroll
        for (int half = 0; half < kHalves; ++half) scales.of_pair(scale[half], half, 0);
        add_scaled(sums, scale, 0);
      }
    }
  }

  __device__ __forceinline__ void add_scaled(const Sums& sums, const float2 (&scale)[kHalves][2], int i) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      totals[half][0] += sums.of(half, 0) * scale[half][i].x;
      totals[half][1] += sums.of(half, 1) * scale[half][i].y;
    }
  }

  // 32 inputs in 16 bytes of each output, of which four threads have a word each
  template <bool kBegins>
  __device__ __forceinline__ void multiply_unit(Sums& sums, uint32_t weights, uint32_t x, const Scales& scales,
                                                int group, int unit) const {
    const uint4 own = load_words(x + unit * 64);
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const uint32_t w = load_word((weights ^ unit * 16) + half * kHalfBytes);
      uint32_t minus_zero = Raised<ELEMENT>::kMinus + 8 * 0x10001;
      if (HAS_ZEROS) minus_zero = scales.minus_zeros[half][group];
      uint32_t p[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        p[i % 2 * 2 + i / 2] = FORMAT == kFp4 ? fp4_pair<ELEMENT>(w, i) : integer_pair(w, i, minus_zero);
      }
      sums.add<kBegins>(half, own, p);
    }
  }

  // 16 bytes of one output a thread. at: 0, or 16 for the second
  template <bool kBegins>
  __device__ __forceinline__ void multiply_chunk(Sums& sums, uint32_t weights, uint32_t x, int at) const {
    const uint4 own = load_words(x + at);
    uint4 rest = {};
    if (kBits == 8) rest = load_words(x + 128 + at);
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const uint4 w = load_words((weights ^ at) + half * kHalfBytes);
      if constexpr (kBits == 16) {
        sums.add<kBegins>(half, own, {w.x, w.y, w.z, w.w});
      } else {
        sums.add<kBegins>(half, own, {pair(w.x, false), pair(w.x, true), pair(w.y, false), pair(w.y, true)});
        sums.add<false>(half, rest, {pair(w.z, false), pair(w.z, true), pair(w.w, false), pair(w.w, true)});
      }
    }
  }

  static __device__ __forceinline__ uint32_t pair(uint32_t word, bool is_odd) {
    if (FORMAT == kInt8) return int8_pair<ELEMENT>(word ^ 0x80808080, is_odd);
    return kIsRaised ? fp8_placed(word, is_odd) : fp8_pair<ELEMENT>(word, is_odd);
  }

  // gate_up: the team's sums, as the one that finishes reads them
  __device__ __forceinline__ void join_team(bool is_there) {
    if (kTeam == 1) return;
    if (is_there) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) *sums_of(member, half) = {totals[half][0], totals[half][1]};
    }
    named_barrier(1 + team, kTeam * 32);
    if (member != turn % kTeam || !is_there) return;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      totals[half][0] = totals[half][1] = 0;
#pragma unroll
      for (int i = 0; i < kTeam; ++i) {
        const float2 each = *sums_of(i, half);
        totals[half][0] += each.x;
        totals[half][1] += each.y;
      }
    }
  }

  __device__ __forceinline__ float2* sums_of(int member, int half) const {
    float* of_row = shared.sums[turn % 2][team * kTeam + member][lane / 4 % kRows];
    return reinterpret_cast<float2*>(of_row + half * 8 + lane % 4 * 2);
  }

  __device__ __forceinline__ void finish_pairs(int tile, int out, const Ends& ends, bool is_there) const {
    const int output = out + lane % 4 * 2, beyond = padded<kBits>(launch.columns) - launch.columns;
    if (!is_there) return;
    ELEMENT* to = launch.out + shared.choices.pair_at[tile][lane / 4 % kRows] * launch.out_stride;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float gate = totals[0][i] * ends.scale[0][i] + ends.bias[0][i];
      const float up = totals[kHalves - 1][i] * ends.scale[kHalves - 1][i] + ends.bias[kHalves - 1][i];
      const float y = gated(gate, up, launch.gate, launch.alpha, launch.limit) * (kIsRaised ? kRaise : 1);
      to[place_of<kBits>(output + i)] = ELEMENT{uint16_t(pack<ELEMENT>(y, 0))};
    }
    if (out + 8 < launch.columns) return;
    for (int i = lane % 4; i < beyond; i += 4) to[place_of<kBits>(launch.columns + i)] = ELEMENT{0};
  }

  __device__ __forceinline__ void clear() {
    for (int i = lane; i < kMostRows * 8; i += 32) (&shared.sums[0][warp][0][0])[i] = (&shared.sums[1][warp][0][0])[i] = 0;
    __syncwarp();
  }

  // down: this warp's sums of the tile, to its own sums of their rows
  __device__ __forceinline__ void add_tile(int tile, const Ends& ends, bool is_there) {
    if (!is_there) return;
    const int pair = shared.choices.pair_at[tile][lane / 4 % kRows];
    const float weight = shared.choices.weights[pair];
    float* of_row = shared.sums[turn % 2][warp][shared.choices.row_at[tile][lane / 4 % kRows]];
    float2& total = *reinterpret_cast<float2*>(of_row + lane % 4 * 2);
    total.x += weight * (totals[0][0] * ends.scale[0][0]);
    total.y += weight * (totals[0][1] * ends.scale[0][1]);
  }

  // down: of all rows; the last tile has been added. Leaves zeros for the outputs after the next
  __device__ __forceinline__ void finish_rows(int out) {
    named_barrier(1, kComputers * 32);
    for (int i = threadIdx.x; i < launch.routing.num_rows * 8; i += kComputers * 32) {
      const int row = i / 8, output = out + i % 8;
      float y = 0;
#pragma unroll
      for (int j = 0; j < kComputers; ++j) {
        y += shared.sums[turn % 2][j][row][i % 8];
        shared.sums[turn % 2][j][row][i % 8] = 0;
      }
      if (launch.bias != nullptr) y += biases_of(row, output);
      if (launch.residual != nullptr) y += to_float(launch.residual[row * launch.residual_stride + output]);
      launch.out[row * launch.out_stride + output] = ELEMENT{uint16_t(pack<ELEMENT>(y, 0))};
    }
    ++turn;
  }

  // down, where none of this rank's experts is chosen
  __device__ __forceinline__ void finish_without_experts(const Walk& walk) {
    for (int out = walk.out; out < walk.end_out; out += 8) finish_rows(out);
  }

  __device__ __forceinline__ float biases_of(int row, int output) const {
    float y = 0;
    for (int place = 0; place < launch.routing.num_chosen; ++place) {
      const int pair = row * launch.routing.num_chosen + place, expert = shared.choices.ids[pair];
      if (expert < 0 || expert >= launch.routing.num_own) continue;
      y += shared.choices.weights[pair] * to_float(launch.bias[int64_t(expert) * launch.columns + output]);
    }
    return y;
  }
};

}  // namespace
}  // namespace octavo

extern "C" __device__ const int octavo_shared_bytes = sizeof(octavo::Shared);

extern "C" __global__ void __launch_bounds__(octavo::kThreads, ROWS == 1 && IS_DOWN ? 2 : 1)
    octavo_experts(const __grid_constant__ octavo::Launch launch, const __grid_constant__ octavo::TensorMap map) {
  using namespace octavo;
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    for (int i = 0; i < ENTRIES; ++i) {
      barrier_init(shared_address(&shared.full[i]), 1);
      barrier_init(shared_address(&shared.free[i]), kTeam);
    }
    shared.num_begun = 0;
    barrier_fence_init();
    prefetch_map(&map);
  }
#if IS_CHAINED
  if (!IS_DOWN) {  // the router has to have ended. It has when `down` starts
    wait_for_previous();
    allow_next();
  }
#endif
  shared.choices.make<ELEMENT>(launch.routing, !IS_DOWN && blockIdx.x == 0);
  const Walk walk(launch, shared.choices.num_tiles);
  if (threadIdx.x >= kComputers * 32) {
    Loader{launch, map, shared}.run(walk);
    return;
  }
#if IS_CHAINED
  if (IS_DOWN) {
    wait_for_previous();
    allow_next();
  }
#endif
  Computer{launch, shared}.run(walk);
}
