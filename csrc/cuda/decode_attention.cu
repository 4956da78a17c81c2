// Decode attention over a paged KV cache: a block that several sequences share is read once for all of them.
//
// Nearly all the time goes into reading keys and values, so every thread block reads without a pause:
//
//   a persistent grid: one thread block for each stretch of the plan (attention_plan.h) and kv head, two per
//   multiprocessor (one for heads of more than 128 dims), five warps each
//
//     1 loader   walks the stretch's pieces of units, publishes the members of each, and copies:
//                64 tokens of keys, 64 of values, ... ──> a ring in shared memory
//     4 computers, one piece after another:
//       queries of all members, normed and rotated ──> shared memory ──> registers
//       a part of the ring's tokens: scores = Q K^T, online softmax, sums += P V; tensor cores, 16 x 16 at a time
//       at the end of a piece: the result, or a partial one; whoever finishes a sequence's last part joins them all
//
//   rows of a piece     1..16        17..32 on Ampere    more             (members x new tokens x heads of the kv head)
//   a warp computes     all rows,    half of the rows,   a quarter of the rows, all keys;
//                       1/4 of keys  half of the keys    on Hopper the four multiply together (wgmma)
//
// An entry of the ring holds 64 tokens of one head, [slab of 64 dims][token][64 dims], copied in boxes of 16 tokens, a
// slab at a time. Its 16-byte chunks are swizzled by the token, so that ldmatrix reads without bank conflicts. The copy
// engine writes this layout under its 128-byte swizzle, and wgmma reads it.
//
// Compile-time parameters are macros, one build for each kind of layer; features that a kind lacks cost nothing.
// Split-KV decoding is from Flash-Decoding (Dao et al., 2023); stretches of equal work are from FlashInfer (Ye et al.,
// 2025); reading a shared prefix once is from Hydragen (Juravsky et al., 2024) and ChunkAttention (Ye et al., 2024).

#include "attention_plan.h"
#include "ptx.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 128
#define GROUP 4          // query heads per kv head
#define BLOCK_SIZE 16
#define ELEMENT Bf16
#define MAX_QUERIES 1    // new tokens per sequence, at most
#define HAS_WINDOW 0
#define HAS_SOFTCAP 0
#define IS_FUSED 1       // q is the projection's output: norm, rotate, write the new key and value
#define ROTARY_DIM 128
#define HAS_NORM 1
#define IS_CHAINED 1
#define HAS_COPY_ENGINE 1
#define RING_ENTRIES 5   // of 64 tokens' keys or values
#endif

namespace octavo {
namespace {

using Element = ELEMENT;

constexpr int kDim = HEAD_DIM;
constexpr int kSlabs = (kDim + 63) / 64;
constexpr int kPaddedDim = 64 * kSlabs;
constexpr int kSlabBytes = 64 * 128;  // of 64 tokens or query rows
constexpr int kStageBoxes = 4;
constexpr int kStage = kBox * kStageBoxes;  // tokens
constexpr int kEntryBytes = kSlabs * kSlabBytes;
constexpr int kEntries = RING_ENTRIES;
constexpr int kTileQueries = MAX_QUERIES < kTileRows / GROUP ? MAX_QUERIES : kTileRows / GROUP;
constexpr int kMemberRows = kTileQueries * GROUP;
constexpr int kTileMembers = kTileRows / kMemberRows;
constexpr int kComputers = 4;  // warps
constexpr int kThreads = 32 * (kComputers + 1);
constexpr int kBlocksPerMultiprocessor = kPaddedDim > 128 ? 1 : 2;
constexpr float kLowest = -1e30f;
static_assert(GROUP <= kTileRows, "a token's queries of one kv head must fit a tile");
static_assert(kDim % 8 == 0 && kDim <= 256, "heads are read 16 bytes at a time");

struct Launch {
  Plan plan;
  const Element* q;       // [tokens, ...], q_stride elements from one to the next
  Element* out;
  Element* pool;          // the layer's first key in block 0
  const int* block_table;
  float* part_values;     // [part row, kv head, member row, kDim]
  float* part_max_sum;    // [part row, kv head, member row, 2]
  int* done;              // [sequence, kv head] parts; 0 between launches
  const float* q_norm;    // [kDim]
  const float* k_norm;
  const float* cos;       // [positions, ROTARY_DIM / 2]
  const float* sin;
  int64_t q_stride, out_stride, table_stride;
  int64_t block_stride, value_offset;  // elements
  int layer_row, block_rows;           // in rows of kDim elements, of the whole pool
  int num_kv_heads, num_stretches, window;
  float scale_log2, softcap_log2, eps;
};

struct Piece {
  int begin, end;          // tokens; end 0: no more pieces
  int num_members;
  int part_row;            // where the first member's partial result goes
  bool writes;             // whether it writes the new token's key and value
  alignas(16) Member members[kTileMembers];
};

struct Shared {
  unsigned char ring[kEntries][kEntryBytes];  // keys and values in turn
  union {
    unsigned char q[kEntryBytes];
    float sums[kComputers][8][kPaddedDim];
  };
  Piece pieces[2];
  float max_sum[kComputers][16][2];
  int joins[kTileMembers];
  uint64_t full[kEntries], free[kEntries], piece_full[2], piece_free[2];
};

// Walks the pieces of this thread block's stretches; every warp's walk is the same.
struct Walk {
  const Launch& launch;
  int stretch, unit, kv_head, stretch_length, num_units;
  int num_stretches;
  int4 span, place, cut;  // the unit's fields, in order

