// Adds up all ranks' x over peer memory, for messages so small that latency is their cost.
//
//   octavo_all_reduce         out = sum of all ranks' x
//   octavo_all_reduce_norm    residual += sum of all ranks' x; out = rms_norm(residual)
//
// A thread block takes one row of packets after another, and each thread the same columns of all of them. All thread
// blocks must be resident at once, since they wait for packets from those of other ranks; the host launches no more than
// that.

#include "all_reduce.cuh"

#ifndef PER_THREAD
#define PER_THREAD 1
#endif

namespace octavo {
namespace {

constexpr int kPerThread = PER_THREAD;  // packets of a row

// The numbers of the thread's packets: `row_packets` apart from row to row
template <typename Do>
__device__ __forceinline__ void for_each_packet(const Reduction& given, Do&& act) {
  for (int64_t row = int64_t(blockIdx.x) * given.row_packets; row < given.num_packets;
       row += int64_t(gridDim.x) * given.row_packets) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int column = threadIdx.x + i * blockDim.x;
      if (column < given.row_packets && row + column < given.num_packets) act(row + column);
    }
  }
}

// The last thread block that knows this kernel's number gives the next kernel another one.
__device__ __forceinline__ void count_call(Calls* calls, uint32_t call) {
  __syncthreads();  // all threads know it
  if (threadIdx.x == 0 && atomicAdd(&calls->arrived, 1) == gridDim.x - 1) *calls = {call + 1, 0};
}

__device__ __forceinline__ void exchange_up_to_sums(const Reduction& given, const Exchange& exchange, uint32_t call) {
  for_each_packet(given, [&](int64_t packet) { exchange.give(packet); });
  count_call(given.calls, call);
  if (given.splits) for_each_packet(given, [&](int64_t packet) { exchange.tell(packet); });
}

// Over the thread block
__device__ __forceinline__ float add_up(float x) {
  __shared__ float sums[32];
#pragma unroll
  for (int step = 16; step; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  __syncthreads();  // the row before has read its sums
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0;
  for (int i = 0; i < blockDim.x / 32; ++i) total += sums[i];
  return total;
}

}  // namespace
}  // namespace octavo

extern "C" __global__ void __launch_bounds__(512) octavo_all_reduce(const __grid_constant__ octavo::Reduction given) {
  using namespace octavo;
  wait_for_previous();
  allow_next();
  const uint32_t call = given.calls->begun;
  const Exchange exchange(given, call);
  exchange_up_to_sums(given, exchange, call);
  for_each_packet(given, [&](int64_t packet) { static_cast<Packet*>(given.out)[packet] = exchange.take(packet); });
}

extern "C" __global__ void __launch_bounds__(512)
    octavo_all_reduce_norm(const __grid_constant__ octavo::Reduction given) {
  using namespace octavo;
  Numbers weight[kPerThread] = {};
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int column = threadIdx.x + i * blockDim.x;
    if (column < given.row_packets) weight[i] = numbers_at(given.weight + column * kElements);
  }
  wait_for_previous();
  allow_next();
  const uint32_t call = given.calls->begun;
  const Exchange exchange(given, call);
  exchange_up_to_sums(given, exchange, call);
  for (int64_t row = int64_t(blockIdx.x) * given.row_packets; row < given.num_packets;
       row += int64_t(gridDim.x) * given.row_packets) {
    Numbers x[kPerThread] = {};
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int column = threadIdx.x + i * blockDim.x;
      if (column < given.row_packets) x[i] = add_residual(given, row + column, exchange.take(row + column), squares);
    }
    const float scale = rsqrtf(add_up(squares) / float(given.row_packets * kElements) + given.eps);
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int column = threadIdx.x + i * blockDim.x;
      if (column < given.row_packets) store_normed(given, row + column, x[i], weight[i], scale);
    }
  }
}
