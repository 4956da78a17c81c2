// Ranks as threads add up random messages by the GPU's own source, many calls one after another, as fast as each can.
#include <cstdint>

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct float4 {
  float x, y, z, w;
};

#include "all_reduce.cuh"  // the test puts it beside this file, so that it finds the ptx.cuh here

#include <cmath>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace octavo {

constexpr int64_t kCapacity = 96;
constexpr uint32_t kAllOnes = 0xFFFFFFFFu;

// What every rank has in a call; all can compute it
struct Message {
  int64_t num_packets;
  bool splits;
  std::vector<uint32_t> words[kRanks];
};

Message message(int seed, int call) {
  std::mt19937 random(seed * 100003 + call);
  Message made{1 + int64_t(random() % kCapacity), random() % 2 == 0, {}};
  std::normal_distribution<float> normal;
  for (auto& words : made.words) {
    for (int64_t i = 0; i < 4 * made.num_packets; ++i) words.push_back(pack<Element>(normal(random), normal(random)));
  }
  if (random() % 4 == 0) made.words[random() % kRanks][random() % (4 * made.num_packets)] = kAllOnes;
  return made;
}

std::string compare(const Message& message, const std::vector<uint4>& out) {
  for (int64_t packet = 0; packet < message.num_packets; ++packet) {
    Numbers total{};
    for (int rank = 0; rank < kRanks; ++rank) {
      const uint32_t* words = &message.words[rank][4 * packet];
      const Numbers part = unpack({words[0], words[1], words[2], words[3]});
      for (int e = 0; e < kElements; ++e) total.x[e] = rank == 0 ? part.x[e] : total.x[e] + part.x[e];
    }
    const Numbers expected = unpack(packed(total)), got = unpack(out[packet]);
    for (int e = 0; e < kElements; ++e) {
      const bool both_nan = std::isnan(expected.x[e]) && std::isnan(got.x[e]);
      if (!both_nan && std::memcmp(&expected.x[e], &got.x[e], 4) != 0) return "a wrong sum";
    }
  }
  return "";
}

void run(int rank, int seed, int num_calls, uint4* const* slots, std::string& failure) {
  std::mt19937 random(rank);
  for (int call = 0; call < num_calls; ++call) {
    const Message given = message(seed, call);
    std::vector<uint4> x(given.num_packets);
    std::memcpy(x.data(), given.words[rank].data(), 16 * x.size());
    Reduction reduction{};
    std::copy(slots, slots + kRanks, reduction.slots);
    reduction.x = reduction.out = x.data();
    reduction.capacity = kCapacity;
    reduction.num_packets = given.num_packets;
    reduction.rank = rank;
    reduction.splits = given.splits;
    const Exchange exchange(reduction, call);
    if (random() % 8 == 0) std::this_thread::yield();
    // split, blocks in an order of each rank's own: all give before any waits
    const int64_t first = given.splits ? random() % given.num_packets : 0;
    const auto packet = [&](int64_t i) { return (first + i) % given.num_packets; };
    in_turns({0, 1, given.num_packets}, given.splits, [&](int64_t i) { exchange.give(packet(i)); }, [] {},
             [&](int64_t i) { exchange.tell(packet(i)); }, [&](int64_t i) { x[packet(i)] = exchange.take(packet(i)); });
    if (failure.empty()) failure = compare(given, x);
  }
}

}  // namespace octavo

extern "C" const char* octavo_check_all_reduce(int num_calls, int seed) {
  using namespace octavo;
  static std::string failures[kRanks];
  std::vector<uint4> memory[kRanks];
  uint4* slots[kRanks];
  for (int rank = 0; rank < kRanks; ++rank) {
    memory[rank].assign(2 * kRanks * kCapacity, {kEmpty, kEmpty, kEmpty, kEmpty});
    slots[rank] = memory[rank].data();
    failures[rank].clear();
  }
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < kRanks; ++rank) {
    ranks.emplace_back([&, rank] { run(rank, seed, num_calls, slots, failures[rank]); });
  }
  for (auto& rank : ranks) rank.join();
  for (int rank = 0; rank < kRanks; ++rank) {
    if (!failures[rank].empty()) return failures[rank].c_str();
    for (const uint4& slot : memory[rank]) {
      if (slot.x != kEmpty || slot.y != kEmpty || slot.z != kEmpty || slot.w != kEmpty) return "a slot that stays full";
    }
  }
  return "";
}