  __device__ explicit Walk(const Launch& launch) : launch(launch) {
    kv_head = blockIdx.x % launch.num_kv_heads;
    stretch = blockIdx.x / launch.num_kv_heads;
    num_units = launch.plan.totals[0];
    stretch_length = launch.plan.totals[1];
    num_stretches = launch.plan.totals[2];
    unit = stretch < num_stretches ? launch.plan.stretch_units[stretch] : 0;
    find();
  }

  // Reads the unit's fields; if no part of the unit is in this stretch, those of the next stretch's first unit.
  __device__ void find() {
    while (stretch < num_stretches) {
      if (unit < num_units) {
        const int4* fields = reinterpret_cast<const int4*>(launch.plan.units + unit);
        span = fields[0];
        place = fields[1];
        cut = fields[2];
        if (place.z <= stretch) return;
      }
      stretch += launch.num_stretches;
      if (stretch < num_stretches) unit = launch.plan.stretch_units[stretch];
    }
  }

  __device__ bool has_piece() const { return stretch < num_stretches; }
  __device__ int begin() const { return first_token(stretch); }
  __device__ int end() const { return min(span.z, first_token(stretch + 1)); }

  // The first token of the first of the unit's boxes that begins in this stretch or after it.
  __device__ int first_token(int stretch) const {
    const int start = cut.x, cost = cut.y;
    return span.y + max(stretch * stretch_length - start + cost - 1, 0) / cost * kBox;
  }

