// This backend's layout of keys and values in a block of the pool.
//
//     layer of a block:  K of head 0 | K of head 1 | ... | V of head 0 | V of head 1 | ...
//     K of one head:     [head_dim][block_size]    one load holds many tokens' elements of one dimension
//     V of one head:     [block_size][head_dim]    one load holds many dimensions of one token
//
// With K transposed, each lane of a vector of scores is another token, and no score needs a horizontal sum.
//
//     layer of latents:  K [block_size][head_dim]      a token's first latent_rank numbers are its value, too
#pragma once
#include <cstdint>

namespace octavo {

// Values agree with octavo/kernels/cpu/compiled.py: KV_DTYPES, in order.
enum class KVType : int32_t { float32, bfloat16, float16, fp8, int8 };

struct KVPool {
  uint8_t* data;
  int64_t num_blocks;
  int64_t block_size;
  int64_t block_bytes;  // enough for the layers of any cache group
  KVType type;
  float calibrated_max;  // above 0: a step sets the scales, so that the largest number seen becomes this code

  bool has_codes() const { return type == KVType::fp8 || type == KVType::int8; }
  int64_t element_bytes() const { return type == KVType::float32 ? 4 : has_codes() ? 1 : 2; }
};

// The constants of one layer's attention; see octavo/kernels/attention_layer.py.
struct LayerSpec {
  int64_t group, offset;  // cache group, and the layer's offset in its blocks in bytes
  int64_t num_heads, num_kv_heads, head_dim;
  float scale;
  int64_t window;       // tokens a token sees to one side, itself included; 0: all
  int64_t is_causal;    // 0: it also sees tokens after it
  float softcap;        // 0: none
  const float* q_norm;  // [head_dim] or null
  const float* k_norm;  // [head_dim] or null
  float norm_eps;
  const float* cos;  // [max_len, rotary_dim / 2]; null: no rotation
  const float* sin;
  int64_t rotary_dim;
  float* k_scales;  // [num_kv_heads] what codes are multiplied by; null if the pool has none. v_scales: of latents, too
  float* v_scales;
  const float* sinks;  // [num_heads] scores that have no value; or null
  const float* bias;  // [num_heads, 2 bias_reach + 1] added to scores, by a key's distance from its query; null: none
  int64_t bias_reach;  // farther keys have the last bias
  int64_t latent_rank;  // 0: keys and values are stored apart
  int64_t interleaves;  // of latents: rotated pairs are neighbours

  int64_t value_dim() const { return latent_rank ? latent_rank : head_dim; }
};

// One layer's keys and values in all blocks. Cache groups may differ in the number and size of heads.
struct LayerCache {
  LayerCache(const KVPool& pool, const LayerSpec& spec)
      : head_elements(pool.block_size * spec.head_dim), head_bytes(head_elements * pool.element_bytes()),
        data_(pool.data + spec.offset), block_bytes_(pool.block_bytes), num_kv_heads_(spec.num_kv_heads) {}

  uint8_t* keys(int64_t block, int64_t head) const { return data_ + block * block_bytes_ + head * head_bytes; }
  uint8_t* values(int64_t block, int64_t head) const { return keys(block, num_kv_heads_ + head); }

  const int64_t head_elements, head_bytes;

 private:
  uint8_t* data_;
  int64_t block_bytes_, num_kv_heads_;
};

// An op's view of the step: ragged token ranges and each sequence's blocks.
struct StepView {
  int64_t num_tokens;
  int64_t num_seqs;
  int64_t num_groups;
  const int32_t* input_ids;            // [T]
  const int32_t* positions;            // [T]
  const int32_t* query_start_loc;      // [S + 1]
  const int32_t* seq_lens;             // [S]
  const int32_t* rows;                 // [S]
  const int32_t* const* block_tables;  // G of [max_rows, table_strides[g]]
  const int64_t* table_strides;        // [G]
  const int32_t* token_seqs;           // [T] the sequence each token belongs to
  const float* hidden_states;          // [T, H] from the stage before; null: the model takes none
  const int32_t* token_types;          // [T] which of a pair's texts each token is of; null: the model does not ask
  const int32_t* adapters;             // [T] the slot of each token's adapter, -1 for none; null: no token has one

  const int32_t* block_table(int64_t group, int64_t seq) const {
    return block_tables[group] + rows[seq] * table_strides[group];
  }
};

}  // namespace octavo
