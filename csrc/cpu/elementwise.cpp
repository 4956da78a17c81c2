// Sums of activations, threaded over tokens.
#include "elementwise.h"

#include "vectors.h"

namespace octavo {

void add(ThreadPool& pool, Rows x, Rows y, Rows out, int64_t num_tokens) {
  for_each_token(pool, num_tokens, x.width, [&](int64_t t) {
    const float *a = x[t], *b = y[t];
    float* target = out[t];
    for_each_vector(x.width,
                    [&](int64_t i, auto lanes) { store<lanes>(target + i, load<lanes>(a + i) + load<lanes>(b + i)); });
  });
}

}  // namespace octavo