  __device__ void advance() {
    ++unit;
    find();
  }
};

// Where 16 bytes of a token (or a query row) lie in an entry of 64.
__device__ __forceinline__ uint32_t chunk_offset(int token, int chunk) {
  return chunk / 8 * kSlabBytes + token * 128 + ((chunk % 8) ^ (token & 7)) * 16;
}

__device__ __forceinline__ uint32_t address(const uint64_t& barrier) { return shared_address(&barrier); }

// Publishes the next piece to the computers. When this returns, its members are still being copied.
__device__ __forceinline__ void announce(const Launch& launch, Shared& shared, const Walk& walk, int turn) {
  const int lane = threadIdx.x % 32;
  Piece& piece = shared.pieces[turn % 2];
  barrier_wait(address(shared.piece_free[turn % 2]), (turn / 2 & 1) ^ 1);
  if (!walk.has_piece()) {
    if (lane == 0) piece.end = 0;
  } else {
    const int num_members = walk.span.w;
    const uint4* from = reinterpret_cast<const uint4*>(launch.plan.members + walk.place.x);
    const uint32_t to = shared_address(piece.members);
    for (int i = lane; i < num_members * int(sizeof(Member) / 16); i += 32) copy_16(to + 16 * i, from + i, true);
    if (lane == 0) {
      piece.begin = walk.begin();
      piece.end = walk.end();
      piece.num_members = num_members;
      piece.part_row = walk.place.y + (walk.stretch - walk.place.z) * num_members;
      piece.writes = IS_FUSED && !walk.cut.z && walk.end() == walk.span.z;
    }
  }
  arrive_when_copied(address(shared.piece_full[turn % 2]));
}

__device__ void load(const Launch& launch, const void* map, Shared& shared) {
  const int lane = threadIdx.x % 32;
  int count = 0;  // stages
  int turn = 0;
  Walk walk(launch);
  for (; walk.has_piece(); walk.advance(), ++turn) {
    announce(launch, shared, walk, turn);
    const int begin = walk.begin(), end = walk.end();
    const int num_boxes = (end - begin + kBox - 1) / kBox;
    const int* table = launch.block_table + walk.span.x * launch.table_stride;
    int blocks = 0;  // of 32 boxes, a lane each
    for (int first = 0; first < num_boxes; first += kStageBoxes, ++count) {
      if (first % 32 == 0) {
        const int box = min(first + lane, num_boxes - 1);
        blocks = table[(begin + box * kBox) / BLOCK_SIZE];
      }
      const int boxes = min(num_boxes - first, kStageBoxes);
      for (int kind = 0; kind < 2; ++kind) {  // keys, values
        const int use = 2 * count + kind;
        const uint32_t full = address(shared.full[use % kEntries]);
        barrier_wait(address(shared.free[use % kEntries]), (use / kEntries & 1) ^ 1);
        const uint32_t entry = shared_address(shared.ring[use % kEntries]);
#if HAS_COPY_ENGINE
        const int block = __shfl_sync(~0u, blocks, (first + lane % kStageBoxes) % 32);
        if (lane == 0) barrier_arrive_expecting(full, boxes * kSlabs * kBox * 128);
        __syncwarp();
        if (lane < boxes) {
          const int token = begin + (first + lane) * kBox;
          const int head = walk.kv_head + kind * launch.num_kv_heads;
          const int row = block * launch.block_rows + launch.layer_row + head * BLOCK_SIZE + token % BLOCK_SIZE;
          for (int slab = 0; slab < kSlabs; ++slab) {
            copy_box(entry + slab * kSlabBytes + lane * (kBox * 128), map, slab * 64, row, full);
          }
        }
#else
        constexpr int kTokenChunks = kPaddedDim / 8;
        for (int box = 0; box < boxes; ++box) {
          const int block = __shfl_sync(~0u, blocks, (first + box) % 32);
          const int start = begin + (first + box) * kBox;
          const Element* from = launch.pool + block * launch.block_stride + kind * launch.value_offset +
                                (walk.kv_head * BLOCK_SIZE + start % BLOCK_SIZE) * kDim;
          for (int i = lane; i < kBox * kTokenChunks; i += 32) {
            const int token = i / kTokenChunks, chunk = i % kTokenChunks;
            const bool is_there = start + token < end && chunk * 8 < kDim;
            copy_16(entry + chunk_offset(box * kBox + token, chunk),
                    is_there ? from + token * kDim + chunk * 8 : from, is_there);
          }
        }
        arrive_when_copied(full);
#endif
      }
    }
  }
  announce(launch, shared, walk, turn);
}

constexpr int kChunks = kDim / 8;  // of 16 bytes, in a head
constexpr int kLanes = kChunks <= 8 ? 8 : kChunks <= 16 ? 16 : 32;

struct Eight {
  float x[8];
};

__device__ __forceinline__ Eight eight(const Element* from) {
  const uint4 raw = *reinterpret_cast<const uint4*>(from);
  const Element* elements = reinterpret_cast<const Element*>(&raw);
  Eight to;
#pragma unroll
  for (int i = 0; i < 8; ++i) to.x[i] = to_float(elements[i]);
  return to;
}

__device__ __forceinline__ Eight eight(const float* from) {
  const float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
  return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

__device__ __forceinline__ uint4 packed(const float (&x)[8]) {
  return {pack<Element>(x[0], x[1]), pack<Element>(x[2], x[3]), pack<Element>(x[4], x[5]), pack<Element>(x[6], x[7])};
}

// Dims 8 * chunk to 8 * chunk + 7 of the head at `from`, normed and rotated. All kLanes threads of a head must call it.
[[maybe_unused]] __device__ __forceinline__ Eight transform(const Launch& launch, const Element* from,
                                                            const float* norm, int position, int chunk, bool is_there) {
  Eight own = {}, partner = {}, weight = {}, partner_weight = {}, cos = {}, sin = {};
  constexpr int kHalf = ROTARY_DIM / 2;
  const int d = chunk * 8;
  const bool turns = ROTARY_DIM > 0 && d < ROTARY_DIM, is_low = d < kHalf;
  const int other = is_low ? d + kHalf : d - kHalf;
  if (is_there) {
    own = eight(from + d);
    if (HAS_NORM) weight = eight(norm + d);
    if (turns) {
      const int64_t angle = int64_t(position) * kHalf + (is_low ? d : d - kHalf);
      partner = eight(from + other);
      if (HAS_NORM) partner_weight = eight(norm + other);
      cos = eight(launch.cos + angle);
      sin = eight(launch.sin + angle);
    }
  }
  if (HAS_NORM) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) squares += own.x[i] * own.x[i];
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) squares += __shfl_xor_sync(~0u, squares, step);
    const float factor = rsqrtf(squares / kDim + launch.eps);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      own.x[i] *= factor * weight.x[i];
      partner.x[i] *= factor * partner_weight.x[i];
    }
  }
  if (turns) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      own.x[i] = own.x[i] * cos.x[i] + (is_low ? -partner.x[i] : partner.x[i]) * sin.x[i];
    }
  }
  return own;
}

