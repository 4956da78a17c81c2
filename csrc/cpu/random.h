// Counter-based random numbers, bit for bit those of octavo/kernels/reference/random.py.
//
// Philox4x32-10 is from Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
#pragma once
#include <cstdint>

namespace octavo {

struct PhiloxWords {
  uint32_t word[4];
};

inline PhiloxWords philox4x32(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  auto [c0, c1, c2, c3] = counter.word;
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = uint64_t{0xD2511F53} * c0;
    const uint64_t right = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(right >> 32) ^ c1 ^ key0;
    c2 = static_cast<uint32_t>(left >> 32) ^ c3 ^ key1;
    c1 = static_cast<uint32_t>(right);
    c3 = static_cast<uint32_t>(left);
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return {{c0, c1, c2, c3}};
}

// In [0, 1), a multiple of 2^-53.
inline double uniform(uint64_t seed, int32_t sample_index, int32_t position) {
  const PhiloxWords counter{{static_cast<uint32_t>(position), static_cast<uint32_t>(sample_index), 0, 0}};
  const PhiloxWords words = philox4x32(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const uint64_t mantissa = (uint64_t{words.word[0] >> 5} << 26) | (words.word[1] >> 6);
  return static_cast<double>(mantissa) * 0x1p-53;
}

}  // namespace octavo
