// ACmix's stage I, the 1x1 convolution that makes q, k and v: out[pixel][o] = bias[o] + sum_c weight[o][c] * in[pixel][c].
// kernels_offset_conv.cpp computes it, once for all sizes of windows.
#pragma once
#include "vectors.h"

// Weights are packed in blocks of outputs, whatever the lanes of the processor: [block][input][projection_block].
constexpr int projection_block = 32;

struct Projection {
    int inputs, outputs;
    const float *weight, *bias;  // [outputs][inputs], or packed; [outputs] or null
    bool packed;
};
static inline int projection_blocks(const Projection& p) { return ceil_div(p.outputs, projection_block); }
static inline size_t packed_floats(const Projection& p) { return (size_t)projection_blocks(p) * projection_block * p.inputs; }

#define PACK_PROJECTION CONVATTN_PASTE(convattn_pack_projection, CONVATTN_ISA)
#define PROJECT CONVATTN_PASTE(convattn_project, CONVATTN_ISA)

// One block of the weights, into the memory of all.
extern "C" void PACK_PROJECTION(const Projection* p, int block, float* packed);
// Some blocks of the outputs, of pixels that lie one after another; target: where each pixel's outputs go. Weights that are not
// packed are, on the way. Returns 1 where there was not enough memory.
extern "C" int PROJECT(const Projection* p, const float* in, int pixels, float* const* target, int first_block, int last_block);
