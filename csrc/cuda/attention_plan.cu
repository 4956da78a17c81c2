// Makes the plan of a step's decode attention (attention_plan.h): one thread block, once a step, for all layers.
//
//   1  order    sort the sequences by the block that they read next; equal blocks mean equal tokens so far
//   2  share    the longest run of blocks that a group has in common becomes one unit, if that saves reads; then repeat
//               1 with the blocks after it, until no two sequences share their next block
//   3  rest     the rest of each sequence becomes a unit of its own: at least its newest block
//   4  stretches    cut the line of work, all units end to end, into equal pieces
//
// A step of one sequence has nothing to sort or to add up: all threads know its unit at once.
//
// Blocks are shared only as prefixes: if two tables agree at one place they agree at all places before. So the end of a
// common run is found by bisection.

#include "ptx.cuh"

#include "attention_plan.h"

#ifndef THREADS
#define THREADS 1024
#endif
#ifndef UNIT_COST
#define UNIT_COST 32
#define MEMBER_COST 32
#define WIDE_COST 20
#define UNIT_LENGTH 32
#define MEMBER_LENGTH 32
#endif

namespace octavo {
namespace {

constexpr int kThreads = THREADS;  // a multiple of 32; 1 where tests run this file on a CPU
constexpr int kWarps = (kThreads + 31) / 32;
constexpr int kMaxSequences = 4096;
// What starting a unit costs, and a member's partial result, in tokens: to decide what is shared (cautiously, so that
// sharing is hardly ever slower), and to balance what is then to do (as measured)
constexpr int kUnitCost = UNIT_COST, kMemberCost = MEMBER_COST;
constexpr int kUnitLength = UNIT_LENGTH, kMemberLength = MEMBER_LENGTH;
constexpr int kLeastPart = 64;
constexpr int kMostWhole = 9 * kBox;  // tokens of a sequence alone, as of a short window, whose parts would cost a join
constexpr unsigned kAlone = 0x80000000u;  // above every block id

// Returns the sum over all earlier threads; `total` is the sum over all. Every thread must call it.
__device__ int scan(int value, int& total) {
  __shared__ int sums[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = value;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0u, sum, step);
    sum += lane >= step ? other : 0;
  }
  if (lane == min(kThreads, 32) - 1) sums[warp] = sum;
  __syncthreads();
  int before = 0, all = 0;
  for (int i = 0; i < kWarps; ++i) {
    before += i < warp ? sums[i] : 0;
    all += sums[i];
  }
  __syncthreads();
  total = all;
  return before + sum - value;
}

struct Planner {
  const PlanStep step;
  const Plan plan;
  const int tiles_of_queries;  // parts that each of the step's sequences is split into
  const int num;               // sequences, each part counted as one
  // In shared memory, by sequence:
  uint64_t* keys;
  int* row;        // its row in the block table
  int* num_tokens; // 0: it does not decode
  int* num_full;   // blocks written already; those of its new tokens may not be
  int* next;       // its first block that is in no unit yet
  // By index in `keys`:
  int* run_end;    // the group that begins here: the end of its common blocks
  int* first;      // where the group of this entry begins
  int* unit;       // the group that begins here: its first unit, or -1
  int* place;      // the group that begins here: the index of its first member

  __device__ Planner(const PlanStep& step, const Plan& plan, uint64_t* memory)
      : step(step), plan(plan), tiles_of_queries((step.max_queries + step.tile_queries - 1) / step.tile_queries),
        num(step.num_seqs * tiles_of_queries), keys(memory) {
    int size = 2;
    while (size < num) size *= 2;
    int* at = reinterpret_cast<int*>(keys + size);
    for (int** array : {&row, &num_tokens, &num_full, &next, &run_end, &first, &unit, &place}) {
      *array = at;
      at += num;
    }
  }

  __device__ int table(int row, int block) const { return step.block_table[row * step.table_stride + block]; }

