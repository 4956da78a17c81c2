// On the CPU: what csrc/cuda/cluster.cuh gives a kernel, for clusters of 8 blocks that run at once.
#pragma once

#include "exchange.cuh"

#define OCTAVO_CLUSTERS(num_blocks)

namespace octavo {

constexpr int kBlocksOfCluster = 8, kAddressBits = 18;

std::map<int, Meeting> clusters;
std::map<std::pair<int, int>, size_t> arrivals;  // by block and thread: the phase that it waits for
inline void cluster_arrive() {
  Meeting& meeting = clusters[blockIdx.x / kBlocksOfCluster];
  arrivals[{blockIdx.x, threadIdx.x}] = meeting.number;
  if (++meeting.num_here == kBlocksOfCluster * threads.size()) meeting.num_here = 0, ++meeting.number, ++progress;
}
inline void cluster_wait() {
  const Meeting& meeting = clusters[blockIdx.x / kBlocksOfCluster];
  while (meeting.number == arrivals[{blockIdx.x, threadIdx.x}]) wait_a_turn();
}

inline uint32_t address_in(uint32_t at, int block) { return at | (block + 1) << kAddressBits; }

// Comes when a thread of the other block waits for its barrier
template <typename T>
void store_there(uint32_t to, T x, uint32_t barrier) {
  const int block = blockIdx.x / kBlocksOfCluster * kBlocksOfCluster + (barrier >> kAddressBits) - 1;
  const uint32_t mask = (1 << kAddressBits) - 1, at = to & mask;
  if (to >> kAddressBits != barrier >> kAddressBits || at % sizeof x) fprintf(stderr, "a store to %u\n", to), abort();
  auto& there = block == blockIdx.x ? barriers : (*residents)[block].own_barriers;
  there.at(barrier & mask).copies.push_back([=] { return memcpy(memory + at, &x, sizeof x), int(sizeof x); });
  ++progress;
}

}  // namespace octavo
