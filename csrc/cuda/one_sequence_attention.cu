// Decode attention of a step's only sequence, where latency is all.
//
// From the end of the product before it to its own end is a chain of short steps; all that can be is read before:
//
//   a cluster of 8 thread blocks for each kv head, more for long contexts; a block has an equal part of the tokens
//
//   1 loader      before the product before it has ended: keys and values ──> shared memory, 128 tokens of each at a
//                 time; then the newest token's, from that product
//   8 warps       a query head each, normed and rotated ──> shared memory
//                 scores of 16 tokens each, their maximum and exponentials ──> shared memory
//                 sums of 16 dims each, over all tokens of the stage
//   the cluster   each block has the others' sums of an eighth of the dims, by stores into its shared memory that its
//                 barrier counts, and ends them
//   long contexts clusters leave partial results in global memory; the last one of a kv head adds them up
//
// The next kernel may begin as soon as this one's reads are on their way, so that its own come before queries are there,
// and not when the blocks need the memory. It may then run beside the kernel before this one.
//
// No plan is needed: a block finds its tokens by the sequence's length. Keys and values are the 16 rows of a product,
// and queries its 8 columns: scores are 16 tokens x 8 heads, sums 16 dims x 8 heads.
// Split-KV decoding is from Flash-Decoding (Dao et al., 2023).

#include "one_sequence_ends.cuh"

extern "C" __device__ int octavo_shared_bytes = sizeof(octavo::OneShared);

extern "C" __global__ void OCTAVO_CLUSTERS(octavo::kClusterBlocks) __launch_bounds__(octavo::kOneThreads, 2)
    octavo_one_sequence_attention(const __grid_constant__ octavo::Launch launch,
                                  const __grid_constant__ octavo::TensorMap map,
                                  const __grid_constant__ octavo::Sequence sequence) {
  using namespace octavo;
  extern __shared__ __align__(1024) unsigned char memory[];
  OneShared& shared = *reinterpret_cast<OneShared*>(memory);
  const int table_row = sequence.rows[0];
  const Share share(launch, sequence);
  if (!share.has_work) return;
  const int warp = threadIdx.x / 32, row = sequence.query_start_loc[0];
  if (warp == kWarps) {  // it does not wait for the others before it copies
    const Loader loader{launch, &map, shared, share, launch.block_table + table_row * launch.table_stride};
    loader.init_barriers();
    cluster_arrive();
    loader.copy();
    if (IS_CHAINED) allow_next();  // a product, which before it waits reads nothing but weights
    cluster_wait();
    if (share.has_newest) loader.add_newest(row);
    return;
  }
  cluster_arrive();
  cluster_wait();
  Computer computer{launch, shared, share};
  Ends ends{launch, sequence, share};
  if (warp == 0) ends.read_sinks();
  const Head head(launch, launch.q_norm, share.tokens - 1);
  if (GROUP < kRows) {
    for (int i = threadIdx.x; i < kSlabs * kRows * 8; i += 32 * kWarps) {
      reinterpret_cast<uint4*>(shared.q)[i] = uint4{};
    }
    named_barrier(1, 32 * kWarps);
  }
  if (IS_CHAINED) {
    wait_for_previous();
    allow_next();
  }
  computer.place_query(head, row);
  named_barrier(1, 32 * kWarps);
  computer.load_queries();
  computer.run();
  computer.send();
  if (warp > 0) return;
  barrier_wait(address(shared.arrived), 0);
  ends.add<kClusterBlocks>(
      kClusterBlocks, [&](int i) { return shared.sums[i][threadIdx.x]; },
      [&](int i) { return *reinterpret_cast<float4*>(&shared.max_sum[i][threadIdx.x % 4 * 2][0]); });
  if (share.num_clusters > 1 && !ends.join()) return;
  ends.store(row);
}
