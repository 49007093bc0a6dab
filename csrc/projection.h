// ACmix's stage I, the 1x1 convolution that makes q, k and v: out[pixel][o] = bias[o] + sum_c weight[o][c] * in[pixel][c].
// kernels_offset_conv.cpp computes it, once for all sizes of windows.
#pragma once
#include "vectors.h"

struct Projection {
    int inputs, outputs;
    const float *weight, *bias;  // [outputs][inputs]; [outputs] or null
};

// Weights are packed in columns of outputs: [column][input][projection_column].
constexpr int projection_column = 2 * native_lanes;
static inline int projection_columns(const Projection& p) { return ceil_div(p.outputs, projection_column); }
static inline size_t packed_floats(const Projection& p) { return (size_t)projection_columns(p) * projection_column * p.inputs; }

#define PACK_PROJECTION CONVATTN_PASTE(convattn_pack_projection, CONVATTN_ISA)
#define PROJECT CONVATTN_PASTE(convattn_project, CONVATTN_ISA)

// Some columns of the weights, into the memory of all.
extern "C" void PACK_PROJECTION(const Projection* p, int first_column, int last_column, float* packed);
// Some columns of the outputs, of pixels that lie one after another; target: where each pixel's outputs go. packed: null to
// pack what is needed. Returns 1 where there was not enough memory.
extern "C" int PROJECT(const Projection* p, const float* packed, const float* in, int pixels, float* const* target, int first_column,
                       int last_column);
