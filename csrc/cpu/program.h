// Program: a model's recorded forward pass, run over a whole step in one call.
//
//     recorder (Python, once)  ->  instructions: op, slots, weights, scalars  ->  run(step) in a loop over them
//
// A slot is where an instruction's tensor lies: a buffer of activations and the row stride within it. Buffers
// were shared out by the recorder, which knows when each tensor dies.
#pragma once
#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "activation.h"
#include "attention.h"
#include "embedding.h"
#include "kv_cache.h"
#include "octavo/matmul.h"
#include "rotary.h"
#include "rows.h"

namespace octavo {

// Values agree with octavo/kernels/cpu/compiled.py: OP_KINDS, in order.
enum class OpKind : int32_t {
  embedding, linear, rms_norm, add_rms_norm, layer_norm, add, activation, gated_activation,
  rotary_kv_write, paged_attention, softcap, count
};

enum class Index : int32_t { input_ids, positions };

struct Slot {
  int32_t buffer, width, stride;
};

// Floats on a cache line boundary. Growing discards what was there.
class AlignedFloats {
 public:
  float* data() const { return data_.get(); }
  void reserve(int64_t count);

 private:
  struct Free {
    void operator()(float* memory) const;
  };
  std::unique_ptr<float, Free> data_;
  int64_t capacity_ = 0;
};

struct OpTimes {
  std::array<double, size_t(OpKind::count)> seconds{};
  std::array<int64_t, size_t(OpKind::count)> calls{};
};

// What all instructions of a model share. One owner: the compiled model; one step at a time.
struct ModelState {
  ThreadPool& pool;
  KVPool kv;
  StepView step{};
  AttentionScratch attention_scratch;
  AlignedFloats matmul_scratch;
  bool measures = false;
  OpTimes times;

  ModelState(ThreadPool& pool, const KVPool& kv) : pool(pool), kv(kv), attention_scratch(pool.num_threads()) {}
};

class Program {
 public:
  // widths: floats a token of each buffer.
  Program(ModelState& state, const int32_t* widths, int64_t num_buffers)
      : state_(state), widths_(widths, widths + num_buffers), buffers_(num_buffers), bound_(num_buffers) {}

  void embedding(const EmbeddingTable& table, int64_t num_rows, Index index, Slot out);
  // Writes the columns of `out` from `first_column` on. Several parts of one weight are several calls.
  void linear(std::unique_ptr<PackedMatrix> weight, const float* bias, Slot x, Slot out, int64_t first_column);
  void rms_norm(Slot x, const float* weight, float eps, Slot out);
  void add_rms_norm(Slot x, Slot residual, const float* weight, float eps, Slot out, Slot sum);
  void layer_norm(Slot x, const float* weight, const float* bias, float eps, Slot out);
  void add(Slot x, Slot y, Slot out);
  void activation(Activation kind, Slot x, Slot out);
  void gated_activation(Activation kind, Slot gate_up, Slot out);
  void rotary_kv_write(const RotarySpec& spec, Slot qkv);
  void paged_attention(const AttentionSpec& spec, Slot q, Slot out);
  void softcap(float cap, Slot x, Slot out);

  // Lets a buffer be the caller's memory.
  void bind(int32_t buffer, float* memory) { bound_[buffer] = memory; }
  void reserve(int64_t num_tokens);
  Rows rows(Slot slot) const;
  void run(int64_t num_tokens);
  int64_t packed_bytes() const;

 private:
  struct Instruction {
    OpKind kind;
    std::function<void(int64_t num_tokens)> run;
  };
  void append(OpKind kind, std::function<void(int64_t)> run) { instructions_.push_back({kind, std::move(run)}); }

  ModelState& state_;
  std::vector<int32_t> widths_;
  std::vector<AlignedFloats> buffers_;
  std::vector<float*> bound_;
  std::vector<Instruction> instructions_;
  std::vector<std::unique_ptr<PackedMatrix>> weights_;
};

}  // namespace octavo
