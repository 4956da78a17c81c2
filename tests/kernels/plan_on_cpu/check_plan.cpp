// Makes attention plans on the CPU by the GPU's own source, and checks what the attention kernel relies on.
#include "attention_plan.cu"  // the test puts it beside this file, so that it finds the ptx.cuh here

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace octavo {

extern "C" uint64_t memory[1 << 20];
uint64_t memory[1 << 20];  // in place of the kernel's dynamic shared memory

namespace {

using Failure = std::string;  // empty: none

struct Room {
  int units, part_rows;
};

struct Check {
  const PlanStep& step;
  const Plan& plan;
  const Room room;
  const int tiles = (step.max_queries + step.tile_queries - 1) / step.tile_queries;  // of a sequence's queries
  const int num_units = plan.totals[0], stretch_length = plan.totals[1], num_stretches = plan.totals[2];

  int block(int row, int token) const { return step.block_table[row * step.table_stride + token / step.block_size]; }

  // The units of sequence s cover its tokens once and in order, and have its blocks.
  Failure sequence(int v) const {
    const int s = v / tiles, first_query = v % tiles * step.tile_queries, length = step.seq_lens[s];
    const int queries = step.query_start_loc[s + 1] - step.query_start_loc[s];
    const Path& path = plan.paths[v];
    if (length == 0 || queries > step.max_queries || queries <= first_query) {
      return path.num_units == 0 ? "" : "a sequence that does not decode has units";
    }
    if (path.num_units < 1 || path.num_units > kSharedLevels + 1) return "a number of units that no path has room for";
    int next = step.window > 0 ? max(0, length - queries + 1 - step.window) / kBox * kBox : 0, parts = 0;
    for (int i = 0; i < path.num_units; ++i) {
      const Unit& unit = plan.units[path.unit[i]];
      if (path.unit[i] >= num_units || unit.begin != next || unit.end <= unit.begin) return "a gap between units";
      if (path.rank[i] >= unit.num_members || unit.num_members > step.members_in_tile) return "more members than rows";
      for (int token = unit.begin; token < unit.end; ++token) {
        if (block(unit.table_row, token) != block(step.rows[s], token)) return "a unit of somebody else's blocks";
      }
      const int place = unit.members + path.rank[i];
      if (place >= room.units) return "no room for a member";
      if (Failure failure = member(v, plan.members[place], i); !failure.empty()) return failure;
      next = unit.end;
      parts += unit.num_parts;
    }
    if (next != length) return "tokens that no unit has";
    const Unit& last = plan.units[path.unit[path.num_units - 1]];
    if (last.num_members != 1) return "new tokens in a shared unit";
    return plan.members[last.members].num_parts == parts ? "" : "a join of the wrong number of parts";
  }

  Failure member(int v, const Member& one, int i) const {
    const int s = v / tiles, first_query = v % tiles * step.tile_queries, length = step.seq_lens[s];
    const int queries = step.query_start_loc[s + 1] - step.query_start_loc[s];
    const Path& path = plan.paths[v];
    const Unit& unit = plan.units[path.unit[i]];
    const bool same = one.sequence == v && one.num_tokens == length &&
                      one.token == step.query_start_loc[s] + first_query &&
                      one.position == length - queries + first_query &&
                      one.num_queries == min(queries - first_query, step.tile_queries) &&
                      one.newest_block == block(step.rows[s], length - 1);
    if (!same) return "a member that is another sequence";
    if (one.num_parts == 1) return "";  // no join
    const Parts& parts = one.parts[i];
    const bool joins = parts.first == unit.part_rows + path.rank[i] &&
                       parts.step == unit.num_members && parts.count == unit.num_parts;
    return joins ? "" : "a join of other rows than those written";
  }

  // As decode_attention.cu walks: every token of a unit is in one stretch, and all rows of partial results differ.
  Failure stretches() const {
    if (step.fixed_part == 0 && num_stretches > step.num_stretches) return "more stretches than blocks of threads";
    std::vector<int> covered(num_units, 0);
    std::vector<char> is_written(room.part_rows, 0);
    for (int stretch = num_stretches; stretch < step.num_stretches; ++stretch) {
      if (plan.stretches[stretch].num_stretches != num_stretches) return "a thread block that does not know of its rest";
    }
    for (int stretch = 0; stretch < num_stretches; ++stretch) {
      const Stretch& record = plan.stretches[stretch];
      if (Failure failure = begins(record, stretch); !failure.empty()) return failure;
      for (int u = record.unit; u < num_units && plan.units[u].first_stretch <= stretch; ++u) {
        const Unit& unit = plan.units[u];
        const int begin = first_token(unit, stretch, stretch_length);
        const int end = min(unit.end, first_token(unit, stretch + 1, stretch_length));
        if (begin != unit.begin + covered[u] || end <= begin) return "a stretch with tokens of another";
        covered[u] += end - begin;
        const int part = stretch - unit.first_stretch, row = unit.part_rows + part * unit.num_members;
        if (part >= unit.num_parts) return "more parts than the unit has";
        if (plan.members[unit.members].num_parts == 1) continue;  // its result is not partial
        if (row + unit.num_members > room.part_rows) return "no room for a partial result";
        for (int rank = 0; rank < unit.num_members; ++rank) {
          if (is_written[row + rank]++) return "two partial results in one row";
        }
      }
    }
    for (int u = 0; u < num_units; ++u) {
      if (covered[u] != plan.units[u].end - plan.units[u].begin) return "tokens in no stretch";
    }
    return "";
  }

  // A stretch's record says what the totals and its first unit say, and which blocks that one reads first.
  Failure begins(const Stretch& record, int stretch) const {
    const bool same = record.num_units == num_units && record.length == stretch_length &&
                      record.num_stretches == num_stretches;
    if (!same) return "a stretch of another plan";
    if (record.unit == num_units) return "";
    const Unit& unit = plan.units[record.unit];
    if (memcmp(&record.first, &unit, sizeof(unit)) != 0) return "a stretch that begins with another unit";
    for (int box = 0; box < 4; ++box) {
      const int token = first_token(unit, stretch, stretch_length) + box * kBox;
      if (token < unit.end && record.blocks[box] != block(unit.table_row, token)) return "a stretch of other blocks";
    }
    return "";
  }

  Failure all() const {
    if (num_units > room.units) return "no room for the units";
    for (int v = 0; v < step.num_seqs * tiles; ++v) {
      if (Failure failure = sequence(v); !failure.empty()) return failure + ", sequence " + std::to_string(v);
    }
    return stretches();
  }
};

}  // namespace

// -> what is wrong, or an empty text
extern "C" const char* octavo_check_plan(const PlanStep* step, const Plan* plan, int units, int part_rows) {
  static std::string failure;
  failure = Check{*step, *plan, {units, part_rows}}.all();
  return failure.c_str();
}

}  // namespace octavo
