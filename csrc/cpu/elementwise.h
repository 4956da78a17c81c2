// Ops that make each element of their result of the inputs' elements at its place, the interface: a table of them.
#pragma once
#include <span>

#include "program.h"

namespace octavo {

// The results may lie over an input.
std::span<const NamedKernel> elementwise_kernels();

}  // namespace octavo
