// Rotation, head norms, and the write into the KV cache.
#include "rotary.h"

#include <algorithm>
#include <cmath>

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
void write_slot(const float* k, const float* v, int64_t head_dim, int64_t block_size, int64_t slot, uint8_t* keys,
                uint8_t* values, const Convert& convert) {
  auto *key = reinterpret_cast<Element*>(keys), *value = reinterpret_cast<Element*>(values);
  for (int64_t d = 0; d < head_dim; ++d) key[d * block_size + slot] = convert(k[d], 0);
  for (int64_t d = 0; d < head_dim; ++d) value[slot * head_dim + d] = convert(v[d], 1);
}

// scales: of this head's keys and values.
void write_head(const KVPool& kv, const float* k, const float* v, int64_t head_dim, uint8_t* keys, uint8_t* values,
                int64_t slot, const float* scales) {
  const auto write = [&](auto element, const auto& convert) {
    write_slot<decltype(element)>(k, v, head_dim, kv.block_size, slot, keys, values, convert);
  };
  switch (kv.type) {
    case KVType::float32: return write(float{}, [](float x, int) { return x; });
    case KVType::bfloat16: return write(uint16_t{}, [](float x, int) { return to_bfloat16(x); });
    case KVType::float16: return write(uint16_t{}, [](float x, int) { return to_float16(x); });
    case KVType::fp8: return write(Float8{}, [=](float x, int which) { return to_float8(x / scales[which]); });
    case KVType::int8: return write(Int8{}, [=](float x, int which) { return to_int8(x / scales[which]); });
  }
}

void write_token(const LayerSpec& spec, const KVPool& kv, const StepView& step, int64_t t, const float* token) {
  const LayerCache cache(kv, spec);
  const int64_t D = spec.head_dim, position = step.positions[t];
  const int64_t block = step.block_table(spec.group, step.token_seqs[t])[position / kv.block_size];
  for (int64_t head = 0; head < spec.num_kv_heads; ++head) {
    const float *k = token + (spec.num_heads + head) * D, *v = k + spec.num_kv_heads * D;
    const float scales[] = {spec.k_scales ? spec.k_scales[head] : 1.0f, spec.v_scales ? spec.v_scales[head] : 1.0f};
    write_head(kv, k, v, D, cache.keys(block, head), cache.values(block, head), position % kv.block_size, scales);
  }
}

// Sets each head's scale by the largest of the step's numbers.
void calibrate(const LayerSpec& spec, const KVPool& kv, int64_t num_tokens, Rows qkv) {
  const int64_t D = spec.head_dim, num_kv_heads = spec.num_kv_heads;
  for (int64_t head = 0; head < 2 * num_kv_heads; ++head) {
    float largest = 0.0f;
    for (int64_t t = 0; t < num_tokens; ++t) {
      const float* x = qkv[t] + (spec.num_heads + head) * D;
      for (int64_t d = 0; d < D; ++d) largest = std::max(largest, std::fabs(x[d]));
    }
    float& scale = head < num_kv_heads ? spec.k_scales[head] : spec.v_scales[head - num_kv_heads];
    scale = largest > 0.0f ? largest / kv.calibrated_max : 1.0f;
  }
}

}  // namespace

void rotary_kv_write(ThreadPool& pool, const LayerSpec& spec, const KVPool& kv, const StepView& step, Rows qkv) {
  const int64_t D = spec.head_dim, num_rotated = spec.num_heads + spec.num_kv_heads;
  const bool calibrates = kv.calibrated_max > 0.0f;
  for_each_token(pool, step.num_tokens, 2 * qkv.width, [&](int64_t t) {
    float* token = qkv[t];
    const int64_t position = step.positions[t], half = spec.rotary_dim / 2;
    for (int64_t head = 0; head < num_rotated; ++head) {
      float* x = token + head * D;
      const float* weight = head < spec.num_heads ? spec.q_norm : spec.k_norm;
      if (weight) rms_norm_row(x, weight, spec.norm_eps, D, x);
      if (spec.cos) rotate(x, spec.cos + position * half, spec.sin + position * half, half);
    }
    if (!calibrates) write_token(spec, kv, step, t, token);
  });
  if (!calibrates) return;
  calibrate(spec, kv, step.num_tokens, qkv);
  for (int64_t t = 0; t < step.num_tokens; ++t) write_token(spec, kv, step, t, qkv[t]);
}

}  // namespace octavo
