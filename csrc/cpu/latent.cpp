// Latent attention: products with each head's own matrix, rotation, and the write into the KV cache.
#include "latent.h"

#include <algorithm>
#include <cmath>

#include "float_formats.h"
#include "norm.h"

namespace octavo {
namespace {

constexpr int64_t kScratchFloats = 1 << 20;

// Rotates neighbours, or elements of the two halves.
void rotate(const LayerSpec& spec, int64_t position, const float* x, float* out) {
  const int64_t half = spec.rotary_dim / 2, step = spec.interleaves ? 2 : 1, apart = spec.interleaves ? 1 : half;
  const float *cos = spec.cos + position * half, *sin = spec.sin + position * half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i * step], b = x[i * step + apart];
    out[i * step] = a * cos[i] - b * sin[i];
    out[i * step + apart] = b * cos[i] + a * sin[i];
  }
}

void write(const KVPool& kv, const float* row, int64_t count, uint8_t* to, float scale) {
  auto* halves = reinterpret_cast<uint16_t*>(to);
  const auto codes = [=](auto code, auto convert) {
    std::transform(row, row + count, reinterpret_cast<decltype(code)*>(to), [=](float x) { return convert(x / scale); });
  };
  switch (kv.type) {
    case KVType::float32: std::memcpy(to, row, size_t(count) * sizeof(float)); return;
    case KVType::bfloat16: std::transform(row, row + count, halves, [](float x) { return to_bfloat16(x); }); return;
    case KVType::float16: std::transform(row, row + count, halves, [](float x) { return to_float16(x); }); return;
    case KVType::fp8: return codes(Float8{}, to_float8);
    case KVType::int8: return codes(Int8{}, to_int8);
  }
}

// Of a normed latent, and then of its rotated key.
void write_token(const LayerSpec& spec, const KVPool& kv, const StepView& step, int64_t t, const float* row) {
  const LayerCache cache(kv, spec);
  const int64_t position = step.positions[t], rank = spec.latent_rank;
  const int64_t block = step.block_table(spec.group, step.token_seqs[t])[position / kv.block_size];
  uint8_t* cell = cache.keys(block, 0) + position % kv.block_size * spec.head_dim * kv.element_bytes();
  write(kv, row, rank, cell, spec.v_scales ? *spec.v_scales : 1.0f);
  write(kv, row + rank, spec.head_dim - rank, cell + rank * kv.element_bytes(), spec.k_scales ? *spec.k_scales : 1.0f);
}

float calibrated_scale(const KVPool& kv, int64_t num_tokens, Rows rows, int64_t begin, int64_t end) {
  float largest = 0.0f;
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t d = begin; d < end; ++d) largest = std::max(largest, std::fabs(rows[t][d]));
  }
  return largest > 0.0f ? largest / kv.calibrated_max : 1.0f;
}

}  // namespace

int64_t HeadProducts::packed_bytes() const {
  int64_t total = 0;
  for (const auto& matrix : matrices_) total += matrix->packed_bytes();
  return total;
}

void HeadProducts::run(ThreadPool& pool, Rows x, Rows y, int64_t num_tokens, AlignedFloats& scratch,
                       std::vector<Product>& products) const {
  const int64_t count = int64_t(matrices_.size());
  const int64_t floats = (matrices_.front()->scratch_bytes(num_tokens) + 63) / 64 * 16;  // of one, aligned
  const int64_t at_once = std::clamp<int64_t>(kScratchFloats / std::max<int64_t>(floats, 1), 1, count);
  scratch.reserve(at_once * floats);
  for (int64_t first = 0; first < count; first += at_once) {
    products.clear();
    for (int64_t h = first; h < std::min(first + at_once, count); ++h) {
      products.push_back({matrices_[h].get(), x.data + h * x_step_, x.stride, num_tokens, nullptr,
                          y.data + h * y_step_, y.stride, scratch.data() + (h - first) * floats});
    }
    multiply(pool, products);
  }
}

void latent_kv_write(ThreadPool& pool, const LayerSpec& spec, const KVPool& kv_pool, const StepView& step, Rows q, Rows kv,
                     Rows out) {
  const int64_t D = spec.head_dim, rank = spec.latent_rank, query = q.width / spec.num_heads;
  const bool calibrates = kv_pool.calibrated_max > 0.0f;
  for_each_token(pool, step.num_tokens, 2 * kv.width + spec.num_heads * spec.rotary_dim, [&](int64_t t) {
    const int64_t position = step.positions[t];
    float* row = kv[t];
    rms_norm_row(row, spec.k_norm, spec.norm_eps, rank, row);
    rotate(spec, position, row + rank, row + rank);
    if (!calibrates) write_token(spec, kv_pool, step, t, row);
    for (int64_t h = 0; h < spec.num_heads; ++h) {
      rotate(spec, position, q[t] + (h + 1) * query - spec.rotary_dim, out[t] + h * D + rank);
    }
  });
  if (!calibrates) return;
  *spec.v_scales = calibrated_scale(kv_pool, step.num_tokens, kv, 0, rank);
  *spec.k_scales = calibrated_scale(kv_pool, step.num_tokens, kv, rank, D);
  for (int64_t t = 0; t < step.num_tokens; ++t) write_token(spec, kv_pool, step, t, kv[t]);
}

}  // namespace octavo
