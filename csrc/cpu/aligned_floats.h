// Scratch memory: floats, aligned to a cache line.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace octavo {

// Growing discards the contents.
class AlignedFloats {
 public:
  float* data() const { return data_.get(); }
  int64_t bytes() const { return capacity_ * int64_t(sizeof(float)); }

  void reserve(int64_t count) {
    if (count <= capacity_) return;
    data_.reset();
    const size_t bytes = (size_t(count) * sizeof(float) + 63) / 64 * 64;
    data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    if (!data_) throw std::bad_alloc();
    capacity_ = count;
  }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t capacity_ = 0;
};

}  // namespace octavo
