// The loop over a program's instructions, and the table from ops to kernels.
#include "program.h"

#include <chrono>
#include <stdexcept>
#include <string>

#include "elementwise.h"
#include "embedding.h"
#include "norm.h"
#include "rotary.h"

namespace octavo {
namespace {

constexpr size_t kMaxTensors = 4;

using Model = ModelState&;
using Tensors = const Rows*;
using Given = const Arguments&;

void run_embedding(Model model, Tensors tensors, Given given, int64_t num_tokens) {
  const int64_t num_rows = given[2].whole, offset = given[5].whole;
  const EmbeddingTable table{DType(given[0].whole), given[1].bytes, num_rows, given[3].whole, offset, given[6].real};
  const int32_t* const all_indices[] = {model.step.input_ids, model.step.positions, model.step.token_types};
  const int32_t* indices = all_indices[given[4].whole];
  if (!indices) throw std::logic_error("the step has no such indices");
  for (int64_t i = 0; i < num_tokens && Outside(given[7].whole) == Outside::error; ++i) {
    const int64_t row = indices[i] + offset;
    if (row >= 0 && row < num_rows) continue;
    throw std::out_of_range("embedding row " + std::to_string(row) + " of a table of " + std::to_string(num_rows));
  }
  embedding(model.pool, table, indices, tensors[0], num_tokens);
}

void run_linear(Model model, Tensors tensors, Given given, int64_t num_tokens) {
  const PackedMatrix* matrix = given[0].matrix;
  const Rows x = tensors[0], out = tensors[1];
  model.matmul_scratch.reserve((matrix->scratch_bytes(num_tokens) + 3) / 4);
  const Product product{matrix,          x.data,
                        x.stride,        num_tokens,
                        given[1].floats, out.data + given[2].whole,
                        out.stride,      model.matmul_scratch.data()};
  multiply(model.pool, {&product, 1});
}

void run_mixture(Model model, Tensors tensors, Given given, int64_t num_tokens) {
  given[0].mixture->run(model.pool, tensors[0], tensors[1], num_tokens, model.mixture_scratch);
}

void run_head_products(Model model, Tensors tensors, Given given, int64_t num_tokens) {
  given[0].heads->run(model.pool, tensors[0], tensors[1], num_tokens, model.matmul_scratch, model.head_products);
}

void add_up(Model model, Rows x, int64_t num_tokens) {
  if (!model.all_reduce) return;
  if (model.all_reduce(x.data, num_tokens * x.stride) != 0) throw std::runtime_error("an all-reduce failed");
}

void run_all_reduce(Model model, Tensors tensors, Given, int64_t num_tokens) { add_up(model, tensors[1], num_tokens); }

void run_norm_queries_keys(Model model, Tensors tensors, Given given, int64_t num_tokens) {
  const Rows x = tensors[1];
  const Runs runs{{given[0].floats, given[1].floats}, {given[2].whole, given[3].whole}};
  const int64_t num_ranks = given[5].whole;
  const float eps = static_cast<float>(given[4].real);
  if (num_ranks == 1) return norm_runs(model.pool, x, runs, eps, num_tokens);
  mean_squares(model.pool, x, runs, num_ranks, tensors[2], num_tokens);
  add_up(model, tensors[2], num_tokens);
  norm_by_means(model.pool, x, runs, tensors[2], eps, num_tokens);
}

// Tensors and arguments are in the order of the op's declaration, in octavo/kernels/ops.py.
constexpr NamedKernel kKernels[] = {
    {"embedding", run_embedding},
    {"all_reduce", run_all_reduce},
    {"add_adapters",
     [](Model m, Tensors t, Given g, int64_t n) {
       add_adapters(m.pool, *g[0].adapter, m.adapters, t[1], t[2], n, m.adapter_scratch);
     }},
    {"add_table_adapters",
     [](Model m, Tensors t, Given g, int64_t n) {
       add_table_adapters(m.pool, *g[0].adapter, m.adapters, m.step.input_ids, g[1].whole, t[1], n, m.adapter_scratch);
     }},
    {"rms_norm", [](Model m, Tensors t, Given g, int64_t n) { rms_norm(m.pool, t[0], g[0].floats, g[1].real, t[1], n); }},
    {"norm_queries_keys", run_norm_queries_keys},
    {"add_rms_norm",
     [](Model m, Tensors t, Given g, int64_t n) {
       add_rms_norm(m.pool, t[0], t[1], g[0].floats, g[1].real, t[2], t[3], n);
     }},
    {"layer_norm",
     [](Model m, Tensors t, Given g, int64_t n) {
       layer_norm(m.pool, t[0], g[0].floats, g[1].floats, g[2].real, t[1], n);
     }},
    {"rotary_kv_write",
     [](Model m, Tensors t, Given g, int64_t) { rotary_kv_write(m.pool, *g[0].layer, m.kv, m.step, t[0]); }},
    {"latent_values", run_head_products},  // the same is the first part of latent_kv_write
    {"latent_kv_write",
     [](Model m, Tensors t, Given g, int64_t) {
       latent_kv_write(m.pool, *g[0].layer, m.kv, m.step, t[0], t[1], t[2]);
     }},
    {"paged_attention",
     [](Model m, Tensors t, Given g, int64_t) {
       paged_attention(m.pool, *g[0].layer, m.kv, m.step, t[0], t[1], m.attention_scratch);
     }},
};

Kernel find_kernel(std::string_view op) {
  for (const std::span<const NamedKernel> kernels : {std::span<const NamedKernel>(kKernels), elementwise_kernels()}) {
    for (const NamedKernel& named : kernels) {
      if (named.op == op) return named.kernel;
    }
  }
  throw std::logic_error("no kernel for " + std::string(op));
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

void Program::append(std::string_view op, std::span<const Slot> slots, const Arguments& arguments) {
  if (slots.size() > kMaxTensors) throw std::logic_error(std::string(op) + " has too many tensors");
  instructions_.push_back({find_kernel(op), {slots.begin(), slots.end()}, arguments});
}

void Program::append_linear(std::unique_ptr<PackedMatrix> weight, const float* bias, Slot x, Slot out,
                            int64_t first_column) {
  const Arguments arguments{Argument{.matrix = weight.get()}, {.floats = bias}, {.whole = first_column}};
  instructions_.push_back({run_linear, {x, out}, arguments});
  weights_.push_back(std::move(weight));
}

Mixture& Program::new_mixture(const MixtureSpec& spec) {
  mixtures_.push_back(std::make_unique<Mixture>(spec));
  return *mixtures_.back();
}

void Program::append_mixture(const Mixture& mixture, Slot x, Slot out) {
  instructions_.push_back({run_mixture, {x, out}, Arguments{Argument{.mixture = &mixture}}});
}

HeadProducts& Program::append_head_products(int64_t x_step, int64_t out_step, Slot x, Slot out) {
  head_products_.push_back(std::make_unique<HeadProducts>(x_step, out_step));
  instructions_.push_back({run_head_products, {x, out}, Arguments{Argument{.heads = head_products_.back().get()}}});
  return *head_products_.back();
}

void Program::reserve(int64_t num_tokens) {
  for (size_t i = 0; i < buffers_.size(); ++i) {
    if (!bound_[i]) buffers_[i].reserve(num_tokens * widths_[i]);
  }
}

Rows Program::rows(Slot slot) const {
  float* base = bound_[slot.buffer] ? bound_[slot.buffer] : buffers_[slot.buffer].data();
  return {base, slot.width, slot.stride};
}

void Program::run(const Instruction& instruction, int64_t num_tokens) {
  Rows tensors[kMaxTensors];
  for (size_t i = 0; i < instruction.slots.size(); ++i) tensors[i] = rows(instruction.slots[i]);
  instruction.kernel(state_, tensors, instruction.arguments, num_tokens);
}

void Program::run(int64_t first, int64_t last, int64_t num_tokens) {
  if (!state_.measures) {
    for (int64_t i = first; i < last; ++i) run(instructions_[i], num_tokens);
    return;
  }
  double before = now();
  for (int64_t i = first; i < last; ++i) {
    run(instructions_[i], num_tokens);
    const double after = now();
    instructions_[i].seconds += after - before;
    instructions_[i].calls += 1;
    before = after;
  }
}

int64_t Program::packed_bytes() const {
  int64_t total = 0;
  for (const auto& weight : weights_) total += weight->packed_bytes();
  for (const auto& mixture : mixtures_) total += mixture->packed_bytes();
  for (const auto& heads : head_products_) total += heads->packed_bytes();
  return total;
}

int64_t Program::buffer_bytes() const {
  int64_t total = 0;
  for (const AlignedFloats& buffer : buffers_) total += buffer.bytes();
  return total;
}

void Program::reset_clock() {
  for (Instruction& instruction : instructions_) {
    instruction.seconds = 0;
    instruction.calls = 0;
  }
}

void Program::read_clock(double* seconds, int64_t* calls) const {
  for (const Instruction& instruction : instructions_) {
    *seconds++ = instruction.seconds;
    *calls++ = instruction.calls;
  }
}

}  // namespace octavo
