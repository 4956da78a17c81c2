// Paged attention on a CPU.
//
// A context is cut at absolute positions into partitions of kPartition tokens. Over one partition a query's
// softmax is exact: all scores, their maximum, the exponentials, the weighted values. Partitions are then
// joined in order, rescaling by the larger maximum, as in online softmax (Milakov and Gimelshein 2018) and
// split-KV decoding (Dao et al. 2023). Cuts depend on positions alone, so a query's result is bitwise
// the same for any other queries in the step, any chunking of its prompt and any number of threads.
//
//     tile   up to kTileRows rows = some consecutive queries of one sequence x the query heads of one KV head
//     item   a tile over a span of partitions: the unit of work of a thread
//
//            partition 0   partition 1   partition 2 | partition 3 ...
//     tile   [-------------- item 0 ----------------] [--- item 1 ---]     split: partial results, joined after
//     tile   [-- item 2 --]                                                whole: joined as it goes
#include "attention.h"

#include <cmath>
#include <type_traits>

#include "attention_kernels.h"
#include "float_formats.h"
#include "vector_math.h"

namespace octavo {
namespace {

constexpr int64_t kPartition = 128;  // the largest block size divides it
constexpr int64_t kTileRows = 48;
constexpr int64_t kMaxBlocks = kPartition / 8;
constexpr float kNothing = -INFINITY;

struct Tile {
  int64_t seq, kv_head;
  int64_t first_token, num_queries;  // tokens of the step
  int64_t first_position;           // of the first query
  int64_t partition_begin, partition_end;
  int64_t partials;  // index of its first partial result, or -1 if it is not split

  int64_t num_partitions() const { return partition_end - partition_begin; }
};

struct Item {
  int64_t tile, partition_begin, partition_end;
};

// Attention of a tile's rows over some of their context: weighted values not yet divided by the sum.
struct Result {
  float* values;  // [rows][value_dim]
  float* maxima;  // [rows] largest score, -inf if a row attended to nothing
  float* sums;    // [rows] sum of exponentials

  Result(float* memory, int64_t rows, int64_t value_dim)
      : values(memory), maxima(memory + rows * value_dim), sums(maxima + rows) {}
  static int64_t size(int64_t rows, int64_t value_dim) { return rows * (value_dim + 2); }
};

// A thread's working set for one tile.
struct Workspace {
  int64_t rows;
  float *q, *scores, *converted, *part, *total;

  Workspace(std::vector<float>& memory, int64_t num_rows, int64_t head_dim, int64_t value_dim) : rows(num_rows) {
    const int64_t result = Result::size(rows, value_dim);
    const int64_t needed = rows * head_dim + rows * kPartition + 2 * kPartition * head_dim + 2 * result;
    if (int64_t(memory.size()) < needed) memory.resize(needed);
    q = memory.data();
    scores = q + rows * head_dim;
    converted = scores + rows * kPartition;
    part = converted + 2 * kPartition * head_dim;
    total = part + result;
  }
};

struct Plan {
  std::vector<Tile> tiles;
  std::vector<Item> items;
  std::vector<int64_t> split_tiles;
  int64_t num_partials = 0;  // floats
};

class Attention {
 public:
  Attention(const LayerSpec& spec, const KVPool& kv, const StepView& step, Rows q, Rows out)
      : spec_(spec), kv_(kv), cache_(kv, spec), step_(step), q_(q), out_(out),
        D_(spec.head_dim), V_(spec.value_dim()), heads_per_group_(spec.num_heads / spec.num_kv_heads) {}

  void run(ThreadPool& pool, AttentionScratch& scratch) const;

 private:
  Plan plan(int num_threads) const;
  void split(Plan& plan, int num_threads) const;
  int64_t first_visible(int64_t position) const {
    return spec_.window ? std::max<int64_t>(0, position - spec_.window + 1) : 0;
  }
  int64_t last_visible(int64_t seq, int64_t position) const {
    if (spec_.is_causal) return position;
    const int64_t last = step_.seq_lens[seq] - 1;
    return spec_.window ? std::min(last, position + spec_.window - 1) : last;
  }
  int64_t num_rows(const Tile& tile) const { return tile.num_queries * heads_per_group_; }
  // What loaded elements of a head are to be multiplied by.
  float unit(const float* scales, int64_t kv_head) const {
    return !kv_.has_codes() ? 1.0f : kv_.type == KVType::fp8 ? scales[kv_head] * kFloat8Factor : scales[kv_head];
  }

