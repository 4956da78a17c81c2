// Rotation, head norms, and the write into the KV cache.
#include "rotary.h"

#include "float_formats.h"
#include "norm.h"
#include "vectors.h"

namespace octavo {
namespace {

void rotate(float* head, const float* cos, const float* sin, int64_t half) {
  for_each_vector(half, [&](int64_t i, auto lanes) {
    const auto a = load<lanes>(head + i), b = load<lanes>(head + half + i);
    const auto c = load<lanes>(cos + i), s = load<lanes>(sin + i);
    store<lanes>(head + i, a * c - b * s);
    store<lanes>(head + half + i, b * c + a * s);
  });
}

template <class Element, class Convert>
void write_slot(const float* k, const float* v, int64_t head_dim, int64_t block_size, int64_t slot, Element* keys,
                Element* values, const Convert& convert) {
  for (int64_t d = 0; d < head_dim; ++d) keys[d * block_size + slot] = convert(k[d]);
  for (int64_t d = 0; d < head_dim; ++d) values[slot * head_dim + d] = convert(v[d]);
}

void write_head(const KVPool& kv, const float* k, const float* v, int64_t head_dim, uint8_t* keys, uint8_t* values,
                int64_t slot) {
  const auto write = [&](auto* key, auto* value, const auto& convert) {
    write_slot(k, v, head_dim, kv.block_size, slot, key, value, convert);
  };
  switch (kv.type) {
    case KVType::float32:
      return write(reinterpret_cast<float*>(keys), reinterpret_cast<float*>(values), [](float x) { return x; });
    case KVType::bfloat16:
      return write(reinterpret_cast<uint16_t*>(keys), reinterpret_cast<uint16_t*>(values), to_bfloat16);
    case KVType::float16:
      return write(reinterpret_cast<uint16_t*>(keys), reinterpret_cast<uint16_t*>(values), to_float16);
  }
}

}  // namespace

void rotary_kv_write(ThreadPool& pool, const LayerSpec& spec, const KVPool& kv, const StepView& step, Rows qkv) {
  const int64_t D = spec.head_dim, num_rotated = spec.num_heads + spec.num_kv_heads;
  const LayerCache cache(kv, spec);
  for_each_token(pool, step.num_tokens, 2 * qkv.width, [&](int64_t t) {
    float* token = qkv[t];
    const int64_t position = step.positions[t], half = spec.rotary_dim / 2;
    for (int64_t head = 0; head < num_rotated; ++head) {
      float* x = token + head * D;
      const float* weight = head < spec.num_heads ? spec.q_norm : spec.k_norm;
      if (weight) rms_norm_row(x, weight, spec.norm_eps, D, x);
      if (spec.cos) rotate(x, spec.cos + position * half, spec.sin + position * half, half);
    }
    const int64_t block = step.block_table(spec.group, step.token_seqs[t])[position / kv.block_size];
    for (int64_t head = 0; head < spec.num_kv_heads; ++head) {
      const float *k = token + (spec.num_heads + head) * D, *v = k + spec.num_kv_heads * D;
      write_head(kv, k, v, D, cache.keys(block, head), cache.values(block, head), position % kv.block_size);
    }
  });
}

}  // namespace octavo
