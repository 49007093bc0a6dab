// The C interface of convattn's CPU kernels: float32, no torch headers, called through ctypes.
//
// Every function below exists once per instruction set, with a suffix such as _avx512 or _baseline; dispatch.cpp
// exports the plain name, which calls the best that the processor runs. Nothing is checked here: the Python side does
// (ops/_abi.py), which also sees to it that no size of a map, no offset and no stride passes the limits of an int32; what
// is multiplied of them is 64 bits wide. Each returns 0, or 1 where there was not enough memory: the outputs are then unfinished.
#pragma once
#include <stdint.h>

// Changes whenever a structure or a signature below does; src/convattn/ops/_native.py holds the same number.
#define CONVATTN_ABI_VERSION 8

// A map [B, C, H, W] anywhere in memory; strides in floats.
struct ConvattnMap {
    float* data;
    int64_t image, channel, row, column;
};

// Local attention over a square window with a reflected border, and ACmix's folded convolution beside it. Maps are
// channels-last: head n owns the channels n*head_dim to (n+1)*head_dim, and channel strides are 1.
struct ConvattnWindow {
    int32_t batch, height, width, heads, head_dim;
    int32_t stride;  // 1 or 2
    int32_t relu;    // forward: apply ReLU last
    int32_t threads;
    float softmax_scale;
    int32_t type;  // of qkv and out in convattn_acmix_forward: 0 float32, 1 bfloat16, 2 float16
    int32_t size;  // of the window: 3, 5 or 7
    int32_t inputs;  // channels of the input in convattn_acmix_layer_forward
    int32_t packed;  // whether its projection_weight is [ceil(3C/32)][inputs][32]; what is left of the last 32 is not read
};

// Any set of offsets. Position (y*stride_y + dy, x*stride_x + dx) for every offset, under a border rule.
struct ConvattnOffsets {
    int32_t batch, channels, heads, height, width, out_height, out_width;
    int32_t taps, stride_y, stride_x;
    int32_t border;  // 0 reflect, 1 zeros, 2 replicate
    int32_t threads;
    const int32_t* offsets;  // dy, dx of every tap
    float softmax_scale;
};

// A 3x3 convolution with a zero border in `groups` groups, whose maps lie one after another: channel t*groups + g is
// input t of group g. Output o of group g is channel g*outputs + o. Maps are channels-last, with channel strides of 1.
struct ConvattnGroupConv {
    int32_t batch, height, width, groups, inputs, outputs;
    int32_t stride;  // 1 or 2
    int32_t threads;
};

// A convolution over any offsets, from `inputs` channels to `blocks` blocks of `block_outputs`. Maps are channels-last, with
// channel strides of 1.
struct ConvattnOffsetConv {
    int32_t batch, inputs, blocks, block_outputs, height, width, out_height, out_width;
    int32_t taps, stride_y, stride_x;
    int32_t border;  // 0 reflect, 1 zeros, 2 replicate
    int32_t threads;
    const int32_t* offsets;  // dy, dx of every tap
};