// Writes the piece's queries to shared memory; rows that pad them to 8, or to a multiple of 16, are zero.
__device__ void place_queries(const Launch& launch, Shared& shared, const Piece& piece, int kv_head, int num_rows) {
  const int rows = num_rows <= 8 ? 8 : (num_rows + 15) / 16 * 16;
  const int chunk = threadIdx.x % kLanes;
#pragma unroll 2
  for (int first = 0; first < rows; first += 32 * kComputers / kLanes) {  // all threads take the same turns
    const int row = first + threadIdx.x / kLanes;
    const int sub = row % kMemberRows, query = sub / GROUP;
    const Member& member = piece.members[min(row, num_rows - 1) / kMemberRows];
    const bool is_there = row < num_rows && query < member.num_queries && chunk < kChunks;
    const Element* from = launch.q + (member.token + query) * launch.q_stride + (kv_head * GROUP + sub % GROUP) * kDim;
    uint4 x = {};
#if IS_FUSED
    x = packed(transform(launch, from, launch.q_norm, member.position + query, chunk, is_there).x);
#else
    if (is_there) x = reinterpret_cast<const uint4*>(from)[chunk];
#endif
    if (row < rows && chunk < kPaddedDim / 8) {
      *reinterpret_cast<uint4*>(shared.q + chunk_offset(row, chunk)) = is_there ? x : uint4{};
    }
  }
}

