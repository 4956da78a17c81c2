// The table of element-wise ops: each element of a result depends on the same element of the inputs.
#pragma once
#include <span>

#include "program.h"

namespace octavo {

// A result may overwrite an input.
std::span<const NamedKernel> elementwise_kernels();

}  // namespace octavo