  __device__ void read() {
    for (int v = threadIdx.x; v < num; v += kThreads) {
      const int s = v / tiles_of_queries, first_query = v % tiles_of_queries * step.tile_queries;
      const int queries = step.query_start_loc[s + 1] - step.query_start_loc[s];
      const int length = step.seq_lens[s];
      const bool decodes = length > 0 && queries > first_query && queries <= step.max_queries;
      row[v] = step.rows[s];
      num_tokens[v] = decodes ? length : 0;
      num_full[v] = decodes ? (length - queries) / step.block_size : 0;
      next[v] = 0;
      plan.paths[v].num_units = 0;
    }
  }

  // The number of leading blocks that two rows have in common, known to be between `from` and `to`.
  __device__ int common_blocks(int one, int other, int from, int to) const {
    while (from < to) {
      const int middle = (from + to + 1) / 2;
      if (table(one, middle - 1) == table(other, middle - 1)) {
        from = middle;
      } else {
        to = middle - 1;
      }
    }
    return from;
  }
};

// Sorts in ascending order (bitonic). All threads must call it; `size` is a power of two.
__device__ void sort(uint64_t* keys, int size) {
  for (int length = 2; length <= size; length *= 2) {
    for (int step = length / 2; step > 0; step /= 2) {
      for (int i = threadIdx.x; i < size / 2; i += kThreads) {
        const int low = 2 * i - (i & (step - 1)), high = low + step;
        const bool ascends = (low & length) == 0;
        const uint64_t a = keys[low], b = keys[high];
        if ((a > b) == ascends) {
          keys[low] = b;
          keys[high] = a;
        }
      }
      __syncthreads();
    }
  }
}

// The cost of a box of a unit's tokens: with many rows, the products may take longer than the reads (WIDE_COST).
__device__ int box_cost(const PlanStep& step, int members) {
  const bool is_wide = members > 1 || step.members_in_tile == 1;
  return kBox + (is_wide && step.fixed_part == 0 ? WIDE_COST * members / step.members_in_tile : 0);
}

// What a unit adds once to the line of work: its queries, its members' partial results and their share of the join.
__device__ int start_length(int members) { return kUnitLength + (members > 1 ? members * kMemberLength : 0); }

__device__ int cost(const PlanStep& step, int tokens, int members) {
  return tokens / kBox * box_cost(step, members) + kUnitCost + (members > 1 ? members * kMemberCost : 0);
}

// Whether units shared by all `members` sequences of a group cost less than a unit of `tokens` for each of them.
__device__ bool pays(const PlanStep& step, int members, int tokens) {
  const int full = members / step.members_in_tile, rest = members % step.members_in_tile;
  const int joins = members * kMemberCost;  // the results of their own units must be joined, too
  return full * cost(step, tokens, step.members_in_tile) + (rest > 0 ? cost(step, tokens, rest) : 0) + joins <
         members * tokens;
}

// Parts 1 and 2. Adds to the numbers of units and members so far.
__device__ void share(const Planner& p, int& num_units, int& num_members) {
  const PlanStep& step = p.step;
  const int num = p.num;
  int size = 2;
  while (size < num) size *= 2;
  for (int i = threadIdx.x; i < size; i += kThreads) {
    uint64_t key = ~0ull;
    if (i < num) {
      const unsigned block = p.num_full[i] > 0 ? p.table(p.row[i], 0) : kAlone + i;
      key = (uint64_t(block) << 12) | i;
    }
    p.keys[i] = key;
  }
  __syncthreads();
  for (int level = 0, depth = 0; depth < 4 * kSharedLevels; ++depth) {
    sort(p.keys, size);
    // Groups: entries whose keys are equal except for the sequence
    int found = 0;
    for (int i = threadIdx.x; i < num; i += kThreads) {
      found |= i + 1 < num && (p.keys[i] >> 12) == (p.keys[i + 1] >> 12);
      p.run_end[i] = 1 << 30;
    }
    if (!__syncthreads_or(found)) return;
    for (int i = threadIdx.x; i < num; i += kThreads) {
      int first = i;  // bisect for the group's first entry
      for (int low = 0; low < first;) {
        const int middle = (low + first) / 2;
        if ((p.keys[middle] >> 12) == (p.keys[i] >> 12)) {
          first = middle;
        } else {
          low = middle + 1;
        }
      }
      if (first != i) {
        const int leader = p.keys[first] & 4095, v = p.keys[i] & 4095;
        const int most = min(p.num_full[leader], p.num_full[v]);
        atomicMin(&p.run_end[first], p.common_blocks(p.row[leader], p.row[v], 1, most));
      }
      p.first[i] = first;
    }
    __syncthreads();
    // Add a unit for each tile of a group, if it pays
    for (int base = 0; base < num; base += kThreads) {
      const int i = base + threadIdx.x;
      int count = 0, tiles = 0;
      if (i < num && p.first[i] == i) {
        int end = num;  // bisect for the end of the group
        for (int low = i + 1; low < end;) {
          const int middle = (low + end) / 2;
          if (p.first[middle] == i) {
            low = middle + 1;
          } else {
            end = middle;
          }
        }
        count = end - i;
      }
      const int v = i < num ? p.keys[i] & 4095 : 0;
      if (count > 1 && level < kSharedLevels) {
        tiles = (count + step.members_in_tile - 1) / step.members_in_tile;
        const int tokens = (p.run_end[i] - p.next[v]) * step.block_size;
        if (!pays(step, count, tokens)) tiles = 0;
      }
      int all_tiles, all_members;
      const int unit = num_units + scan(tiles, all_tiles);
      const int members = num_members + scan(tiles > 0 ? count : 0, all_members);
      for (int tile = 0; tile < tiles; ++tile) {
        const int done = tile * step.members_in_tile;
        Unit one = {};
        one.table_row = p.row[v];
        one.begin = p.next[v] * step.block_size;
        one.end = p.run_end[i] * step.block_size;
        one.num_members = min(count - done, step.members_in_tile);
        one.members = members + done;
        one.is_shared = 1;
        p.plan.units[unit + tile] = one;
      }
      if (i < num) {
        p.unit[i] = tiles > 0 ? unit : -1;
        p.place[i] = members;
      }
      num_units += all_tiles;
      num_members += all_members;
    }
    __syncthreads();
    // Extend the members' paths, and find the blocks that they read next. All keys are read before any is written
    uint64_t new_keys[(kMaxSequences + kThreads - 1) / kThreads];
    for (int j = 0, i = threadIdx.x; i < num; i += kThreads, ++j) {
      const int first = p.first[i], v = p.keys[i] & 4095;
      unsigned block = kAlone + v;
      if (p.run_end[first] < p.num_full[v]) block = p.table(p.row[v], p.run_end[first]);
      new_keys[j] = (uint64_t(first) << 44) | (uint64_t(block) << 12) | v;
      if (p.unit[first] >= 0) {
        const int rank = i - first;
        Path& path = p.plan.paths[v];
        path.unit[path.num_units] = p.unit[first] + rank / step.members_in_tile;
        path.rank[path.num_units++] = rank % step.members_in_tile;
      }
    }
    __syncthreads();
    int any_unit = 0;
    for (int j = 0, i = threadIdx.x; i < num; i += kThreads, ++j) {
      const int first = p.first[i], v = p.keys[i] & 4095;
      p.keys[i] = new_keys[j];
      if (p.unit[first] < 0) continue;
      p.next[v] = p.run_end[first];
      any_unit = 1;
    }
    if (__syncthreads_or(any_unit)) ++level;
  }
}

// The unit of sequence s alone, from token `begin` on.
__device__ Unit own_unit(const PlanStep& step, int s, int table_row, int begin, int tokens) {
  Unit unit = {};
  unit.table_row = table_row;
  unit.begin = begin;
  if (step.window > 0) {
    const int queries = step.query_start_loc[s + 1] - step.query_start_loc[s];
    unit.begin = max(begin, tokens - queries + 1 - step.window) / kBox * kBox;
  }
  unit.end = tokens;
  unit.num_members = 1;
  return unit;
}

// Part 3: the rest of each sequence.
__device__ void own_units(const Planner& p, int& num_units, int& num_members) {
  const PlanStep& step = p.step;
  for (int base = 0; base < p.num; base += kThreads) {
    const int v = base + threadIdx.x;
    const int tokens = v < p.num ? p.num_tokens[v] : 0;
    int total;
    const int before = scan(tokens > 0, total);
    if (tokens > 0) {
      const int s = v / p.tiles_of_queries;
      Unit rest = own_unit(step, s, p.row[v], p.next[v] * step.block_size, tokens);
      rest.members = num_members + before;
      p.plan.units[num_units + before] = rest;
      Path& path = p.plan.paths[v];
      path.unit[path.num_units] = num_units + before;
      path.rank[path.num_units++] = 0;
    }
    num_units += total;
    num_members += total;
  }
}

__device__ int num_boxes(const Unit& unit) { return (unit.end - unit.begin + kBox - 1) / kBox; }

__device__ int last_stretch(const Unit& unit, int stretch) {
  return (unit.start + (num_boxes(unit) - 1) * unit.box_cost) / stretch;
}

// What the unit takes of the line of work. Sets its start, so far within that.
__device__ int place(const PlanStep& step, Unit& unit) {
  const int fixed = step.fixed_part;  // if above 0, each unit begins a stretch
  unit.box_cost = box_cost(step, unit.num_members);
  unit.start = fixed > 0 ? 0 : start_length(unit.num_members);
  const int room = num_boxes(unit) * unit.box_cost;
  return unit.start + (fixed > 0 ? (room + fixed - 1) / fixed * fixed : room);
}

// The head of each stretch's record, for a line of work of this length, in stretches of `least` or more; but `unit`, where
// a unit begins or goes on
__device__ Stretch heads(const PlanStep& step, const Plan& plan, int num_units, int length, int least) {
  const int even = (length + step.num_stretches - 1) / step.num_stretches;
  Stretch head = {};
  head.unit = head.num_units = num_units;
  head.length = step.fixed_part > 0 ? step.fixed_part : (max(even, least) + kBox - 1) / kBox * kBox;
  head.num_stretches = (length + head.length - 1) / head.length;
  if (threadIdx.x == 0) {
    plan.totals[0] = num_units;
    plan.totals[1] = head.length;
    plan.totals[2] = head.num_stretches;
  }
  return head;
}

__device__ int num_records(const PlanStep& step, const Stretch& head) {
  return max(step.num_stretches, head.num_stretches);  // thread blocks without work must know that they have none
}

// Adds to stretch i's record what it needs of its first unit.
__device__ void describe(const PlanStep& step, Stretch& record, const Unit& unit, int i) {
  record.first = unit;
  const int begin = first_token(unit, i, record.length);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int token = min(begin + j * kBox, unit.end - 1);
    record.blocks[j] = step.block_table[unit.table_row * step.table_stride + token / step.block_size];
  }
}