// Finishes the stage in which a sequence ends. If fused, writes the new token's key and value there and to the cache.
// Zeroes the values after the last token, up to num_read tokens of the stage: they may hold NaN, and 0 * NaN is NaN.
__device__ void finish_stage(const Launch& launch, const Piece& piece, int kv_head, int start, int num_read,
                             unsigned char* keys, unsigned char* values) {
  [[maybe_unused]] const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int last = piece.end - 1 - start;  // the newest token's place in the stage
#if IS_FUSED
  if (piece.writes && warp < 2) {  // one for the key, one for the value
    const Member& member = piece.members[0];
    const int head = launch.num_kv_heads * (GROUP + warp) + kv_head, chunk = lane % kLanes;
    const Element* from = launch.q + member.token * launch.q_stride + head * kDim;
    uint4 x = {};
    if (warp == 0) {
      x = packed(transform(launch, from, launch.k_norm, member.position, chunk, chunk < kChunks).x);
    } else if (chunk < kChunks) {
      x = reinterpret_cast<const uint4*>(from)[chunk];
    }
    Element* cell = launch.pool + member.newest_block * launch.block_stride + warp * launch.value_offset +
                    (kv_head * BLOCK_SIZE + member.position % BLOCK_SIZE) * kDim;
    if (lane < kChunks) {
      reinterpret_cast<uint4*>(cell)[chunk] = x;
      *reinterpret_cast<uint4*>((warp == 0 ? keys : values) + chunk_offset(last, chunk)) = x;
    }
  }
#endif
  for (int i = threadIdx.x; i < (num_read - 1 - last) * (kPaddedDim / 8); i += 32 * kComputers) {
    const int token = last + 1 + i / (kPaddedDim / 8);
    *reinterpret_cast<uint4*>(values + chunk_offset(token, i % (kPaddedDim / 8))) = uint4{};
  }
  if (HAS_COPY_ENGINE) async_fence();
  named_barrier(1, 32 * kComputers);
}

__device__ __forceinline__ float cap(float score, float softcap_log2) {
#if HAS_SOFTCAP
  // c * tanh(score / c), both times log2(e)
  const float e = exp2_fast(-2.885390081777927f * fabsf(score / softcap_log2));
  return copysignf((1.0f - e) / (1.0f + e) * softcap_log2, score);
#else
  return score;
#endif
}

