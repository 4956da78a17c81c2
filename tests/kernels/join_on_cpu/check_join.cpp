// Joins random partial results by the GPU's own source, all threads of a block in turn, and compares them with float64.
#include "attention_join.cuh"  // the test puts it beside this file, so that it finds the attention_kind.cuh here

#include <random>
#include <string>
#include <vector>

namespace octavo {

// A member's row in float64: every part's sums brought to the largest maximum, and the head's sink.
std::vector<double> expected(const Launch& launch, const Member& member, int kv_head, int sub) {
  std::vector<int64_t> rows;
  for (int unit = 0; int(rows.size()) < member.num_parts; ++unit) {
    const Parts& parts = member.parts[unit];
    for (int p = 0; p < parts.count; ++p) rows.push_back(parts.first + p * parts.step);
  }
  double top = kLowest, sum = 0;
  for (int64_t& row : rows) {
    row = (row * launch.num_kv_heads + kv_head) * kMemberRows + sub;
    top = std::max<double>(top, launch.part_max_sum[2 * row]);
  }
  std::vector<double> values(kDim);
  for (const int64_t row : rows) {
    const double weight = std::exp2(launch.part_max_sum[2 * row] - top);
    sum += weight * launch.part_max_sum[2 * row + 1];
    for (int d = 0; d < kDim; ++d) values[d] += weight * launch.part_values[row * kDim + d];
  }
  sum += std::exp2(launch.hooks.sink(kv_head * GROUP + sub % GROUP) - top);
  for (double& value : values) value /= sum;
  return values;
}

std::string check(std::mt19937& random, int num_members, int max_units, int max_parts) {
  const auto number = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  std::normal_distribution<float> normal;
  const int num_kv_heads = number(1, 3), kv_head = number(0, num_kv_heads - 1);
  Piece piece{num_members, {}};
  Shared shared{};
  int part_rows = 0;
  for (int m = 0; m < num_members; ++m) {
    Member& member = piece.members[m];
    member.sequence = m;
    member.token = m * kTileQueries;
    member.num_queries = number(1, kTileQueries);
    const int num_units = number(1, max_units);
    for (int unit = 0; unit < num_units; ++unit) {
      Parts& parts = member.parts[unit];
      parts = {part_rows, number(1, 3), number(1, max_parts)};
      part_rows += parts.step * parts.count;
      member.num_parts += parts.count;
    }
    shared.joins[m] = number(0, 3) > 0;
  }
  const int64_t rows = int64_t(part_rows) * num_kv_heads * kMemberRows;
  std::vector<float> values(rows * kDim), max_sum(rows * 2);
  for (float& value : values) value = normal(random);
  for (int64_t row = 0; row < rows; ++row) {
    const bool saw_nothing = number(0, 9) == 0;
    max_sum[2 * row] = saw_nothing ? kLowest * 0.125f : 8 * normal(random);
    max_sum[2 * row + 1] = saw_nothing ? 0 : number(1, 100) * 0.25f;
    if (saw_nothing) std::fill_n(values.begin() + row * kDim, kDim, 0.0f);
  }
  const int heads = num_kv_heads * GROUP;
  const Element untouched = 0x7FC0;  // NaN
  std::vector<Element> out(num_members * kTileQueries * heads * kDim, untouched);
  const Launch launch{values.data(), max_sum.data(), out.data(), nullptr, heads * kDim, num_kv_heads, {}};
  for (threadIdx.x = 0; threadIdx.x < 32 * kComputers; ++threadIdx.x) {
    if (num_members == 1) {
      join_rows<32>(launch, shared, piece, kv_head);
    } else {
      join_rows<8>(launch, shared, piece, kv_head);
    }
  }
  for (int m = 0; m < num_members; ++m) {
    for (int query = 0; query < kTileQueries; ++query) {
      for (int head = 0; head < heads; ++head) {
        const Element* got = &out[((m * kTileQueries + query) * heads + head) * kDim];
        if (!shared.joins[m] || query >= piece.members[m].num_queries || head / GROUP != kv_head) {
          if (std::any_of(got, got + kDim, [&](Element x) { return x != untouched; })) return "a row too many";
          continue;
        }
        const auto exact = expected(launch, piece.members[m], kv_head, query * GROUP + head % GROUP);
        for (int d = 0; d < kDim; ++d) {
          const uint32_t bits = uint32_t(got[d]) << 16;
          float value;
          __builtin_memcpy(&value, &bits, 4);
          if (!(std::abs(value - exact[d]) <= 0.01 * std::abs(exact[d]) + 1e-5)) return "a wrong number";
        }
      }
    }
  }
  return "";
}

}  // namespace octavo

extern "C" const char* octavo_check_joins(int num_cases, int seed) {
  static std::string failure;
  std::mt19937 random(seed);
  for (int i = 0; i < num_cases && failure.empty(); ++i) {
    const int members = i % 2 ? 1 : 1 + int(random() % octavo::kTileMembers);
    failure = octavo::check(random, members, octavo::kSharedLevels + 1, i % 3 ? 3 : 20);
  }
  return failure.c_str();
}
