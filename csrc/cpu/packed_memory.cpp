// Memory for packed weights, on large pages if the system provides them.
#include "packed_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <new>

namespace octavo {
namespace {

constexpr int64_t kLargePage = 2 << 20;
constexpr int64_t kChunkBytes = 64 << 20;
constexpr int64_t kAlignment = 64;

int64_t round_up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// A mapping of `size` bytes that starts on a large page.
std::shared_ptr<uint8_t> map_chunk(int64_t size) {
  const auto mapped = static_cast<size_t>(size + kLargePage);
  void* base = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) throw std::bad_alloc();
  auto* start = reinterpret_cast<uint8_t*>(round_up_to(reinterpret_cast<int64_t>(base), kLargePage));
#if defined(MADV_HUGEPAGE)
  madvise(start, static_cast<size_t>(size), MADV_HUGEPAGE);  // if refused, only speed is lost
#endif
  return std::shared_ptr<uint8_t>(start, [base, mapped](uint8_t*) { munmap(base, mapped); });
}

}  // namespace

std::shared_ptr<uint8_t> allocate_packed(int64_t size) {
  static std::mutex mutex;
  static std::weak_ptr<uint8_t> last_chunk;
  static int64_t used = 0;

  size = round_up_to(std::max<int64_t>(size, 1), kAlignment);
  std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<uint8_t> chunk = last_chunk.lock();
  if (size >= kChunkBytes) return map_chunk(round_up_to(size, kLargePage));
  if (!chunk || used + size > kChunkBytes) {
    chunk = map_chunk(kChunkBytes);
    last_chunk = chunk;
    used = 0;
  }
  uint8_t* start = chunk.get() + used;
  used += size;
  return std::shared_ptr<uint8_t>(std::move(chunk), start);
}

}  // namespace octavo