// Scores, softmax and values of a piece by all computers, kTiles tiles of 16 rows; then writes the results.
template <int kTiles>
__device__ void compute(const Launch& launch, Shared& shared, const Piece& piece, int kv_head, int& count) {
  constexpr int kSplits = kComputers / kTiles;  // warps that share a tile's keys
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int tile = warp % kTiles, split = warp / kTiles;
  const int num_rows = piece.num_members * kMemberRows;
  const int tile_rows = num_rows - tile * 16;

  constexpr int kSteps = kPaddedDim / 16;
  constexpr bool kWide = kTiles == 4 && HAS_COPY_ENGINE;  // all four warps multiply together
  const uint32_t queries = shared_address(shared.q);
  int row_begin[2], row_end[2];  // the tokens that each of the thread's two rows sees
  for (int half = 0; half < 2; ++half) {
    const int row = min(tile * 16 + half * 8 + lane / 4, num_rows - 1);
    const int position = piece.members[row / kMemberRows].position + row % kMemberRows / GROUP;
    row_end[half] = min(piece.end, position + 1);
    row_begin[half] = HAS_WINDOW ? position + 1 - launch.window : 0;
  }
  const Member& first = piece.members[0];
  // All rows see the tokens from full_begin to full_end
  const int full_end = piece.num_members > 1 ? piece.end : min(piece.end, first.position + 1);
  const int full_begin = HAS_WINDOW ? first.position + first.num_queries - launch.window : 0;
  float sums[kPaddedDim / 8][4] = {};
  float m[2] = {kLowest, kLowest}, l[2] = {};

  for (int start = piece.begin; start < piece.end; start += kStage, ++count) {
    const int key_entry = 2 * count % kEntries, value_entry = (2 * count + 1) % kEntries;
    const uint32_t key_parity = 2 * count / kEntries & 1, value_parity = (2 * count + 1) / kEntries & 1;
    unsigned char* keys = shared.ring[key_entry];
    unsigned char* values = shared.ring[value_entry];
    barrier_wait(address(shared.full[key_entry]), key_parity);
    // The wide product reads whole stages, the others only boxes with tokens
    const int num_read = kWide ? kStage : min((piece.end - start + kBox - 1) / kBox * kBox, kStage);
    const bool finishes = start + kStage >= piece.end && (piece.writes || start + num_read > piece.end);
    if (finishes) {
      barrier_wait(address(shared.full[value_entry]), value_parity);
      finish_stage(launch, piece, kv_head, start, num_read, keys, values);
    }
    const bool is_masked = start + kStage > full_end || (HAS_WINDOW && start < full_begin);
    // Scores of boxes without tokens are garbage; they are masked
    float scores[kTiles * 2][4] = {};
    if constexpr (kWide) {
      products_begin();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        const uint32_t at = k / 4 * kSlabBytes + k % 4 * 32;
        multiply_add_64<Element>(scores, matrix(queries + at), matrix(shared_address(keys) + at), k > 0);
      }
      products_end(scores);
    } else {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        uint32_t q[4];
        load_fragments(q, queries + chunk_offset(tile * 16 + (tile_rows > 8 ? lane % 16 : lane % 8), 2 * k + lane / 16));
        if (tile_rows <= 8) q[1] = q[3] = 0;
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          uint32_t b[4];
          const int token = (split + i * kSplits) * kBox + lane / 16 * 8 + lane % 8;
          load_fragments(b, shared_address(keys) + chunk_offset(token, 2 * k + lane / 8 % 2));
          multiply_add<Element>(scores[2 * i], q, b[0], b[1]);
          multiply_add<Element>(scores[2 * i + 1], q, b[2], b[3]);
        }
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(address(shared.free[key_entry]));

    float highest[2] = {m[0], m[1]};
#pragma unroll
    for (int n = 0; n < kTiles * 2; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float score = cap(scores[n][j] * launch.scale_log2, launch.softcap_log2);
        if (is_masked) {
          const int t = start + (split + n / 2 * kSplits) * kBox + n % 2 * 8 + lane % 4 * 2 + j % 2;
          const bool seen = t < row_end[j / 2] && t >= row_begin[j / 2];
          score = seen ? score : -INFINITY;
        }
        scores[n][j] = score;
        highest[j / 2] = fmaxf(highest[j / 2], score);
      }
    }
    bool rises = false;
    float alpha[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      highest[half] = fmaxf(highest[half], __shfl_xor_sync(~0u, highest[half], 1));
      highest[half] = fmaxf(highest[half], __shfl_xor_sync(~0u, highest[half], 2));
      rises |= highest[half] > m[half];
      alpha[half] = exp2_fast(m[half] - highest[half]);
      m[half] = highest[half];
      l[half] *= alpha[half];
    }
    if (__any_sync(~0u, rises)) {
#pragma unroll
      for (int n = 0; n < kPaddedDim / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[n][j] *= alpha[j / 2];
      }
    }
    uint32_t weights[kTiles][4];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          scores[2 * i + n][j] = exp2_fast(scores[2 * i + n][j] - m[j / 2]);
          l[j / 2] += scores[2 * i + n][j];
        }
        weights[i][2 * n] = pack<Element>(scores[2 * i + n][0], scores[2 * i + n][1]);
        weights[i][2 * n + 1] = pack<Element>(scores[2 * i + n][2], scores[2 * i + n][3]);
      }
    }
    barrier_wait(address(shared.full[value_entry]), value_parity);
    if constexpr (kWide) {
      products_begin();
#pragma unroll
      for (int box = 0; box < kStageBoxes; ++box) {
#pragma unroll
        for (int slab = 0; slab < kSlabs; ++slab) {
          auto& half = *reinterpret_cast<float(*)[8][4]>(&sums[slab * 8]);
          const uint32_t from = shared_address(values) + slab * kSlabBytes + box * (kBox * 128);
          multiply_add_64<Element>(half, weights[box], matrix(from));
        }
      }
      products_end(sums);
    } else {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const int box = split + i * kSplits;
        if (start + box * kBox >= piece.end) continue;  // its values are garbage
#pragma unroll
        for (int n = 0; n < kPaddedDim / 16; ++n) {
          uint32_t b[4];
          const int token = box * kBox + lane % 16;
          load_transposed_fragments(b, shared_address(values) + chunk_offset(token, 2 * n + lane / 16));
          multiply_add<Element>(sums[2 * n], weights[i], b[0], b[1]);
          multiply_add<Element>(sums[2 * n + 1], weights[i], b[2], b[3]);
        }
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(address(shared.free[value_entry]));
  }

  // Warps that split a tile's keys add up, 8 rows of each tile at a time
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    l[half] += __shfl_xor_sync(~0u, l[half], 1);
    l[half] += __shfl_xor_sync(~0u, l[half], 2);
    if (lane % 4 == 0) {
      shared.max_sum[warp][half * 8 + lane / 4][0] = m[half];
      shared.max_sum[warp][half * 8 + lane / 4][1] = l[half];
    }
  }
  named_barrier(1, 32 * kComputers);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (half * 8 >= num_rows) break;
    float largest = kLowest;
    for (int i = 0; i < kSplits; ++i) {
      largest = fmaxf(largest, shared.max_sum[tile + i * kTiles][half * 8 + lane / 4][0]);
    }
    const float factor = exp2_fast(m[half] - largest);
    float* to = shared.sums[warp][lane / 4];