  void run_item(const Item& item, const Tile& tile, float* partials, std::vector<float>& memory) const;
  void load_queries(const Tile& tile, float* q) const;
  void partition(const Tile& tile, int64_t index, const Workspace& work, Result result) const;
  template <int W>
  void partition_at_width(const Tile& tile, int64_t index, const Workspace& work, Result result) const;
  template <int W, class Element>
  void partition_kernels(const Tile& tile, int64_t index, const Workspace& work, Result result) const;
  template <int W>
  void latent_partition(const Tile& tile, int64_t index, const Workspace& work, Result result) const;
  // A partition's visible tokens, counted from its start, and the blocks that hold them.
  struct Span {
    int64_t start, begin, end, first_block, end_block;
    const int32_t* table;
  };
  Span span(const Tile& tile, int64_t index) const;
  void softmax_rows(const Tile& tile, const Span& at, const Workspace& work, Result result) const;
  template <class Element>
  const Element* elements(const uint8_t* head, float* converted) const;
  void prefetch(const uint8_t* head) const;
  const float* as_float(const uint8_t* head, float* converted) const;
  void add_bias(int64_t head, int64_t query, int64_t begin, int64_t end, float* scores) const;
  float softmax_row(float* scores, int64_t lanes_begin, int64_t lanes_end, int64_t begin, int64_t end,
                    float& maximum) const;
  void join(Result part, Result total, int64_t rows) const;
  void finish(const Tile& tile, Result total) const;
  float sink(const Tile& tile, int64_t row, float maximum) const;

  const LayerSpec& spec_;
  const KVPool& kv_;
  const LayerCache cache_;
  const StepView& step_;
  const Rows q_, out_;
  const int64_t D_, V_, heads_per_group_;
};

void Attention::run(ThreadPool& pool, AttentionScratch& scratch) const {
  const Plan plan = this->plan(pool.num_threads());
  if (int64_t(scratch.partials.size()) < plan.num_partials) scratch.partials.resize(plan.num_partials);
  float* partials = scratch.partials.data();
  pool.parallel_for(int64_t(plan.items.size()), 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      run_item(plan.items[i], plan.tiles[plan.items[i].tile], partials, scratch.per_thread[thread]);
    }
  });
  for (int64_t index : plan.split_tiles) {
    const Tile& tile = plan.tiles[index];
    const int64_t rows = num_rows(tile), size = Result::size(rows, V_);
    float* first = partials + tile.partials;
    for (int64_t p = 1; p < tile.num_partitions(); ++p) {
      join(Result(first + p * size, rows, V_), Result(first, rows, V_), rows);
    }
    finish(tile, Result(first, rows, V_));
  }
}

Plan Attention::plan(int num_threads) const {
  Plan plan;
  const int64_t tile_queries = std::max<int64_t>(1, kTileRows / heads_per_group_);
  for (int64_t seq = 0; seq < step_.num_seqs; ++seq) {
    const int64_t begin = step_.query_start_loc[seq], end = step_.query_start_loc[seq + 1];
    const int64_t offset = step_.seq_lens[seq] - end;  // position of token t is t + offset
    for (int64_t first = begin; first < end; first += tile_queries) {
      const int64_t count = std::min(tile_queries, end - first), position = first + offset;
      for (int64_t head = 0; head < spec_.num_kv_heads; ++head) {
        plan.tiles.push_back({seq, head, first, count, position, first_visible(position) / kPartition,
                              last_visible(seq, position + count - 1) / kPartition + 1, -1});
      }
    }
  }
  split(plan, num_threads);
  return plan;
}

// Splits tiles that are so long that other threads would wait for them.
void Attention::split(Plan& plan, int num_threads) const {
  int64_t total = 0;
  for (const Tile& tile : plan.tiles) total += tile.num_partitions();
  const int64_t span = num_threads == 1 ? total : std::max<int64_t>(1, total / (4 * num_threads));
  for (size_t i = plan.tiles.size(); i-- > 0;) {  // later queries see more: longest first
    Tile& tile = plan.tiles[i];
    if (tile.num_partitions() > span) {
      tile.partials = plan.num_partials;
      plan.num_partials += tile.num_partitions() * Result::size(num_rows(tile), V_);
      plan.split_tiles.push_back(int64_t(i));
    }
    for (int64_t p = tile.partition_begin; p < tile.partition_end; p += span) {
      plan.items.push_back({int64_t(i), p, std::min(p + span, tile.partition_end)});
    }
  }
}