// Part 4. A box belongs to the stretch in which it begins.
__device__ void cut(const Planner& p, int num_units) {
  const PlanStep& step = p.step;
  Unit* units = p.plan.units;
  int length = 0;  // of the line of work
  for (int base = 0; base < num_units; base += kThreads) {
    const int u = base + threadIdx.x;
    const int room = u < num_units ? place(step, units[u]) : 0;
    int total;
    const int start = length + scan(room, total);
    if (u < num_units) units[u].start += start;
    length += total;
  }
  const Stretch head = heads(step, p.plan, num_units, length, kLeastPart);
  const int stretch = head.length;
  for (int i = threadIdx.x; i < num_records(step, head); i += kThreads) p.plan.stretches[i] = head;
  __syncthreads();
  int part_rows = 0;
  for (int base = 0; base < num_units; base += kThreads) {
    const int u = base + threadIdx.x;
    int parts = 0, first = 0;
    if (u < num_units) {
      first = units[u].start / stretch;
      parts = last_stretch(units[u], stretch) - first + 1;
    }
    int total;
    const bool joins = step.shares || parts > 1;  // else it is a whole sequence, whose result needs no partial ones
    const int before = part_rows + scan(u < num_units && joins ? parts * units[u].num_members : 0, total);
    if (u < num_units) {
      const int from = u == 0 ? first : max(first, last_stretch(units[u - 1], stretch) + 1);
      units[u].part_rows = before;
      units[u].first_stretch = first;
      units[u].num_parts = parts;
      for (int i = from; i < first + parts; ++i) p.plan.stretches[i].unit = u;
    }
    part_rows += total;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < head.num_stretches; i += kThreads) {
    Stretch record = head;
    record.unit = p.plan.stretches[i].unit;
    if (record.unit == num_units) continue;
    describe(step, record, units[record.unit], i);
    p.plan.stretches[i] = record;
  }
}