#pragma unroll
    for (int n = 0; n < kPaddedDim / 8; ++n) {
      *reinterpret_cast<float2*>(to + (n * 8 + lane % 4 * 2)) =
          make_float2(sums[n][2 * half] * factor, sums[n][2 * half + 1] * factor);
    }
    named_barrier(1, 32 * kComputers);
    for (int i = threadIdx.x; i < kTiles * 8 * kChunks; i += 32 * kComputers) {
      const int t = i / (8 * kChunks), r = i / kChunks % 8, d = i % kChunks * 8;
      const int row = t * 16 + half * 8 + r, sub = row % kMemberRows, query = sub / GROUP;
      const Member& member = piece.members[min(row, num_rows - 1) / kMemberRows];
      if (row >= num_rows || query >= member.num_queries) continue;
      float top = kLowest, sum = 0;
      float x[8] = {};
      for (int j = 0; j < kSplits; ++j) top = fmaxf(top, shared.max_sum[t + j * kTiles][half * 8 + r][0]);
      for (int j = 0; j < kSplits; ++j) {
        const float* max_sum = shared.max_sum[t + j * kTiles][half * 8 + r];
        sum += max_sum[1] * exp2_fast(max_sum[0] - top);
        const float4* from = reinterpret_cast<const float4*>(&shared.sums[t + j * kTiles][r][d]);
        const float4 low = from[0], high = from[1];
        x[0] += low.x, x[1] += low.y, x[2] += low.z, x[3] += low.w;
        x[4] += high.x, x[5] += high.y, x[6] += high.z, x[7] += high.w;
      }
      if (member.num_parts == 1) {
        const int head = kv_head * GROUP + sub % GROUP;
        Element* out = launch.out + (member.token + query) * launch.out_stride + head * kDim + d;
        const float inverse = 1.0f / sum;
#pragma unroll
        for (int j = 0; j < 8; ++j) x[j] *= inverse;
        *reinterpret_cast<uint4*>(out) = packed(x);
      } else {
        const int64_t part_row = piece.part_row + row / kMemberRows;
        const int64_t at = (part_row * launch.num_kv_heads + kv_head) * kMemberRows + sub;
        float4* out = reinterpret_cast<float4*>(launch.part_values + at * kDim + d);
        __stcg(out, make_float4(x[0], x[1], x[2], x[3]));
        __stcg(out + 1, make_float4(x[4], x[5], x[6], x[7]));
        if (d == 0) __stcg(reinterpret_cast<float2*>(launch.part_max_sum) + at, make_float2(top, sum));
      }
    }
    named_barrier(1, 32 * kComputers);
  }
}

