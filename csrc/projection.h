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
#define PROJECTION_GRADIENT CONVATTN_PASTE(convattn_projection_gradient, CONVATTN_ISA)

// One block of the weights, into the memory of all.
extern "C" void PACK_PROJECTION(const Projection* p, int block, float* packed);
// Some blocks of the outputs, of pixels that lie one after another; target: where each pixel's outputs go. Weights that are not
// packed are, on the way. Returns 1 where there was not enough memory.
extern "C" int PROJECT(const Projection* p, const float* in, int pixels, float* const* target, int first_block, int last_block);
// dweight[o][c] = sum_pixel dout[pixel][o] * in[pixel][c], [outputs][inputs], added to where `add`; dbias[o] += sum_pixel
// dout[pixel][o], or null.
extern "C" void PROJECTION_GRADIENT(const Projection* p, const float* in, const float* dout, int pixels, bool add, float* dweight,
                                    double* dbias);

// How the pixels and the blocks of outputs are cut for threads, each of which gets as many parts.
struct ProjectionCut {
    static constexpr int64_t most_pixels = 448;  // whose inputs and sums stay in a core's second-level cache
    int64_t pixels, parts;
    int blocks, splits;

    int64_t first_pixel(int64_t part) const { return pixels * part / parts; }
    int first_block(int64_t split) const { return first_of_part(blocks, split, splits); }
};
static inline ProjectionCut projection_cut(int64_t pixels, int blocks, int threads) {
    ProjectionCut best = {pixels, 1, blocks, 1};
    int64_t least = INT64_MAX;
    for (int splits = 1; splits <= smaller(threads, blocks); splits++) {
        const int together = threads / common_divisor(threads, splits);  // parts of which all threads have as many
        const int64_t parts = ceil_div(ceil_div(pixels, ProjectionCut::most_pixels), (int64_t)together) * together;
        // What the busiest thread does for one input: products, of tiles of 16 pixels; packing weights costs 6 of them, and
        // packing a pixel a fifth of its products with a block.
        const int64_t at_once = ceil_div(pixels, parts), tiles = (at_once + 15) / 16 * 16;
        const int64_t cost = parts * splits / threads * (5 * (tiles + 6) * ceil_div(blocks, splits) + at_once);
        if (cost < least) best = {pixels, parts, blocks, splits}, least = cost;
    }
    return best;
}
