// Program: a model's recorded forward pass, run over a whole step in one call.
//
//     recorder (Python, once)  ->  instructions: kernel, slots, arguments  ->  run(step) in a loop over them
//
// A slot is the place of an instruction's tensor: a buffer of activations and the row stride in it. The recorder, which
// knows when each tensor dies, has assigned the buffers.
#pragma once
#include <array>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "adapter.h"
#include "attention.h"
#include "aligned_floats.h"
#include "kv_cache.h"
#include "latent.h"
#include "mixture.h"
#include "octavo/matmul.h"
#include "rows.h"

namespace octavo {

struct Slot {
  int32_t buffer, width, stride;
};

// A parameter of an op, of the kind that octavo/kernels/ops.py declares: a number, a word's index, or an address.
union Argument {
  int64_t whole;
  float real;
  const float* floats;
  const uint8_t* bytes;
  const LayerSpec* layer;
  const PackedMatrix* matrix;
  const Mixture* mixture;
  const HeadProducts* heads;
  const AdapterSpec* adapter;
};
using Arguments = std::array<Argument, 8>;

// Adds up an array of floats over all ranks, in place. Not 0: it failed.
using AllReduce = int (*)(float* data, int64_t count);

// State shared by all instructions of a model. The compiled model owns it and runs one step at a time.
struct ModelState {
  ThreadPool& pool;
  KVPool kv;
  StepView step{};
  AttentionScratch attention_scratch;
  AlignedFloats matmul_scratch;
  MixtureScratch mixture_scratch;
  std::vector<Product> head_products;
  AdapterScratch adapter_scratch;
  const int32_t* adapters = nullptr;  // the slot of each row's adapter, in the pass that runs; null: no row has one
  AllReduce all_reduce = nullptr;  // null: there is one rank
  bool measures = false;

  ModelState(ThreadPool& pool, const KVPool& kv) : pool(pool), kv(kv), attention_scratch(pool.num_threads()) {}
};

// Runs one op on `num_tokens` rows of its tensors: first the inputs, then the outputs.
using Kernel = void (*)(ModelState& model, const Rows* tensors, const Arguments& arguments, int64_t num_tokens);

struct NamedKernel {
  std::string_view op;
  Kernel kernel;
};

class Program {
 public:
  // widths: floats per token of each buffer.
  Program(ModelState& state, const int32_t* widths, int64_t num_buffers)
      : state_(state), widths_(widths, widths + num_buffers), buffers_(num_buffers), bound_(num_buffers) {}

  // Appends the kernel of this name on these tensors.
  void append(std::string_view op, std::span<const Slot> slots, const Arguments& arguments);
  // Appends a product, written to the columns of `out` from `first_column` on. Each part of a weight is one call.
  void append_linear(std::unique_ptr<PackedMatrix> weight, const float* bias, Slot x, Slot out, int64_t first_column);
  // A mixture without weights yet; the program owns it. Appends it.
  Mixture& new_mixture(const MixtureSpec& spec);
  void append_mixture(const Mixture& mixture, Slot x, Slot out);

  // The same for products of each head, whose matrices are added afterwards.
  HeadProducts& append_head_products(int64_t x_step, int64_t out_step, Slot x, Slot out);

  // Makes a buffer use the caller's memory.
  void bind(int32_t buffer, float* memory) { bound_[buffer] = memory; }
  void reserve(int64_t num_tokens);
  Rows rows(Slot slot) const;
  int64_t size() const { return int64_t(instructions_.size()); }
  // Runs instructions first .. last-1.
  void run(int64_t first, int64_t last, int64_t num_tokens);
  int64_t packed_bytes() const;
  int64_t buffer_bytes() const;

  // Time and number of calls of each instruction since the clock was last reset.
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
  std::vector<std::unique_ptr<Mixture>> mixtures_;
  std::vector<std::unique_ptr<HeadProducts>> head_products_;
};

}  // namespace octavo
