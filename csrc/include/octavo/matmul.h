// y = x W^T for one weight in any format a file may hold, T = 1 .. thousands.
//
// pack() reads the file's rows once and lays them out for the widest vectors this build has; the original
// bytes are not needed afterwards. multiply() is threaded by the pool, and takes one product or many.
#pragma once
#include <cstdint>
#include <memory>
#include <span>

#include "octavo/thread_pool.h"

namespace octavo {

// Values agree with octavo/kernels/tensor.py: DTYPES, in order.
enum class DType : int32_t {
  F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, IQ4_NL, MXFP4,
  I8_32, I8_128, U4_32, U4_128, F8_32, F8_128, E2M1_32  // codes and float32 scales, in blocks of 32 or 128 columns
};

class PackedMatrix;

// y[t * y_stride + r] = sum_c x[t * x_stride + c] * W[r][c], plus bias[r] if bias is not null; float32.
// `scratch` holds at least scratch_bytes(num_tokens) bytes, 64-byte aligned.
struct Product {
  const PackedMatrix* matrix;
  const float* x;
  int64_t x_stride, num_tokens;
  const float* bias;
  float* y;
  int64_t y_stride;
  void* scratch;
};

// Block-quantised formats may round x to integers per 32 columns; dense formats may not round x.
class PackedMatrix {
 public:
  virtual ~PackedMatrix() = default;
  int64_t rows() const { return rows_; }  // outputs
  int64_t cols() const { return cols_; }  // inputs
  virtual int64_t packed_bytes() const = 0;
  virtual uint8_t* packed_data() const = 0;  // they lie together; may be replaced by those of a matrix of this shape
  virtual int64_t scratch_bytes(int64_t num_tokens) const = 0;

  // A product is two loops: its tokens are packed in tiles, then its cells are computed. grain: cells worth handing out.
  virtual int64_t num_tiles(int64_t num_tokens) const = 0;
  virtual int64_t num_cells(int64_t num_tokens) const = 0;
  virtual int64_t grain(int64_t num_tokens) const = 0;
  virtual void pack_tiles(const Product& product, int64_t begin, int64_t end) const = 0;
  virtual void compute_cells(const Product& product, int64_t begin, int64_t end) const = 0;

 protected:
  int64_t rows_ = 0, cols_ = 0;
};

// Computes products that do not depend on each other, together: threads share the work of all of them.
void multiply(ThreadPool& pool, std::span<const Product> products);

// To bfloat16, where weights are bfloat16; elsewhere as 2.
constexpr int kBfloat16Activations = 3;

// data: rows x row_bytes as in the file (see tensor.py). Null if the format is not implemented. activation_bytes:
// 1 or 2, of the integers that block-quantised formats round x to; or kBfloat16Activations. Without data the result
// only tells its sizes.
std::unique_ptr<PackedMatrix> pack(ThreadPool& pool, DType dtype, const uint8_t* data, int64_t rows, int64_t cols,
                                   int activation_bytes);

// One row to float32: dequantisation, bit for bit as ggml's. Used by embedding lookups and by load-time casts.
void dequantize_row(DType dtype, const uint8_t* row, int64_t cols, float* out);

}  // namespace octavo
