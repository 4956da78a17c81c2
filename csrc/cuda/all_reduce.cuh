// The threads' work in all_reduce.cu: packets sent into the other ranks' memory, and added up where they arrive.
//
//   one shot     rank 0  x ──────────▶ all others' slots            each rank adds up all packets
//   split        rank 0  x ──────────▶ the packet's owner           the owner adds up, and
//                owner   sum ────────▶ all others' slots            tells the others
//
// Packets of a large message are sent a few rows before those whose sums are taken, so that links and memory are busy
// together. A thread block has the same rows in the same order on all ranks, so each comes to send what another waits for.
//
// A packet is its own flag: a slot is empty (kEmpty) until it arrives, and emptied by the thread that reads it. So the
// only wait is for the packets themselves, in this rank's own memory, and they may arrive in any order.
//
// A kernel uses the half of the slots that the one before it did not. A rank may be a kernel ahead of another: it
// cannot finish that kernel without packets which the other sends in its own next one. So when it uses a half again, the
// other has finished with that half, and left its slots empty.
//
// Sums are float32 in the order of ranks, rounded once: the same bits on all ranks.
#pragma once

#include "all_reduce.h"
#include "ptx.cuh"

#ifndef ELEMENT
#define ELEMENT Bf16
#endif

namespace octavo {
namespace {

using Element = ELEMENT;
constexpr int kElements = sizeof(Packet) / sizeof(Element);  // in a packet

struct Numbers {
  float x[kElements];
};

__device__ __forceinline__ Numbers unpack(const Packet& packet) {
  Numbers to;
  const Element* elements = reinterpret_cast<const Element*>(&packet);
#pragma unroll
  for (int i = 0; i < kElements; ++i) to.x[i] = to_float(elements[i]);
  return to;
}

__device__ __forceinline__ Packet packed(const Numbers& from) {
  constexpr int kInWord = kElements / 4;
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = pack<Element>(from.x[kInWord * i], from.x[kInWord * i + kInWord - 1]);
  return {words[0], words[1], words[2], words[3]};
}

__device__ __forceinline__ Numbers numbers_at(const float* from) {
  Numbers to;
#pragma unroll
  for (int i = 0; i < kElements; i += 4) {
    const float4 x = *reinterpret_cast<const float4*>(from + i);
    to.x[i] = x.x, to.x[i + 1] = x.y, to.x[i + 2] = x.z, to.x[i + 3] = x.w;
  }
  return to;
}

__device__ __forceinline__ bool is_empty(const Packet& packet) {
  return packet.x == kEmpty || packet.y == kEmpty || packet.z == kEmpty || packet.w == kEmpty;
}

__device__ __forceinline__ uint32_t filled(uint32_t word) { return word == kEmpty ? kOtherNan : word; }

// A kernel's view of the slots. `call` is its number, by which all ranks use the same half.
struct Exchange {
  const Reduction& given;
  int64_t half;

  __device__ Exchange(const Reduction& given, uint32_t call) : given(given), half((call & 1) * kRanks) {}

  // In the memory of `at`
  __device__ Packet* slot(int at, int sender, int64_t packet) const {
    return given.slots[at] + (half + sender) * given.capacity + packet;
  }

  // Neighbouring threads send whole cache lines to one owner
  __device__ int owner(int64_t packet) const { return int(packet / 8 % kRanks); }

  __device__ Packet own(int64_t packet) const { return static_cast<const Packet*>(given.x)[packet]; }

  __device__ void send(int to, int64_t packet, const Packet& x) const {
    store_for_all(slot(to, given.rank, packet), {filled(x.x), filled(x.y), filled(x.z), filled(x.w)});
  }

  __device__ void send_to_others(int64_t packet, const Packet& x) const {
#pragma unroll
    for (int i = 1; i < kRanks; ++i) send((given.rank + i) % kRanks, packet, x);
  }

  // First, for every packet of the thread: give away what others add up
  __device__ void give(int64_t packet) const {
    if (!given.splits) {
      send_to_others(packet, own(packet));
    } else if (owner(packet) != given.rank) {
      send(owner(packet), packet, own(packet));
    }
  }