void Attention::run_item(const Item& item, const Tile& tile, float* partials, std::vector<float>& memory) const {
  const int64_t rows = num_rows(tile);
  const Workspace work(memory, rows, D_, V_);
  load_queries(tile, work.q);
  if (tile.partials >= 0) {
    for (int64_t p = item.partition_begin; p < item.partition_end; ++p) {
      float* target = partials + tile.partials + (p - tile.partition_begin) * Result::size(rows, V_);
      partition(tile, p, work, Result(target, rows, V_));
    }
    return;
  }
  const Result part(work.part, rows, V_), total(work.total, rows, V_);
  partition(tile, item.partition_begin, work, total);
  for (int64_t p = item.partition_begin + 1; p < item.partition_end; ++p) {
    partition(tile, p, work, part);
    join(part, total, rows);
  }
  finish(tile, total);
}

// Rows are query by query, the heads of one query adjacent; scaled, so that scores need no further factor. What meets a
// latent has the scale of values.
void Attention::load_queries(const Tile& tile, float* q) const {
  const int64_t width = heads_per_group_ * D_, rank = spec_.latent_rank;
  const float scale = spec_.scale * unit(spec_.k_scales, tile.kv_head);
  const float latent_scale = spec_.scale * unit(spec_.v_scales, tile.kv_head);
  for (int64_t i = 0; i < tile.num_queries; ++i) {
    const float* source = q_[tile.first_token + i] + tile.kv_head * width;
    for (int64_t j = 0; j < width; ++j) q[i * width + j] = source[j] * scale;
    if (!rank || latent_scale == scale) continue;
    for (int64_t j = 0; j < width; j += D_) {
      for (int64_t d = j; d < j + rank; ++d) q[i * width + d] = source[d] * latent_scale;
    }
  }
}

void Attention::partition(const Tile& tile, int64_t index, const Workspace& work, Result result) const {
  constexpr int kNarrow = std::min(kWidth, 8);  // divides every block size
  if (kv_.block_size % kWidth == 0 && D_ % kWidth == 0 && V_ % kWidth == 0) {
    partition_at_width<kWidth>(tile, index, work, result);
  } else if (D_ % kNarrow == 0 && V_ % kNarrow == 0) {
    partition_at_width<kNarrow>(tile, index, work, result);
  } else {
    partition_at_width<1>(tile, index, work, result);
  }
}

// A decode reads each key once, so narrow elements are widened as they are loaded. Larger tiles read each key many
// times, as all heads of a token read a latent, so theirs are widened to float32 first.
template <int W>
void Attention::partition_at_width(const Tile& tile, int64_t index, const Workspace& work, Result result) const {
  if (spec_.latent_rank) return latent_partition<W>(tile, index, work, result);
  if (tile.num_queries > 1) return partition_kernels<W, float>(tile, index, work, result);
  switch (kv_.type) {
    case KVType::float32: return partition_kernels<W, float>(tile, index, work, result);
    case KVType::bfloat16: return partition_kernels<W, BFloat16>(tile, index, work, result);
    case KVType::float16: return partition_kernels<W, Float16>(tile, index, work, result);
    case KVType::fp8: return partition_kernels<W, Float8>(tile, index, work, result);
    case KVType::int8: return partition_kernels<W, Int8>(tile, index, work, result);
  }
}

Attention::Span Attention::span(const Tile& tile, int64_t index) const {
  const int64_t start = index * kPartition, size = kv_.block_size;
  const int64_t last_position = last_visible(tile.seq, tile.first_position + tile.num_queries - 1);
  const int64_t begin = std::max<int64_t>(0, first_visible(tile.first_position) - start);
  const int64_t end = std::min(kPartition, last_position + 1 - start);
  return {start, begin, end, begin / size, (end + size - 1) / size,
          step_.block_table(spec_.group, tile.seq) + start / size};
}

