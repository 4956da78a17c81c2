// On the CPU: what csrc/cuda/exchange.cuh gives a kernel, and blocks that run at once, by turns.
#pragma once

#include "fp8_products.cuh"

namespace octavo {

struct Word {
  uint32_t value, number;
};
struct Words {
  Word first, second;
};

inline void post(uint64_t* to, uint32_t value, uint32_t number) { *to = uint64_t(number) << 32 | value, ++progress; }

inline Word look(const uint64_t* from) {
  wait_a_turn();
  return {uint32_t(*from), uint32_t(*from >> 32)};
}

inline Words look_at_two(const uint64_t* from) {
  if (uintptr_t(from) % 16) fprintf(stderr, "two words at %p\n", from), abort();
  const Word first = look(from);
  return {first, look(from + 1)};
}

inline void written_for_copies() {}
inline void tell_written(uint32_t* to, uint32_t number) { *to = number, ++progress; }

inline void wait_until_written(const uint32_t* from, uint32_t number) {
  while (*from != number) wait_a_turn();
}

constexpr uint32_t kLaunch = 256;
inline uint32_t number_of_launch(const uint32_t* count) { return *count / kLaunch + 1; }
inline void count_block(uint32_t* count) { *count += blockIdx.x == 0 ? kLaunch - (gridDim.x - 1) : 1; }

}  // namespace octavo

// What is a block's own while another runs
struct Resident {
  std::vector<uint8_t> held = std::vector<uint8_t>(sizeof memory, 0xff);
  std::vector<Thread> own_threads;
  decltype(warps) own_warps;
  Meeting own_block;
  decltype(octavo::copies) own_copies;
  decltype(octavo::barriers) own_barriers;
  decltype(octavo::named) own_named;
  decltype(octavo::products) own_products;
  decltype(octavo::groups) own_groups;

  void change_places() {
    std::swap_ranges(held.begin(), held.end(), memory);
    std::swap(own_threads, threads), std::swap(own_warps, warps), std::swap(own_block, block);
    std::swap(own_copies, octavo::copies), std::swap(own_barriers, octavo::barriers);
    std::swap(own_named, octavo::named), std::swap(own_products, octavo::products);
    std::swap(own_groups, octavo::groups);
  }
};

std::vector<Resident>* residents;  // all blocks

// Some turns of the block that is in its place; fewer if nobody goes on
inline void run_some_turns(std::minstd_rand& random) {
  for (int num_idle = 0, left = 2000; left > 0 && num_idle < 30 && !all_have_ended(); --left) {
    const int warp = random() % (threads.size() / 32);
    const long before = progress;
    for (threadIdx.x = warp * 32; threadIdx.x < warp * 32 + 32; ++threadIdx.x) {
      if (!threads[threadIdx.x].has_ended) swapcontext(&scheduler, &threads[threadIdx.x].context);
    }
    num_idle = progress == before ? num_idle + 1 : 0;
  }
}

// As `run_blocks`, but of blocks that wait for each other
inline bool run_blocks_at_once(int num_blocks, int num_threads, std::function<void()> kernel) {
  body = std::move(kernel);
  gridDim.x = num_blocks;
  std::vector<Resident> all(num_blocks);
  residents = &all;
  for (Resident& one : all) {
    one.own_threads = std::vector<Thread>(num_threads);
    for (Thread& thread : one.own_threads) {
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.data();
      thread.context.uc_stack.ss_size = thread.stack.size();
      makecontext(&thread.context, begin_thread, 0);
    }
  }
  std::minstd_rand random(1);
  for (int num_idle = 0; num_idle < 1000;) {
    const long before = progress;
    bool have_ended = true;
    for (blockIdx.x = 0; blockIdx.x < num_blocks; ++blockIdx.x) {
      all[blockIdx.x].change_places();
      run_some_turns(random);
      have_ended = have_ended && all_have_ended();
      all[blockIdx.x].change_places();
    }
    if (have_ended) return true;
    num_idle = progress == before ? num_idle + 1 : 0;
  }
  return false;
}
