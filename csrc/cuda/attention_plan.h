// The plan of a step's decode attention: which tokens are read, for which sequences, and by which thread block.
//
//   sequences   A: blocks 3 4 5 6 9      B: blocks 3 4 5 6 7      C: blocks 3 4 8
//   units       [3 4] read for A B C     [5 6] for A B      [9] for A   [7] for B   [8] for C
//   stretches   the units end to end ("the line of work"), cut into pieces of equal length, one for each thread block
//
// The line of work is that of one kv head, since all kv heads have the same units and stretches; its unit of length is
// the cost of one token of one sequence. A unit's members are sequences, or parts of them where the queries of a
// sequence's new tokens do not fit one tile; "sequence" below means either.
#pragma once

#include <stdint.h>

namespace octavo {

constexpr int kBox = 16;         // tokens copied and multiplied at once
constexpr int kTileRows = 64;    // query rows of a unit, at most
constexpr int kSharedLevels = 4; // shared units on a sequence's path, at most

// Tokens [begin, end) of one row of the block table, and the members that see them all (or up to their own token).
struct alignas(16) Unit {
  int table_row;
  int begin;        // a multiple of kBox
  int end;
  int num_members;
  int members;      // the first one's index in Plan::members
  int part_rows;    // the partial result of the first part's first member
  int first_stretch;
  int num_parts;
  int start;        // where its tokens begin in the line of work
  int box_cost;     // the length of kBox tokens there
  int is_shared;
  int unused;
};

// Where a sequence's partial results from one unit are: `count` of them, `step` apart.
struct Parts {
  int first, step, count;
};

// A sequence as a member of a unit: all that the kernel needs to know about it. 96 bytes, copied 16 at a time.
struct Member {
  int sequence;
  int token;         // its first query's index in the step
  int position;      // its first query's position
  int num_queries;
  int newest_block;  // the block of its last token
  int num_tokens;
  int num_parts;     // in all units; 1: the result needs no join
  Parts parts[kSharedLevels + 1];  // unit by unit, up to num_parts in all
  int unused[2];
};
static_assert(sizeof(Member) == 96, "members are copied 16 bytes at a time");

// What a thread block reads first, 16 bytes at a time: all that it needs to begin its stretch.
struct alignas(16) Stretch {
  int unit;          // the first one, or num_units: none
  int num_units;
  int length;        // of a stretch
  int num_stretches; // with work
  Unit first;        // that unit
  int blocks[4];     // where its first boxes in this stretch are
};
static_assert(sizeof(Unit) == 48 && sizeof(Stretch) == 80, "stretches are read 16 bytes at a time");

// A sequence's path through the units, used only while the plan is made.
struct Path {
  int num_units;
  int unit[kSharedLevels + 1];
  int rank[kSharedLevels + 1];  // which member of the unit it is
  int unused;
};

struct Plan {
  int* totals;      // [4] units, length of a stretch, stretches with work, 0
  Stretch* stretches;
  Unit* units;
  Member* members;  // unit by unit
  Path* paths;      // one for each sequence
};

// The step, as the host's launch describes it.
struct PlanStep {
  const int* query_start_loc;  // [num_seqs + 1]
  const int* seq_lens;         // [num_seqs]
  const int* rows;             // [num_seqs] of the block table
  const int* block_table;
  int64_t table_stride;
  int num_seqs;
  int max_queries;   // new tokens of a sequence that decodes; sequences with more are not planned
  int tile_queries;  // how many of these fit in one tile
  int members_in_tile;
  int block_size;
  int window;        // 0: none
  int num_stretches;     // for each kv head
  int shares;        // whether to look for units that several sequences share
  int fixed_part;    // tokens; if above 0, every part has this size, whatever else is in the step
};

// The first token of the first of the unit's boxes that begins in this stretch or after it.
__device__ __forceinline__ int first_token(const Unit& unit, int stretch, int stretch_length) {
  return unit.begin + max(stretch * stretch_length - unit.start + unit.box_cost - 1, 0) / unit.box_cost * kBox;
}

}  // namespace octavo
