// What the products of experts are launched with.
#pragma once

#include "row_choice.cuh"

#ifndef ELEMENT
#define ELEMENT Bf16
#endif

namespace octavo {
namespace {

struct Launch {
  Routing routing;
  const ELEMENT* x;       // gate_up: [rows][x_stride]; down: [pairs][x_stride]; of experts.cu as in expert_rows.cuh
  const void* scales;     // [expert][out / row_block][groups]; of fp4 bytes, exponents of two plus 127; otherwise float
  const int8_t* zeros;    // zero points, in the same places; or null: they are 8
  const ELEMENT* bias;    // [expert][out], or null
  const ELEMENT* residual;  // or null
  ELEMENT* out;           // gate_up: down's x; down: [rows][out_stride]
  int64_t x_stride, residual_stride, out_stride;
  int columns, depth, gate, group, num_groups, row_block;
  float alpha, limit;
};

}  // namespace
}  // namespace octavo
