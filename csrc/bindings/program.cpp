// The C interface of compiled models, called from octavo/kernels/cpu/ through ctypes.
//
// Functions that can fail return 0, or an ErrorCode with its text in octavo_last_error(): no exception
// crosses into Python. Pointers to weights are borrowed; the caller keeps them alive.
#include "cpu/program.h"

#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "cpu/convert.h"
#include "cpu/logprobs.h"
#include "octavo/thread_pool.h"

using namespace octavo;

namespace {

enum ErrorCode : int { kOk = 0, kOutOfMemory = 1, kUnsupported = 2, kFault = 3 };

thread_local std::string last_error;

template <class Body>
int guarded(const Body& body) {
  try {
    body();
    return kOk;
  } catch (const std::bad_alloc&) {
    last_error = "out of memory";
    return kOutOfMemory;
  } catch (const std::domain_error& error) {
    last_error = error.what();
    return kUnsupported;
  } catch (const std::exception& error) {
    last_error = error.what();
    return kFault;
  }
}

struct CompiledModel {
  ModelState state;
  std::unique_ptr<Program> forward, head;
  std::vector<int32_t> token_seqs, head_adapters;
  std::vector<Slot> hidden, head_inputs;  // outputs of the forward program, and the inputs they become of the head
  Slot head_output{}, taken{};  // taken: by the forward program, from the stage before

  CompiledModel(ThreadPool& pool, const KVPool& kv) : state(pool, kv) {}

  void bind_step(const StepView& step) {
    token_seqs.resize(step.num_tokens);
    for (int64_t seq = 0; seq < step.num_seqs; ++seq) {
      for (int32_t t = step.query_start_loc[seq]; t < step.query_start_loc[seq + 1]; ++t) token_seqs[t] = int32_t(seq);
    }
    state.step = step;
    state.step.token_seqs = token_seqs.data();
    state.adapters = step.adapters;
  }

  // Every token of the step must have a block of the pool to be written to.
  void check_blocks() const {
    const StepView& step = state.step;
    for (int64_t group = 0; group < step.num_groups; ++group) {
      for (int64_t t = 0; t < step.num_tokens; ++t) {
        const int64_t place = step.positions[t] / state.kv.block_size;
        const bool is_in_table = step.positions[t] >= 0 && place < step.table_strides[group];
        const int32_t block = is_in_table ? step.block_table(group, step.token_seqs[t])[place] : -1;
        if (block > 0 && block < state.kv.num_blocks) continue;
        throw std::out_of_range("position " + std::to_string(step.positions[t]) + " of row " +
                                std::to_string(step.rows[step.token_seqs[t]]) + " is to be written to block " +
                                std::to_string(block) + " of 1.." + std::to_string(state.kv.num_blocks - 1));
      }
    }
  }

  // Everything before the instructions.
  void begin_forward(const StepView& step) {
    bind_step(step);
    check_blocks();
    forward->reserve(step.num_tokens);
    if (!step.hidden_states) return;
    const Rows target = forward->rows(taken);
    for (int64_t t = 0; t < step.num_tokens; ++t) {
      std::memcpy(target[t], step.hidden_states + t * target.width, size_t(target.width) * sizeof(float));
    }
  }

  void begin_head(const int32_t* token_indices, int64_t count, float* out) {
    for (int64_t i = 0; i < count; ++i) {
      if (token_indices[i] >= 0 && token_indices[i] < state.step.num_tokens) continue;
      throw std::out_of_range("logits of token " + std::to_string(token_indices[i]) + " of a step of " +
                              std::to_string(state.step.num_tokens));
    }
    head_adapters.resize(state.step.adapters ? size_t(count) : 0);
    for (size_t i = 0; i < head_adapters.size(); ++i) head_adapters[i] = state.step.adapters[token_indices[i]];
    state.adapters = state.step.adapters ? head_adapters.data() : nullptr;
    head->bind(head_output.buffer, out);
    head->reserve(count);
    for (size_t each = 0; each < hidden.size(); ++each) {
      const Rows source = forward->rows(hidden[each]), target = head->rows(head_inputs[each]);
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(target[i], source[token_indices[i]], size_t(source.width) * sizeof(float));
      }
    }
  }
};

}  // namespace

