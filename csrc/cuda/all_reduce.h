// What a launch of all_reduce.cu is given, and how ranks' memory is laid out.
//
// The host has the same struct (octavo/kernels/cuda_cpp/all_reduce.py).
#pragma once

#include <stdint.h>

namespace octavo {

#ifndef RANKS
#define RANKS 2
#endif

constexpr int kRanks = RANKS;

using Packet = uint4;  // what travels between ranks: 4 or 8 elements

// A word that no packet on its way has: empty slots hold it. As an element, or as two, it is NaN; a packet that has it
// is sent with another NaN.
constexpr uint32_t kEmpty = 0xFFFFFFFFu, kOtherNan = 0x7FFF7FFFu;

struct Calls {
  uint32_t begun;    // by earlier kernels
  uint32_t arrived;  // thread blocks of this kernel that know `begun`
};

struct Reduction {
  Packet* slots[kRanks];  // each rank's memory, where this process sees it: [2][kRanks senders][capacity]
  Calls* calls;           // this rank's own
  const void* x;          // [num_packets], this rank's summand
  void* out;              // the sum, or its norm; may be x
  void* residual;         // with a norm: the sum is added here
  const float* weight;
  int64_t capacity, num_packets;
  int row_packets, rank;
  int splits;  // each packet is added up by one rank, which tells the others
  float eps;
};

}  // namespace octavo
