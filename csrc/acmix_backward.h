// ACmix backward: both paths, and from their gradients of q, k and v those of the input and the projection.
#pragma once
#include "acmix_layer.h"
#include "window_backward.h"

namespace {

// The sums over all pixels, one copy per thread.
struct AcmixSums {
    double* dposition;  // or null
    double *dweight, *dalpha;
};

// What the paths give q, k and v, in parts: the convolution's is written, then the attention's added. The pixels of `maps` and
// `gradients` hold q, k and v, and their gradients.
struct AcmixGradients {
    const Problem& p;
    const float* weight;
    float alpha;
    View dout;
    AcmixSums sums;

    void convolution(int slice, const ConvCut& cut, int64_t unit, const View& maps, const View& gradients) const {
        const GroupConv conv = convolution_of(p);
        conv_backward_unit(conv, cut, unit, maps, weight, dout, gradients, sums.dweight + slice * conv.weights());
    }
    template <int L, int S> void attention(int slice, int b, int n, const View& maps, const View& gradients) const {
        typedef BackwardAttention<L, S> Attention;
        if (!scratch.reserve(Attention::floats(p))) return;
        Attended attended;
        WindowGradients grad;
        read_packed(p, maps, attended.q, attended.k, attended.v);
        read_packed(p, gradients, grad.dq, grad.dk, grad.dv);
        grad.dposition = sums.dposition ? sums.dposition + (size_t)slice * 2 * p.d : nullptr;
        Attention head(p, attended, grad, dout, alpha, b, n);
        head.run();
        sums.dalpha[slice] += head.dalpha;
    }
};

thread_local Scratch image_gradients;

struct LayerGradients {
    Projection projection;
    const float *in, *qkv;  // [B, H, W, inputs], [B, H, W, 3C]; no qkv: q, k and v are made again
    float *din, *dprojection;  // [B, H, W, inputs]; [threads][3C][inputs]; both written
    double* dbias;             // [threads][3C], added to, or null
};

// A block of the weights of the projection's adjoint, from the outputs to the inputs, into the memory of all.
void pack_adjoint(const Projection& p, int block, float* packed) {
    const int first = block * projection_block, width = smaller(projection_block, p.inputs - first);
    packed += (size_t)first * p.outputs;
    for (int o = 0; o < p.outputs; o++) memcpy(packed + (size_t)o * projection_block, p.weight + (size_t)o * p.inputs + first, width * sizeof(float));
}

// Images of one thread, `together` at a time: their gradients of q, k and v stay in the core's own cache or near it, and where maps
// are small many pixels share the projection's weights.
template <int L, int S>
void acmix_images_backward(const AcmixGradients& of, const LayerGradients& layer, const Projection& adjoint, int slice, int first, int end) {
    constexpr int enough_pixels = 448;
    const Problem& p = of.p;
    const Projection& projection = layer.projection;
    const int pixels = p.H * p.W, together = larger(1, smaller(end - first, enough_pixels / pixels));
    const size_t image = (size_t)pixels * 3 * p.C, all = together * image;
    if (!image_gradients.reserve((layer.qkv ? 1 : 2) * all + 2 * (size_t)together * pixels)) return;
    float *gradients = image_gradients.take(all), *own = layer.qkv ? nullptr : image_gradients.take(all);
    float** target = image_gradients.take_array<float*>((size_t)together * pixels);
    float* dprojection = layer.dprojection + slice * (size_t)projection.outputs * projection.inputs;
    double* dbias = layer.dbias ? layer.dbias + slice * (size_t)projection.outputs : nullptr;
    for (int b = first; b < end; b += together) {
        const int count = smaller(together, end - b) * pixels;
        const size_t at = (size_t)b * pixels * projection.inputs;
        const float* qkv = own ? own : layer.qkv + b * image;
        for (int i = 0; own && i < count; i++) target[i] = own + (size_t)i * 3 * p.C;
        if (own && PROJECT(&projection, layer.in + at, count, target, 0, projection_blocks(projection))) return (void)fail();
        // of image i of the batch, for i from b on
        const View maps = packed(qkv - b * image, p.H, p.W, 3 * p.C), dmaps = packed(gradients - b * image, p.H, p.W, 3 * p.C);
        for (int i = b; i < smaller(b + together, end); i++) {
            of.convolution(slice, ConvCut(convolution_of(p), 1), i, maps, dmaps);
            for (int n = 0; n < p.N; n++) of.attention<L, S>(slice, i, n, maps, dmaps);
        }
        for (int i = 0; i < count; i++) target[i] = layer.din + at + (size_t)i * projection.inputs;
        if (PROJECT(&adjoint, gradients, count, target, 0, projection_blocks(adjoint))) return (void)fail();
        PROJECTION_GRADIENT(&projection, layer.in + at, gradients, count, b > first, dprojection, dbias);
    }
}

void acmix_layer_backward(const AcmixGradients& of, LayerGradients layer) {
    const Problem& p = of.p;
    const Projection plain = layer.projection;
    Projection adjoint = {plain.outputs, plain.inputs, nullptr, nullptr, true};
    const size_t forward_floats = layer.qkv ? 0 : packed_floats(plain);
    if (!packed_weights.reserve(packed_floats(adjoint) + forward_floats)) return;
    float *weight = packed_weights.take(packed_floats(adjoint)), *forward = packed_weights.take(forward_floats);
    const int blocks = projection_blocks(adjoint), all = blocks + (layer.qkv ? 0 : projection_blocks(plain));
#pragma omp parallel for schedule(static) num_threads(p.threads) if (p.threads > 1)
    for (int j = 0; j < all; j++) {
        if (j < blocks) pack_adjoint(plain, j, weight);
        else PACK_PROJECTION(&plain, j - blocks, forward);
    }
    adjoint.weight = weight;
    if (!layer.qkv) layer.projection.weight = forward, layer.projection.packed = true;
    choose_window(p, [&](auto L, auto S) {
#pragma omp parallel for schedule(static, 1) num_threads(p.threads) if (p.threads > 1)
        for (int slice = 0; slice < p.threads; slice++)
            acmix_images_backward<decltype(L)::value, decltype(S)::value>(of, layer, adjoint, slice, first_of_part(p.B, slice, p.threads),
                                                                         first_of_part(p.B, slice + 1, p.threads));
    });
}

}  // namespace