extern "C" {

const char* octavo_last_error() { return last_error.c_str(); }

// Null if the threads could not be started.
ThreadPool* octavo_pool_new(int num_threads) {
  ThreadPool* pool = nullptr;
  guarded([&] { pool = new ThreadPool(num_threads); });
  return pool;
}
void octavo_pool_free(ThreadPool* pool) { delete pool; }

CompiledModel* octavo_model_new(ThreadPool* pool, const KVPool* kv) { return new CompiledModel(*pool, *kv); }
// Gives a model its KV pool, which every step needs.
void octavo_model_bind(CompiledModel* model, uint8_t* pool, int64_t num_blocks) {
  model->state.kv.data = pool;
  model->state.kv.num_blocks = num_blocks;
}
// Above 0: steps set the scales of KV blocks, so that the largest number of a head becomes this code. 0: they use them.
void octavo_model_calibrate(CompiledModel* model, float calibrated_max) {
  model->state.kv.calibrated_max = calibrated_max;
}
// Gives a model what adds up its ranks' results.
void octavo_model_join_ranks(CompiledModel* model, AllReduce all_reduce) { model->state.all_reduce = all_reduce; }
void octavo_model_free(CompiledModel* model) { delete model; }

Program* octavo_model_forward_program(CompiledModel* model, const int32_t* widths, int64_t num_buffers) {
  model->forward = std::make_unique<Program>(model->state, widths, num_buffers);
  return model->forward.get();
}

Program* octavo_model_head_program(CompiledModel* model, const int32_t* widths, int64_t num_buffers) {
  model->head = std::make_unique<Program>(model->state, widths, num_buffers);
  return model->head.get();
}

void octavo_model_join(
    CompiledModel* model, const Slot* hidden, const Slot* head_inputs, int64_t count, Slot head_output) {
  model->hidden.assign(hidden, hidden + count);
  model->head_inputs.assign(head_inputs, head_inputs + count);
  model->head_output = head_output;
}

// Gives a model the place of the hidden states that it takes from the stage before.
void octavo_model_take_hidden(CompiledModel* model, Slot taken) { model->taken = taken; }

int octavo_model_forward(CompiledModel* model, const StepView* step) {
  return guarded([&] {
    ThreadPool::Session session(model->state.pool);
    model->begin_forward(*step);
    model->forward->run(0, model->forward->size(), step->num_tokens);
  });
}

int octavo_model_logits(CompiledModel* model, const int32_t* token_indices, int64_t count, float* out) {
  return guarded([&] {
    ThreadPool::Session session(model->state.pool);
    model->begin_head(token_indices, count, out);
    model->head->run(0, model->head->size(), count);
  });
}

// The same, but the caller runs the instructions.
int octavo_model_begin_forward(CompiledModel* model, const StepView* step) {
  return guarded([&] { model->begin_forward(*step); });
}

int octavo_model_begin_logits(CompiledModel* model, const int32_t* token_indices, int64_t count, float* out) {
  return guarded([&] { model->begin_head(token_indices, count, out); });
}

int octavo_program_run(Program* program, int64_t first, int64_t last, int64_t num_tokens) {
  return guarded([&] { program->run(first, last, num_tokens); });
}

float* octavo_program_data(const Program* program, Slot slot) { return program->rows(slot).data; }

void octavo_model_copy_blocks(CompiledModel* model, const int32_t* source, const int32_t* target, int64_t count) {
  const KVPool& kv = model->state.kv;
  const int64_t bytes = kv.block_bytes;
  for (int64_t i = 0; i < count; ++i) std::memcpy(kv.data + target[i] * bytes, kv.data + source[i] * bytes, bytes);
}

// Bytes of the buffers of activations, and of the scratch memory of products and attention. They grow with the steps.
void octavo_model_step_bytes(const CompiledModel* model, int64_t* buffers, int64_t* scratch) {
  *buffers = model->forward->buffer_bytes() + model->head->buffer_bytes();
  *scratch = model->state.matmul_scratch.bytes() + model->state.attention_scratch.bytes() +
             model->state.mixture_scratch.bytes() + model->state.adapter_scratch.bytes();
}

// What packing a matrix would take, and its scratch memory for `num_tokens` tokens. 0: there is no kernel for the dtype.
int octavo_matrix_sizes(int32_t dtype, int64_t rows, int64_t cols, int activation_bytes, int64_t num_tokens,
                        int64_t* packed, int64_t* scratch) {
  ThreadPool pool(1);
  const auto matrix = octavo::pack(pool, static_cast<DType>(dtype), nullptr, rows, cols, activation_bytes);
  if (!matrix) return 0;
  *packed = matrix->packed_bytes();
  *scratch = matrix->scratch_bytes(num_tokens);
  return 1;
}

int64_t octavo_model_packed_bytes(const CompiledModel* model) {
  return model->forward->packed_bytes() + model->head->packed_bytes();
}

// Starts measuring from zero, or stops.
void octavo_model_measure(CompiledModel* model, int measures) {
  model->state.measures = measures != 0;
  if (!measures) return;
  model->forward->reset_clock();
  model->head->reset_clock();
}

// One entry per instruction.
void octavo_program_times(const Program* program, double* seconds, int64_t* calls) {
  program->read_clock(seconds, calls);
}

int octavo_top_logprobs(ThreadPool* pool, const float* logits, int64_t num_rows, int64_t vocab_size,
                        const int32_t* tokens, int64_t k, int32_t as_logits, int32_t* ids, float* logprobs,
                        int32_t* ranks) {
  return guarded([&] {
    ThreadPool::Session session(*pool);
    top_logprobs(*pool, logits, num_rows, vocab_size, tokens, k, as_logits != 0, ids, logprobs, ranks);
  });
}

int octavo_convert(ThreadPool* pool, DType source, const uint8_t* data, int64_t row_bytes, int64_t rows, int64_t cols,
                   DType target, uint8_t* out) {
  return guarded([&] { convert_rows(*pool, source, data, row_bytes, rows, cols, target, out); });
}

// Appends an instruction. Tensors and arguments are in the order of the op's declaration.
int octavo_program_append(Program* program, const char* op, const Slot* slots, int64_t num_slots,
                          const Arguments* arguments) {
  return guarded([&] { program->append(op, {slots, size_t(num_slots)}, *arguments); });
}

int octavo_program_append_linear(Program* program, ThreadPool* pool, DType dtype, const uint8_t* data, int64_t rows,
                                 int64_t cols, int32_t activation_bytes, const float* bias, Slot x, Slot out,
                                 int64_t first_column) {
  return guarded([&] {
    std::unique_ptr<PackedMatrix> weight = pack(*pool, dtype, data, rows, cols, activation_bytes);
    if (!weight) throw std::domain_error("no matrix multiplication for this tensor type");
    program->append_linear(std::move(weight), bias, x, out, first_column);
  });
}

// Appends the product of each head's columns with its own matrix. data: num_heads matrices of rows x cols, in order.
int octavo_program_append_head_products(Program* program, ThreadPool* pool, DType dtype, const uint8_t* data,
                                        int64_t num_heads, int64_t rows, int64_t cols, int64_t head_bytes,
                                        int64_t x_step, int64_t out_step, Slot x, Slot out) {
  return guarded([&] {
    octavo::HeadProducts& heads = program->append_head_products(x_step, out_step, x, out);
    for (int64_t h = 0; h < num_heads; ++h) {
      std::unique_ptr<PackedMatrix> weight = pack(*pool, dtype, data + h * head_bytes, rows, cols, 1);
      if (!weight) throw std::domain_error("no matrix multiplication for this tensor type");
      heads.add(std::move(weight));
    }
  });
}

// Null if it fails. The program owns the mixture and copies the spec, except for the arrays that it names.
Mixture* octavo_program_new_mixture(Program* program, const MixtureSpec* spec) {
  Mixture* made = nullptr;
  guarded([&] { made = &program->new_mixture(*spec); });
  return made;
}

// Adds rows to one of a mixture's products: see MixtureProduct. Each product's outputs come in order.
int octavo_mixture_pack(Mixture* mixture, ThreadPool* pool, int32_t product, int64_t expert, DType dtype,
                        const uint8_t* data, int64_t rows, int64_t cols, int32_t activation_bytes, const float* bias) {
  return guarded([&] {
    std::unique_ptr<PackedMatrix> weight = pack(*pool, dtype, data, rows, cols, activation_bytes);
    if (!weight) throw std::domain_error("no matrix multiplication for this tensor type");
    mixture->add(octavo::MixtureProduct(product), expert, std::move(weight), bias);
  });
}

// The bytes of a matrix of one of the two products of experts; null: the product has fewer.
uint8_t* octavo_mixture_weight(const Mixture* mixture, int32_t product, int64_t expert, int64_t part, int64_t* bytes) {
  const octavo::PackedMatrix* matrix = mixture->matrix(octavo::MixtureProduct(product), expert, part);
  if (!matrix) return nullptr;
  *bytes = matrix->packed_bytes();
  return matrix->packed_data();
}

int octavo_program_append_mixture(Program* program, const Mixture* mixture, Slot x, Slot out) {
  return guarded([&] { program->append_mixture(*mixture, x, out); });
}

// Bytes of a mixture's scratch memory beside that of its products' tiles, for `num_tokens` tokens.
int64_t octavo_mixture_row_bytes(const MixtureSpec* spec, int64_t num_tokens) {
  return octavo::mixture_row_bytes(*spec, num_tokens);
}

}  // extern "C"
