// A PackedMatrix and a ThreadPool on their own, for tests and benchmarks.
#include <cstdint>
#include <memory>

#include "octavo/matmul.h"
#include "octavo/thread_pool.h"

using octavo::DType;
using octavo::PackedMatrix;
using octavo::ThreadPool;

extern "C" {

ThreadPool* octavo_start_threads(int num_threads) { return new ThreadPool(num_threads); }
void octavo_stop_threads(ThreadPool* pool) { delete pool; }

ThreadPool::Session* octavo_begin_session(ThreadPool* pool) { return new ThreadPool::Session(*pool); }
void octavo_end_session(ThreadPool::Session* session) { delete session; }

// Adds one to each of counters[0 .. count) through parallel_for, `times` times over.
void octavo_count_loops(ThreadPool* pool, int64_t count, int64_t grain, int64_t times, int64_t* counters) {
  for (int64_t i = 0; i < times; ++i) {
    pool->parallel_for(count, grain, [&](int64_t begin, int64_t end, int) {
      for (int64_t j = begin; j < end; ++j) ++counters[j];
    });
  }
}

void octavo_dequantize(int32_t dtype, const uint8_t* row, int64_t cols, float* out) {
  octavo::dequantize_row(static_cast<DType>(dtype), row, cols, out);
}

PackedMatrix* octavo_pack(ThreadPool* pool, int32_t dtype, const uint8_t* data, int64_t rows, int64_t cols,
                          int32_t activation_bytes) {
  return octavo::pack(*pool, static_cast<DType>(dtype), data, rows, cols, activation_bytes).release();
}
void octavo_free_matrix(PackedMatrix* matrix) { delete matrix; }

int64_t octavo_packed_bytes(const PackedMatrix* matrix) { return matrix->packed_bytes(); }
int64_t octavo_scratch_bytes(const PackedMatrix* matrix, int64_t num_tokens) { return matrix->scratch_bytes(num_tokens); }

void octavo_multiply(ThreadPool* pool, const PackedMatrix* matrix, const float* x, int64_t x_stride,
                     int64_t num_tokens, const float* bias, float* y, int64_t y_stride, void* scratch) {
  const octavo::Product product{matrix, x, x_stride, num_tokens, bias, y, y_stride, scratch};
  octavo::multiply(*pool, {&product, 1});
}

}  // extern "C"