// Sequence v as a member of any unit.
__device__ Member member_of(const PlanStep& step, int v, int tiles_of_queries, int row, int num_tokens) {
  const int s = v / tiles_of_queries, first_query = v % tiles_of_queries * step.tile_queries;
  const int token = step.query_start_loc[s], queries = step.query_start_loc[s + 1] - token;
  Member member = {};
  member.sequence = v;
  member.token = token + first_query;
  member.position = num_tokens - queries + first_query;
  member.num_queries = min(queries - first_query, step.tile_queries);
  member.newest_block = step.block_table[row * step.table_stride + (num_tokens - 1) / step.block_size];
  member.num_tokens = num_tokens;
  return member;
}

// Writes each sequence's Member at its place in each of its units.
__device__ void describe_members(const Planner& p) {
  const PlanStep& step = p.step;
  for (int v = threadIdx.x; v < p.num; v += kThreads) {
    const int length = p.num_tokens[v];
    if (length == 0) continue;
    const Path path = p.plan.paths[v];
    Member member = member_of(step, v, p.tiles_of_queries, p.row[v], length);
    int places[kSharedLevels + 1];
#pragma unroll
    for (int i = 0; i <= kSharedLevels; ++i) {
      if (i >= path.num_units) continue;
      const Unit& unit = p.plan.units[path.unit[i]];
      member.parts[i] = {unit.part_rows + path.rank[i], unit.num_members, unit.num_parts};
      member.num_parts += unit.num_parts;
      places[i] = unit.members + path.rank[i];
    }
#pragma unroll
    for (int i = 0; i <= kSharedLevels; ++i) {
      if (i < path.num_units) p.plan.members[places[i]] = member;
    }
  }
}

