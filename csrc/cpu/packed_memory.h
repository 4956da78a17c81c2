// Memory for packed weights: large pages, filled in the order of packing.
//
//   chunk  | matrix | matrix | matrix | free ...       kChunkBytes, or one matrix if that is larger
//
// A decode step reads every weight once. On pages of 4 KiB it would spend a tenth of its time walking the page table,
// and one matrix alone is often too small to fill a large page. A chunk lives as long as any of its matrices. Pages
// that are never written take no memory.
#pragma once
#include <cstdint>
#include <memory>

namespace octavo {

// `size` zeroed bytes aligned to cache lines; they share ownership of their chunk. Safe to call from any thread.
std::shared_ptr<uint8_t> allocate_packed(int64_t size);

}  // namespace octavo
