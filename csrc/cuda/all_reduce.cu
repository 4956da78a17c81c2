// Adds up all ranks' x over peer memory.
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
#ifndef RESIDENT
#define RESIDENT 1
#endif

namespace octavo {
namespace {

constexpr int kPerThread = PER_THREAD;  // packets of a row
constexpr int kResident = RESIDENT;     // thread blocks of a multiprocessor

// The numbers of the thread's packets of a row that begins with packet `row`
template <typename Do>
__device__ __forceinline__ void for_each_packet(const Reduction& given, int64_t row, Do&& act) {
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int column = threadIdx.x + i * blockDim.x;
    if (column < given.row_packets && row + column < given.num_packets) act(i, row + column);
  }
}

// The last thread block that knows this kernel's number gives the next kernel another one.
__device__ __forceinline__ void count_call(Calls* calls, uint32_t call) {
  __syncthreads();  // all threads know it
  if (threadIdx.x == 0 && atomicAdd(&calls->arrived, 1) == gridDim.x - 1) *calls = {call + 1, 0};
}

// take(exchange, row), of each of the thread block's rows
template <typename Take>
__device__ __forceinline__ void exchange_rows(const Reduction& given, Take&& take) {
  const uint32_t call = given.calls->begun;
  const Exchange exchange(given, call);
  const Rows rows{int64_t(blockIdx.x) * given.row_packets, int64_t(gridDim.x) * given.row_packets, given.num_packets};
  in_turns(
      rows, given.splits,
      [&](int64_t row) { for_each_packet(given, row, [&](int, int64_t packet) { exchange.give(packet); }); },
      [&] { count_call(given.calls, call); },
      [&](int64_t row) { for_each_packet(given, row, [&](int, int64_t packet) { exchange.tell(packet); }); },
      [&](int64_t row) { take(exchange, row); });
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

extern "C" __global__ void __launch_bounds__(512, octavo::kResident)
    octavo_all_reduce(const __grid_constant__ octavo::Reduction given) {
  using namespace octavo;
  wait_for_previous();
  allow_next();
  exchange_rows(given, [&](const Exchange& exchange, int64_t row) {
    for_each_packet(given, row, [&](int, int64_t packet) {
      static_cast<Packet*>(given.out)[packet] = exchange.take(packet);
    });
  });
}

extern "C" __global__ void __launch_bounds__(512, octavo::kResident)
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
  exchange_rows(given, [&](const Exchange& exchange, int64_t row) {
    Numbers x[kPerThread] = {};
    float squares = 0;
    for_each_packet(given, row, [&](int i, int64_t packet) {
      x[i] = add_residual(given, packet, exchange.take(packet), squares);
    });
    const float scale = rsqrtf(add_up(squares) / float(given.row_packets * kElements) + given.eps);
    for_each_packet(given, row, [&](int i, int64_t packet) { store_normed(given, packet, x[i], weight[i], scale); });
  });
}
