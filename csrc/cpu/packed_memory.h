// Memory for packed weights: large pages, filled in the order of packing.
//
//   chunk  | matrix | matrix | matrix | free ...       kChunkBytes, or one matrix if that is larger
//
// A decode step reads every weight once, so on pages of 4 KiB it would spend a tenth of its time on walks of
// the page table; one matrix by itself is often too small to fill a large page. A chunk lives as long as
// any of its matrices. What is never written takes no memory.
#pragma once
#include <cstdint>
#include <memory>

namespace octavo {

// `size` zeroed bytes aligned to cache lines; they share ownership of their chunk. Safe to call from any thread.
std::shared_ptr<uint8_t> allocate_packed(int64_t size);

}  // namespace octavo
