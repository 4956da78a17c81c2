// Latent attention: products with each head's own matrix, rotation, and the write into the KV cache.
#include "latent.h"

#include <algorithm>

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

void write(const KVPool& kv, const float* row, int64_t count, uint8_t* to) {
  auto* halves = reinterpret_cast<uint16_t*>(to);
  switch (kv.type) {
    case KVType::float32: std::memcpy(to, row, size_t(count) * sizeof(float)); return;
    case KVType::bfloat16: std::transform(row, row + count, halves, [](float x) { return to_bfloat16(x); }); return;
    case KVType::float16: std::transform(row, row + count, halves, [](float x) { return to_float16(x); }); return;
    case KVType::fp8:
    case KVType::int8: break;  // refused before a model is loaded
  }
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
  const LayerCache cache(kv_pool, spec);
  const int64_t D = spec.head_dim, rank = spec.latent_rank, query = q.width / spec.num_heads;
  for_each_token(pool, step.num_tokens, 2 * kv.width + spec.num_heads * spec.rotary_dim, [&](int64_t t) {
    const int64_t position = step.positions[t];
    float* row = kv[t];
    rms_norm_row(row, spec.k_norm, spec.norm_eps, rank, row);
    rotate(spec, position, row + rank, row + rank);
    const int64_t block = step.block_table(spec.group, step.token_seqs[t])[position / kv_pool.block_size];
    write(kv_pool, row, D, cache.keys(block, 0) + position % kv_pool.block_size * D * kv_pool.element_bytes());
    for (int64_t h = 0; h < spec.num_heads; ++h) {
      rotate(spec, position, q[t] + (h + 1) * query - spec.rotary_dim, out[t] + h * D + rank);
    }
  });
}

}  // namespace octavo