// One partition, exactly.
template <int W, class Element>
void Attention::partition_kernels(const Tile& tile, int64_t index, const Workspace& work, Result result) const {
  const Span at = span(tile, index);
  const int64_t size = kv_.block_size;
  if (tile.num_queries == 1) {  // a decode waits for memory; a larger tile computes long on each load
    for (int64_t b = at.first_block; b < at.end_block; ++b) prefetch(cache_.keys(at.table[b], tile.kv_head));
    for (int64_t b = at.first_block; b < at.end_block; ++b) prefetch(cache_.values(at.table[b], tile.kv_head));
  }
  const Element *values[kMaxBlocks], *keys[kPartition / W];
  int64_t num_vectors = 0;
  float* converted = work.converted;
  for (int64_t b = at.first_block; b < at.end_block; ++b, converted += 2 * cache_.head_elements) {
    const Element* block_keys = elements<Element>(cache_.keys(at.table[b], tile.kv_head), converted);
    for (int64_t t = 0; t < size; t += W) keys[num_vectors++] = block_keys + t;
    values[b] = elements<Element>(cache_.values(at.table[b], tile.kv_head), converted + cache_.head_elements);
  }
  attention_scores<W, Element>(work.q, work.rows, D_, keys, num_vectors, size, work.scores + at.first_block * size,
                               kPartition);
  softmax_rows(tile, at, work, result);
  weighted_values<W, Element>(work.scores, kPartition, work.rows, values, size, at.begin, at.end, D_, D_, result.values);
}

// The same for latents, which are keys and values at once.
template <int W>
void Attention::latent_partition(const Tile& tile, int64_t index, const Workspace& work, Result result) const {
  const Span at = span(tile, index);
  const int64_t size = kv_.block_size;
  const float *blocks[kMaxBlocks], *tokens[kPartition];
  int64_t num_tokens = 0;
  float* converted = work.converted;
  for (int64_t b = at.first_block; b < at.end_block; ++b) prefetch(cache_.keys(at.table[b], 0));
  for (int64_t b = at.first_block; b < at.end_block; ++b, converted += cache_.head_elements) {
    blocks[b] = as_float(cache_.keys(at.table[b], 0), converted);
    for (int64_t t = 0; t < size; ++t) tokens[num_tokens++] = blocks[b] + t * D_;
  }
  latent_scores<W>(work.q, work.rows, D_, tokens, num_tokens, work.scores + at.first_block * size, kPartition);
  softmax_rows(tile, at, work, result);
  weighted_values<W, float>(work.scores, kPartition, work.rows, blocks, size, at.begin, at.end, V_, D_, result.values);
}

void Attention::softmax_rows(const Tile& tile, const Span& at, const Workspace& work, Result result) const {
  const int64_t size = kv_.block_size;
  for (int64_t row = 0; row < work.rows; ++row) {
    const int64_t position = tile.first_position + row / heads_per_group_;
    const int64_t begin = first_visible(position) - at.start, end = last_visible(tile.seq, position) + 1 - at.start;
    if (spec_.bias) {
      const int64_t head = tile.kv_head * heads_per_group_ + row % heads_per_group_;
      add_bias(head, position - at.start, begin, end, work.scores + row * kPartition);
    }
    result.sums[row] = softmax_row(work.scores + row * kPartition, at.first_block * size, at.end_block * size, begin,
                                   end, result.maxima[row]);
  }
}

// Blocks are not adjacent, so the processor cannot predict the next one.
void Attention::prefetch(const uint8_t* head) const {
  for (int64_t offset = 0; offset < cache_.head_bytes; offset += 64) __builtin_prefetch(head + offset, 0, 2);
}

template <class Element>
const Element* Attention::elements(const uint8_t* head, float* converted) const {
  if constexpr (std::is_same_v<Element, float>) {
    return as_float(head, converted);
  } else {
    return reinterpret_cast<const Element*>(head);
  }
}