// The thread block that finishes a sequence's last part joins all of them, one warp per row.
__device__ void join(const Launch& launch, Shared& shared, const Piece& piece, int kv_head) {
  const int i = threadIdx.x, lane = i % 32, warp = i / 32;
  if (piece.num_members == 1 && piece.members[0].num_parts == 1) return;
  named_barrier(1, 32 * kComputers);
  if (i < piece.num_members) {
    const Member& member = piece.members[i];
    int* done = launch.done + member.sequence * launch.num_kv_heads + kv_head;
    const bool joins = member.num_parts > 1 && count_up(done) == member.num_parts - 1;
    if (joins) *done = 0;
    shared.joins[i] = joins;
  }
  named_barrier(1, 32 * kComputers);
  for (int row = warp; row < piece.num_members * kMemberRows; row += kComputers) {
    const Member& member = piece.members[row / kMemberRows];
    const int sub = row % kMemberRows, query = sub / GROUP;
    if (!shared.joins[row / kMemberRows] || query >= member.num_queries) continue;
    for (int d = lane * 4; d < kDim; d += 128) {
      float top = kLowest, sum = 0;
      float4 x = {};
      for (int n = 0; n < member.num_units; ++n) {
        const Parts parts = member.parts[n];
#pragma unroll 4
        for (int p = 0; p < parts.count; ++p) {
          const int64_t part_row = parts.first + p * parts.step;
          const int64_t at = (part_row * launch.num_kv_heads + kv_head) * kMemberRows + sub;
          const float2 max_sum = __ldcg(reinterpret_cast<const float2*>(launch.part_max_sum) + at);
          const float4 value = __ldcg(reinterpret_cast<const float4*>(launch.part_values + at * kDim + d));
          const float higher = fmaxf(top, max_sum.x);
          const float alpha = exp2_fast(top - higher), weight = exp2_fast(max_sum.x - higher);
          x.x = x.x * alpha + value.x * weight;
          x.y = x.y * alpha + value.y * weight;
          x.z = x.z * alpha + value.z * weight;
          x.w = x.w * alpha + value.w * weight;
          sum = sum * alpha + max_sum.y * weight;
          top = higher;
        }
      }
      const float inverse = 1.0f / sum;
      const int head = kv_head * GROUP + sub % GROUP;
      Element* out = launch.out + (member.token + query) * launch.out_stride + head * kDim + d;
      *reinterpret_cast<uint2*>(out) =
          uint2{pack<Element>(x.x * inverse, x.y * inverse), pack<Element>(x.z * inverse, x.w * inverse)};
    }
  }
}

struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

}  // namespace

extern "C" __device__ int octavo_shared_bytes = sizeof(Shared);

extern "C" __global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    octavo_decode_attention(const __grid_constant__ Launch launch, const __grid_constant__ TensorMap map) {
  extern __shared__ __align__(1024) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kEntries; ++i) {
      barrier_init(address(shared.full[i]), HAS_COPY_ENGINE ? 1 : 32);
      barrier_init(address(shared.free[i]), kComputers);
    }
    for (int i = 0; i < 2; ++i) {
      barrier_init(address(shared.piece_full[i]), 32);
      barrier_init(address(shared.piece_free[i]), 1);
    }
    barrier_fence_init();
  }
  __syncthreads();
  if (warp == kComputers) {
    if (IS_CHAINED && !IS_FUSED) wait_for_previous();  // which writes the newest keys
    load(launch, map.bytes, shared);
  } else {
    if (IS_CHAINED) {
      wait_for_previous();
      allow_next();
    }
    const int kv_head = blockIdx.x % launch.num_kv_heads;
    int count = 0;
    for (int turn = 0;; ++turn) {
      const Piece& piece = shared.pieces[turn % 2];
      barrier_wait(address(shared.piece_full[turn % 2]), turn / 2 & 1);
      if (piece.end == 0) return;
      const int num_rows = piece.num_members * kMemberRows;
      place_queries(launch, shared, piece, kv_head, num_rows);
      if (HAS_COPY_ENGINE) async_fence();
      named_barrier(1, 32 * kComputers);
      if (num_rows <= 16) {
        compute<1>(launch, shared, piece, kv_head, count);
      } else if (num_rows <= 32 && !HAS_COPY_ENGINE) {
        compute<2>(launch, shared, piece, kv_head, count);
      } else {
        compute<4>(launch, shared, piece, kv_head, count);
      }
      join(launch, shared, piece, kv_head);
      named_barrier(1, 32 * kComputers);
      if (threadIdx.x == 0) barrier_arrive(address(shared.piece_free[turn % 2]));
    }
  }
}

}  // namespace octavo
