// Latent attention's work around attention itself. See octavo/kernels/latent.py.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "aligned_floats.h"
#include "kv_cache.h"
#include "octavo/matmul.h"
#include "rows.h"

namespace octavo {

// A matrix for each head: y[t][h * y_step + r] = sum_c x[t][h * x_step + c] * W_h[r][c].
class HeadProducts {
 public:
  HeadProducts(int64_t x_step, int64_t y_step) : x_step_(x_step), y_step_(y_step) {}

  void add(std::unique_ptr<PackedMatrix> matrix) { matrices_.push_back(std::move(matrix)); }
  int64_t packed_bytes() const;
  // As many heads at once as their scratch memory is worth. `products` is memory, too.
  void run(ThreadPool& pool, Rows x, Rows y, int64_t num_tokens, AlignedFloats& scratch,
           std::vector<Product>& products) const;

 private:
  int64_t x_step_, y_step_;
  std::vector<std::unique_ptr<PackedMatrix>> matrices_;
};

// Norms each token's latent and rotates its key, in kv, and writes both to the token's slot; rotates what follows the
// unrotated part of each head's query into what follows the latents' part of `out`.
void latent_kv_write(ThreadPool& pool, const LayerSpec& spec, const KVPool& kv_pool, const StepView& step, Rows q, Rows kv,
                     Rows out);

}  // namespace octavo