// The plan of one sequence: as parts 3 and 4 make it, but no thread waits for another.
__device__ void plan_one(const PlanStep& step, const Plan& plan) {
  const int queries = step.query_start_loc[1] - step.query_start_loc[0], tokens = step.seq_lens[0], row = step.rows[0];
  const bool decodes = tokens > 0 && queries > 0 && queries <= step.max_queries;
  Unit unit = own_unit(step, 0, row, 0, tokens);
  const int length = decodes ? place(step, unit) : 0;
  const bool is_whole = decodes && tokens - unit.begin <= kMostWhole;
  const Stretch head = heads(step, plan, decodes, length, is_whole ? length : kLeastPart);
  unit.first_stretch = unit.start / head.length;
  unit.num_parts = decodes ? last_stretch(unit, head.length) - unit.first_stretch + 1 : 0;
  for (int i = threadIdx.x; i < num_records(step, head); i += kThreads) {
    Stretch record = head;
    if (i >= unit.first_stretch && i < unit.first_stretch + unit.num_parts) {
      record.unit = 0;
      describe(step, record, unit, i);
    }
    plan.stretches[i] = record;
  }
  if (threadIdx.x > 0) return;
  plan.paths[0].num_units = decodes;
  if (!decodes) return;
  Member member = member_of(step, 0, 1, row, tokens);
  member.parts[0] = {0, 1, unit.num_parts};
  member.num_parts = unit.num_parts;
  plan.units[0] = unit;
  plan.members[0] = member;
  plan.paths[0].unit[0] = plan.paths[0].rank[0] = 0;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) octavo_attention_plan(const PlanStep step, const Plan plan) {
  extern __shared__ uint64_t memory[];
  Planner planner(step, plan, memory);
  wait_for_previous();
  allow_next();  // the next kernel waits for this one before it ends, and attention starts after that
  if (planner.num == 1) {
    plan_one(step, plan);
    return;
  }
  planner.read();
  __syncthreads();
  int num_units = 0, num_members = 0;
  if (step.shares && planner.num > 1) share(planner, num_units, num_members);
  __syncthreads();
  own_units(planner, num_units, num_members);
  __syncthreads();
  cut(planner, num_units);
  __syncthreads();
  describe_members(planner);
}

}  // namespace octavo