  // Waits for all other ranks' packets
  __device__ Packet sum(int64_t packet) const {
    Packet parts[kRanks];
    bool is_whole = false;
    while (!is_whole) {
      is_whole = true;
#pragma unroll
      for (int i = 0; i < kRanks; ++i) {
        if (i != given.rank) parts[i] = load_of_all(slot(given.rank, i, packet));
      }
#pragma unroll
      for (int i = 0; i < kRanks; ++i) is_whole = is_whole && (i == given.rank || !is_empty(parts[i]));
    }
    Numbers total = {};
#pragma unroll
    for (int i = 0; i < kRanks; ++i) {
      if (i != given.rank) empty(slot(given.rank, i, packet));
      const Numbers part = unpack(i == given.rank ? own(packet) : parts[i]);
#pragma unroll
      for (int e = 0; e < kElements; ++e) total.x[e] = i == 0 ? part.x[e] : total.x[e] + part.x[e];
    }
    return packed(total);
  }

  // Then, if split: add up this rank's packets, and tell the others. The sums wait in `out`.
  __device__ void tell(int64_t packet) const {
    if (owner(packet) != given.rank) return;
    const Packet total = sum(packet);
    send_to_others(packet, total);
    static_cast<Packet*>(given.out)[packet] = total;
  }

  // At last: the sum of all ranks' packets
  __device__ Packet take(int64_t packet) const {
    if (!given.splits) return sum(packet);
    if (owner(packet) == given.rank) return static_cast<const Packet*>(given.out)[packet];
    Packet* from = slot(given.rank, owner(packet), packet);
    Packet total = load_of_all(from);
    while (is_empty(total)) total = load_of_all(from);
    empty(from);
    return total;
  }

  __device__ void empty(Packet* at) const { store_for_all(at, {kEmpty, kEmpty, kEmpty, kEmpty}); }
};

constexpr int kAhead = 4;  // rows

// A thread block's rows, as the numbers of their first packets
struct Rows {
  int64_t first, step, end;
};

// send(row) for rows up to kAhead ahead of the one that take(row) waits for, and begun() when the first are on their way.
// If split, all are sent at once, and then tell(row) for all, since their owners' sums come back.
template <typename Send, typename Begun, typename Tell, typename Take>
__device__ __forceinline__ void in_turns(const Rows& rows, bool splits, Send&& send, Begun&& begun, Tell&& tell,
                                         Take&& take) {
  const int64_t ahead = splits ? rows.end : rows.first + kAhead * rows.step;
  int64_t sent = rows.first;
  for (; sent < rows.end && sent < ahead; sent += rows.step) send(sent);
  begun();
  for (int64_t row = rows.first; splits && row < rows.end; row += rows.step) tell(row);
  for (int64_t row = rows.first; row < rows.end; row += rows.step) {
    if (sent < rows.end) send(sent);
    sent += rows.step;
    take(row);
  }
}

// residual += x, rounded. Returns the sum, and adds its square to `squares`.
__device__ __forceinline__ Numbers add_residual(const Reduction& given, int64_t packet, const Packet& x,
                                                float& squares) {
  Packet* at = static_cast<Packet*>(given.residual) + packet;
  const Numbers a = unpack(x), b = unpack(*at);
  Numbers total;
#pragma unroll
  for (int e = 0; e < kElements; ++e) total.x[e] = a.x[e] + b.x[e];
  *at = packed(total);
  total = unpack(*at);
#pragma unroll
  for (int e = 0; e < kElements; ++e) squares += total.x[e] * total.x[e];
  return total;
}

// weight: of the packet's columns. scale: of its row
__device__ __forceinline__ void store_normed(const Reduction& given, int64_t packet, Numbers x, const Numbers& weight,
                                             float scale) {
#pragma unroll
  for (int e = 0; e < kElements; ++e) x.x[e] *= scale * weight.x[e];
  static_cast<Packet*>(given.out)[packet] = packed(x);
}

}  // namespace
}  // namespace octavo
