// Program: a model's recorded forward pass, run over a whole step in one call.
//
//     recorder (Python, once)  ->  instructions: kernel, slots, arguments  ->  run(step) in a loop over them
//
// A slot is where an instruction's tensor lies: a buffer of activations and the row stride within it. Buffers
// were shared out by the recorder, which knows when each tensor dies.
#pragma once
#include <array>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "attention.h"
#include "kv_cache.h"
#include "octavo/matmul.h"
#include "rows.h"

namespace octavo {

struct Slot {
  int32_t buffer, width, stride;
};

// A parameter of an op, whose kind octavo/kernels/ops.py declares: numbers and words as they are, the rest by address.
union Argument {
  int64_t whole;
  float real;
  const float* floats;
  const uint8_t* bytes;
  const LayerSpec* layer;
  const PackedMatrix* matrix;
};
using Arguments = std::array<Argument, 8>;

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

// What all instructions of a model share. One owner: the compiled model; one step at a time.
struct ModelState {
  ThreadPool& pool;
  KVPool kv;
  StepView step{};
  AttentionScratch attention_scratch;
  AlignedFloats matmul_scratch;
  bool measures = false;

  ModelState(ThreadPool& pool, const KVPool& kv) : pool(pool), kv(kv), attention_scratch(pool.num_threads()) {}
};

// Runs one op on `num_tokens` rows of its tensors, which are its inputs and then its outputs.
using Kernel = void (*)(ModelState& model, const Rows* tensors, const Arguments& arguments, int64_t num_tokens);

struct NamedKernel {
  std::string_view op;
  Kernel kernel;
};

class Program {
 public:
  // widths: floats a token of each buffer.
  Program(ModelState& state, const int32_t* widths, int64_t num_buffers)
      : state_(state), widths_(widths, widths + num_buffers), buffers_(num_buffers), bound_(num_buffers) {}

  // The kernel of that name, on these tensors.
  void append(std::string_view op, std::span<const Slot> slots, const Arguments& arguments);
  // A product, written to the columns of `out` from `first_column` on. Several parts of one weight are several calls.
  void append_linear(std::unique_ptr<PackedMatrix> weight, const float* bias, Slot x, Slot out, int64_t first_column);

  // Lets a buffer be the caller's memory.
  void bind(int32_t buffer, float* memory) { bound_[buffer] = memory; }
  void reserve(int64_t num_tokens);
  Rows rows(Slot slot) const;
  int64_t size() const { return int64_t(instructions_.size()); }
  // Instructions first .. last-1.
  void run(int64_t first, int64_t last, int64_t num_tokens);
  int64_t packed_bytes() const;

  // What each instruction has cost since the clock was last reset, and how often it ran.
  void reset_clock();
  void read_clock(double* seconds, int64_t* calls) const;

 private:
  struct Instruction {
    Kernel kernel;
    std::vector<Slot> slots;
    Arguments arguments;
    double seconds = 0;
    int64_t calls = 0;
  };
  void run(const Instruction& instruction, int64_t num_tokens);

  ModelState& state_;
  std::vector<int32_t> widths_;
  std::vector<AlignedFloats> buffers_;
  std::vector<float*> bound_;
  std::vector<Instruction> instructions_;
  std::vector<std::unique_ptr<PackedMatrix>> weights_;
};

}  // namespace octavo