const float* Attention::as_float(const uint8_t* head, float* converted) const {
  const auto* halves = reinterpret_cast<const uint16_t*>(head);
  switch (kv_.type) {
    case KVType::bfloat16: from_bfloat16(halves, cache_.head_elements, converted); return converted;
    case KVType::float16: from_float16(halves, cache_.head_elements, converted); return converted;
    case KVType::fp8: from_codes(reinterpret_cast<const Float8*>(head), cache_.head_elements, converted); return converted;
    case KVType::int8: from_codes(reinterpret_cast<const Int8*>(head), cache_.head_elements, converted); return converted;
    case KVType::float32: break;
  }
  return reinterpret_cast<const float*>(head);
}

// query: its position. Keys and it are counted from the partition's start, and the query may be outside.
void Attention::add_bias(int64_t head, int64_t query, int64_t begin, int64_t end, float* scores) const {
  const int64_t reach = spec_.bias_reach;
  const float* bias = spec_.bias + head * (2 * reach + 1) + reach;
  begin = std::max<int64_t>(begin, 0);
  end = std::min(end, kPartition);
  for (int64_t t = begin; t < end; ++t) scores[t] += bias[std::clamp(t - query, -reach, reach)];
}

// Scores to exp(score - maximum), 0 outside [begin, end), over whole vectors that cover [lanes_begin,
// lanes_end). Scores outside may be garbage and are only overwritten. Returns the sum.
float Attention::softmax_row(float* scores, int64_t lanes_begin, int64_t lanes_end, int64_t begin, int64_t end,
                             float& maximum) const {
  constexpr int W = kWidth;
  lanes_begin = lanes_begin / W * W;
  const Floats<W> nothing = broadcast<W>(kNothing);
  const Ints<W> lanes = iota<W>();
  Floats<W> best = nothing;
  for (int64_t t = lanes_begin; t < lanes_end; t += W) {
    Floats<W> s = load<W>(scores + t);
    if (spec_.softcap != 0.0f) s = spec_.softcap * tanh<W>(s / spec_.softcap);
    s = (lanes >= int32_t(begin - t)) & (lanes < int32_t(end - t)) ? s : nothing;
    best = s > best ? s : best;
    store<W>(scores + t, s);
  }
  maximum = largest<W>(best);
  const float subtracted = maximum == kNothing ? 0.0f : maximum;
  Floats<W> total{};
  for (int64_t t = lanes_begin; t < lanes_end; t += W) {
    const Floats<W> p = exp<W>(load<W>(scores + t) - subtracted);
    total += p;
    store<W>(scores + t, p);
  }
  return sum<W>(total);
}

void Attention::join(Result part, Result total, int64_t rows) const {
  for (int64_t row = 0; row < rows; ++row) {
    const float maximum = std::max(part.maxima[row], total.maxima[row]);
    if (maximum == kNothing) continue;
    const Floats<4> factors = exp<4>(Floats<4>{part.maxima[row] - maximum, total.maxima[row] - maximum, 0, 0});
    const float *source = part.values + row * V_, p = factors[0], t = factors[1];
    float* target = total.values + row * V_;
    for (int64_t d = 0; d < V_; ++d) target[d] = fused(target[d], t, source[d] * p);
    total.sums[row] = fused(total.sums[row], t, part.sums[row] * p);
    total.maxima[row] = maximum;
  }
}

void Attention::finish(const Tile& tile, Result total) const {
  const float unit = this->unit(spec_.v_scales, tile.kv_head);
  for (int64_t i = 0; i < tile.num_queries; ++i) {
    float* target = out_[tile.first_token + i] + tile.kv_head * heads_per_group_ * V_;
    for (int64_t row = i * heads_per_group_; row < (i + 1) * heads_per_group_; ++row, target += V_) {
      const float factor = unit / (total.sums[row] + sink(tile, row, total.maxima[row]));
      for (int64_t d = 0; d < V_; ++d) target[d] = total.values[row * V_ + d] * factor;
    }
  }
}

// What the head's sink adds to the sum of a row with this largest score.
float Attention::sink(const Tile& tile, int64_t row, float maximum) const {
  if (!spec_.sinks) return 0.0f;
  return std::exp(spec_.sinks[tile.kv_head * heads_per_group_ + row % heads_per_group_] - maximum);
}

}  // namespace

void paged_attention(ThreadPool& pool, const LayerSpec& spec, const KVPool& kv, const StepView& step, Rows q,
                     Rows out, AttentionScratch& scratch) {
  Attention(spec, kv, step, q, out).run(pool, scratch);
}

}  // namespace octavo