#define CONVATTN_FUNCTIONS(X)                                                                                          \
    /* out = bias + convolution + scale * attention, then ReLU if asked for. weight [3N][9][N][d], position [d][2] */  \
    X(convattn_acmix_forward,                                                                                          \
      (const ConvattnWindow* s, const void* qkv, const float* position, const float* scale, const float* weight,       \
       const float* bias, void* out),                                                                                  \
      (s, qkv, position, scale, weight, bias, out))                                                                    \
    /* the same from the input [B, H, W, inputs], in float32. projection_weight [3C][inputs], projection_bias [3C] or null; */\
    /* qkv [B, H, W, 3C]: where q, k and v are left, or null */                                                        \
    X(convattn_acmix_layer_forward,                                                                                    \
      (const ConvattnWindow* s, const float* in, const float* projection_weight, const float* projection_bias,         \
       const float* position, const float* scale, const float* weight, const float* bias, float* qkv, float* out),     \
      (s, in, projection_weight, projection_bias, position, scale, weight, bias, qkv, out))                            \
    /* dqkv is written; the rest is added to, one copy per thread: dposition [d][2], dweight, dalpha */                \
    X(convattn_acmix_backward,                                                                                         \
      (const ConvattnWindow* s, const float* qkv, const float* position, float alpha, const float* weight,             \
       const float* dout, float* dqkv, double* dposition, double* dweight, double* dalpha),                            \
      (s, qkv, position, alpha, weight, dout, dqkv, dposition, dweight, dalpha))                                       \
    /* the same to the input. qkv, as the forward left it, may be null. din and dprojection [threads][3C][inputs] are */ \
    /* written, dprojection_bias [threads][3C], or null, is added to. No fewer images than threads */                    \
    X(convattn_acmix_layer_backward,                                                                                   \
      (const ConvattnWindow* s, const float* in, const float* projection_weight, const float* projection_bias,         \
       const float* qkv, const float* position, float alpha, const float* weight, const float* dout, float* din,       \
       float* dprojection, double* dprojection_bias, double* dposition, double* dweight, double* dalpha),              \
      (s, in, projection_weight, projection_bias, qkv, position, alpha, weight, dout, din, dprojection,                \
       dprojection_bias, dposition, dweight, dalpha))                                                                  \
    /* local attention alone; q at the output resolution */                                                            \
    X(convattn_window_forward,                                                                                         \
      (const ConvattnWindow* s, const ConvattnMap* q, const ConvattnMap* k, const ConvattnMap* v,                      \
       const ConvattnMap* out),                                                                                        \
      (s, q, k, v, out))                                                                                               \
    X(convattn_window_backward,                                                                                        \
      (const ConvattnWindow* s, const ConvattnMap* q, const ConvattnMap* k, const ConvattnMap* v,                      \
       const ConvattnMap* dout, const ConvattnMap* dq, const ConvattnMap* dk, const ConvattnMap* dv),                  \
      (s, q, k, v, dout, dq, dk, dv))                                                                                  \
    /* weights and logits are [B, N, K, Ho, Wo], contiguous */                                                         \
    X(convattn_correlate,                                                                                              \
      (const ConvattnOffsets* s, const ConvattnMap* q, const ConvattnMap* k, float* logits), (s, q, k, logits))        \
    X(convattn_aggregate,                                                                                              \
      (const ConvattnOffsets* s, const float* weights, const ConvattnMap* v, const ConvattnMap* out),                  \
      (s, weights, v, out))                                                                                            \
    X(convattn_scatter,                                                                                                \
      (const ConvattnOffsets* s, const float* weights, const ConvattnMap* u, const ConvattnMap* out),                  \
      (s, weights, u, out))                                                                                            \
    /* bias [N][K] and key_offsets [N][K][d] may be null */                                                            \
    X(convattn_attend,                                                                                                 \
      (const ConvattnOffsets* s, const ConvattnMap* q, const ConvattnMap* k, const ConvattnMap* v, const float* bias,  \
       const float* key_offsets, const ConvattnMap* out),                                                              \
      (s, q, k, v, bias, key_offsets, out))                                                                            \
    /* dbias [B][N][K] and dkey_offsets [B][N][K][d] are written where not null */                                     \
    X(convattn_attend_backward,                                                                                        \
      (const ConvattnOffsets* s, const ConvattnMap* q, const ConvattnMap* k, const ConvattnMap* v, const float* bias,  \
       const float* key_offsets, const ConvattnMap* dout, const ConvattnMap* dq, const ConvattnMap* dk,                \
       const ConvattnMap* dv, double* dbias, double* dkey_offsets),                                                    \
      (s, q, k, v, bias, key_offsets, dout, dq, dk, dv, dbias, dkey_offsets))                                            \
    /* weight [inputs][9][outputs][groups], bias [groups*outputs] or null */                                           \
    X(convattn_group_conv_forward,                                                                                     \
      (const ConvattnGroupConv* s, const ConvattnMap* in, const float* weight, const float* bias,                      \
       const ConvattnMap* out),                                                                                        \
      (s, in, weight, bias, out))                                                                                      \
    /* din is written, dweight is added to, one copy per thread */                                                     \
    X(convattn_group_conv_backward,                                                                                    \
      (const ConvattnGroupConv* s, const ConvattnMap* in, const float* weight, const ConvattnMap* dout,                \
       const ConvattnMap* din, double* dweight),                                                                       \
      (s, in, weight, dout, din, dweight))                                                                             \
    /* weight [blocks][taps][inputs][block_outputs], bias [blocks*block_outputs] or null */                            \
    X(convattn_offset_conv,                                                                                            \
      (const ConvattnOffsetConv* s, const ConvattnMap* in, const float* weight, const float* bias,                     \
       const ConvattnMap* out),                                                                                        \
      (s, in, weight, bias, out))                                                                                      \
    /* q, k and v channels-last; v and bias may be null. weight [taps][channels], bias [taps][heads] */                \
    X(convattn_pixel_shift,                                                                                            \
      (const ConvattnOffsets* s, const ConvattnMap* q, const ConvattnMap* k, const ConvattnMap* v,                     \
       const float* weight, const float* bias, const ConvattnMap* out),                                                \
      (s, q, k, v, weight, bias, out))                                                                                 \
    /* dk, dv, dweight [B][taps][channels], dbias [B][taps][heads] are added to; v, dv, bias, dbias may be null */     \
    X(convattn_pixel_shift_backward,                                                                                   \
      (const ConvattnOffsets* s, const ConvattnMap* q, const ConvattnMap* k, const ConvattnMap* v,                     \
       const float* weight, const float* bias, const ConvattnMap* dout, const ConvattnMap* dq,                         \
       const ConvattnMap* dk, const ConvattnMap* dv, double* dweight, double* dbias),                                  \
      (s, q, k, v, weight, bias, dout, dq, dk, dv, dweight, dbias))
