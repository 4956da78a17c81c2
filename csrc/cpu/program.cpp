// The loop over a program's instructions.
#include "program.h"

#include <chrono>
#include <cstdlib>
#include <new>
#include <stdexcept>

#include "elementwise.h"
#include "norm.h"

namespace octavo {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void check_indices(const int32_t* indices, int64_t count, int64_t offset, int64_t num_rows) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = indices[i] + offset;
    if (row >= 0 && row < num_rows) continue;
    throw std::out_of_range("embedding row " + std::to_string(row) + " of a table of " + std::to_string(num_rows));
  }
}

}  // namespace

void AlignedFloats::Free::operator()(float* memory) const { std::free(memory); }

void AlignedFloats::reserve(int64_t count) {
  if (count <= capacity_) return;
  data_.reset();
  const size_t bytes = (size_t(count) * sizeof(float) + 63) / 64 * 64;
  data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
  if (!data_) throw std::bad_alloc();
  capacity_ = count;
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

void Program::run(int64_t num_tokens) {
  if (!state_.measures) {
    for (const Instruction& instruction : instructions_) instruction.run(num_tokens);
    return;
  }
  double before = now();
  for (const Instruction& instruction : instructions_) {
    instruction.run(num_tokens);
    const double after = now();
    state_.times.seconds[size_t(instruction.kind)] += after - before;
    state_.times.calls[size_t(instruction.kind)] += 1;
    before = after;
  }
}

int64_t Program::packed_bytes() const {
  int64_t total = 0;
  for (const auto& weight : weights_) total += weight->packed_bytes();
  return total;
}

void Program::embedding(const EmbeddingTable& table, int64_t num_rows, Index index, Slot out) {
  append(OpKind::embedding, [=, this](int64_t n) {
    const int32_t* indices = index == Index::input_ids ? state_.step.input_ids : state_.step.positions;
    check_indices(indices, n, table.offset, num_rows);
    octavo::embedding(state_.pool, table, indices, rows(out), n);
  });
}

void Program::linear(std::unique_ptr<PackedMatrix> weight, const float* bias, Slot x, Slot out,
                     int64_t first_column) {
  const PackedMatrix* matrix = weight.get();
  weights_.push_back(std::move(weight));
  append(OpKind::linear, [=, this](int64_t n) {
    state_.matmul_scratch.reserve((matrix->scratch_bytes(n) + 3) / 4);
    const Rows source = rows(x), target = rows(out);
    matrix->multiply(state_.pool, source.data, source.stride, n, bias, target.data + first_column, target.stride,
                     state_.matmul_scratch.data());
  });
}

void Program::rms_norm(Slot x, const float* weight, float eps, Slot out) {
  append(OpKind::rms_norm,
         [=, this](int64_t n) { octavo::rms_norm(state_.pool, rows(x), weight, eps, rows(out), n); });
}

void Program::add_rms_norm(Slot x, Slot residual, const float* weight, float eps, Slot out, Slot sum) {
  append(OpKind::add_rms_norm, [=, this](int64_t n) {
    octavo::add_rms_norm(state_.pool, rows(x), rows(residual), weight, eps, rows(out), rows(sum), n);
  });
}

void Program::layer_norm(Slot x, const float* weight, const float* bias, float eps, Slot out) {
  append(OpKind::layer_norm,
         [=, this](int64_t n) { octavo::layer_norm(state_.pool, rows(x), weight, bias, eps, rows(out), n); });
}

void Program::add(Slot x, Slot y, Slot out) {
  append(OpKind::add, [=, this](int64_t n) { octavo::add(state_.pool, rows(x), rows(y), rows(out), n); });
}

void Program::activation(Activation kind, Slot x, Slot out) {
  append(OpKind::activation,
         [=, this](int64_t n) { octavo::activation(state_.pool, kind, rows(x), rows(out), n); });
}

void Program::gated_activation(Activation kind, Slot gate_up, Slot out) {
  append(OpKind::gated_activation,
         [=, this](int64_t n) { octavo::gated_activation(state_.pool, kind, rows(gate_up), rows(out), n); });
}

void Program::rotary_kv_write(const RotarySpec& spec, Slot qkv) {
  append(OpKind::rotary_kv_write,
         [=, this](int64_t) { octavo::rotary_kv_write(state_.pool, spec, state_.kv, state_.step, rows(qkv)); });
}

void Program::paged_attention(const AttentionSpec& spec, Slot q, Slot out) {
  append(OpKind::paged_attention, [=, this](int64_t) {
    octavo::paged_attention(state_.pool, spec, state_.kv, state_.step, rows(q), rows(out), state_.attention_scratch);
  });
}

void Program::softcap(float cap, Slot x, Slot out) {
  append(OpKind::softcap, [=, this](int64_t n) { octavo::softcap(state_.pool, rows(x), cap, rows(out), n); });
}

}  // namespace octavo
