// The convolution over any offsets, and ACmix's projection by the same tiles.
#include "offset_conv.h"
#include "projection.h"

namespace {

static_assert(projection_block % tile_outputs == 0);
constexpr int gradient_pixels = 256;  // whose inputs for a tile stay in or near a core's first-level cache
alignas(64) const float no_bias[tile_outputs] = {};

// The weights of a block from input `first` on.
void pack_weights(const Projection& p, int block, int first, int inputs, float* to) {
    constexpr int L = native_lanes;
    const size_t step = p.inputs;
    const int width = smaller(projection_block, p.outputs - block * projection_block);
    const float* from = p.weight + block * projection_block * step + first;
    for (int o = 0; o < width; o += L, from += L * step, to += L) {
        const int lanes = smaller(L, width - o);
        int c = 0;
        for (; c + L <= inputs; c += L) {
            Vec<L> v[L];
            repeat<L>([&](auto i) UNROLLED { v[i] = load<L>(from + smaller(i, lanes - 1) * step + c); });
            transpose<L>(v);
            repeat<L>([&](auto i) UNROLLED { store<L>(to + (c + i) * projection_block, v[i]); });
        }
        for (; c < inputs; c++)
            for (int i = 0; i < lanes; i++) to[c * projection_block + i] = from[i * step + c];
    }
}

struct ProjectedPixels {
    const Projection& p;
    const float* in;
    int count;
    float* const* target;

    int tiles() const { return ceil_div(count, tile_pixels); }
    int first_of_tile(int tile) const { return first_of_part(count, tile, tiles()); }

    // Some inputs, tile by tile as [input][pixel].
    void pack(int first, int inputs, float* packed) const {
        for (int k = 0; k < tiles(); k++) {
            const int begin = first_of_tile(k), pixels = first_of_tile(k + 1) - begin;
            const float* from[tile_pixels] = {};
            for (int i = 0; i < pixels; i++) from[i] = in + (size_t)(begin + i) * p.inputs + first;
            pack_tile(from, pixels, inputs, packed + (size_t)begin * inputs);
        }
    }
    // Outputs from o on; weight: theirs of the first input.
    void multiply(int o, int first, int inputs, const float* packed, const float* weight) const {
        const int width = smaller(tile_outputs, p.outputs - o), vectors = ceil_div(width, native_lanes);
        const int last = width - (vectors - 1) * native_lanes;
        const float* begin = first ? nullptr : p.bias ? p.bias + o : no_bias;
        const char* next = (const char*)(weight + (size_t)inputs * projection_block);
        const ptrdiff_t row = projection_block * sizeof(float);
        for (int k = 0; k < tiles(); k++) {
            const int at = first_of_tile(k), pixels = first_of_tile(k + 1) - at;
            float* to[tile_pixels];
            for (int i = 0; i < pixels; i++) to[i] = target[at + i] + o;
            const FetchAhead ahead = {next + k * (row * inputs / tiles()), row / tiles()};
            tile_of(pixels, vectors, last < native_lanes)(packed + (size_t)at * inputs, pixels, weight, projection_block, inputs, to, last, begin, ahead);
        }
    }
};

// sum[c] += the sum over rows of column c.
void add_columns(const float* from, int rows, int columns, double* sum) {
    constexpr int L = native_lanes, together = 4;
    int c = 0;
    for (; c + together * L <= columns; c += together * L) {
        Vec<L> part[together] = {};
        for (int r = 0; r < rows; r++)
            repeat<together>([&](auto i) UNROLLED { part[i] += load<L>(from + (size_t)r * columns + c + i * L); });
        alignas(64) float lane[together * L];
        repeat<together>([&](auto i) UNROLLED { store<L>(lane + i * L, part[i]); });
        for (int i = 0; i < together * L; i++) sum[c + i] += lane[i];
    }
    for (; c < columns; c++) {
        float part = 0;
        for (int r = 0; r < rows; r++) part += from[(size_t)r * columns + c];
        sum[c] += part;
    }
}

}  // namespace

extern "C" void PACK_PROJECTION(const Projection* p, int block, float* packed) {
    pack_weights(*p, block, 0, p->inputs, packed + (size_t)block * p->inputs * projection_block);
}

extern "C" int PROJECT(const Projection* p, const float* in, int pixels, float* const* target, int first_block, int last_block) {
    const int chunk = smaller(packed_inputs, p->inputs), parts = ceil_div(pixels, block_pixels);
    const size_t input_floats = (size_t)smaller(pixels, block_pixels) * chunk + native_lanes;
    if (!scratch.reserve(input_floats + (size_t)chunk * projection_block)) return 1;
    float *inputs = scratch.take(input_floats), *own = scratch.take((size_t)chunk * projection_block);
    for (int part = 0; part < parts; part++) {
        const int first = first_of_part(pixels, part, parts), end = first_of_part(pixels, part + 1, parts);
        const ProjectedPixels of = {*p, in + (size_t)first * p->inputs, end - first, target + first};
        for (int c = 0; c < p->inputs; c += chunk) {
            const int count = smaller(chunk, p->inputs - c);
            of.pack(c, count, inputs);
            for (int j = first_block; j < last_block; j++) {
                if (!p->packed) pack_weights(*p, j, c, count, own);
                const float* weight = p->packed ? p->weight + ((size_t)j * p->inputs + c) * projection_block : own;
                const int o = j * projection_block, width = smaller(projection_block, p->outputs - o);
                for (int i = 0; i < width; i += tile_outputs) of.multiply(o + i, c, count, inputs, weight + i);
            }
        }
    }
    return 0;
}

// The tiles of PROJECT, whose pixels are outputs here and whose inputs are pixels.
extern "C" void PROJECTION_GRADIENT(const Projection* p, const float* in, const float* dout, int pixels, bool add, float* dweight,
                                    double* dbias) {
    const int parts = ceil_div(pixels, gradient_pixels), tiles = ceil_div(p->outputs, tile_pixels);
    for (int part = 0; part < parts; part++) {
        const int first = first_of_part(pixels, part, parts), count = first_of_part(pixels, part + 1, parts) - first;
        const float *gradients = dout + (size_t)first * p->outputs, *inputs = in + (size_t)first * p->inputs;
        if (dbias) add_columns(gradients, count, p->outputs, dbias);
        for (int c = 0; c < p->inputs; c += tile_outputs) {
            const int width = smaller(tile_outputs, p->inputs - c), vectors = ceil_div(width, native_lanes);
            const int last = width - (vectors - 1) * native_lanes;
            for (int k = 0; k < tiles; k++) {
                const int o = first_of_part(p->outputs, k, tiles), outputs = first_of_part(p->outputs, k + 1, tiles) - o;
                float* to[tile_pixels];
                for (int i = 0; i < outputs; i++) to[i] = dweight + (size_t)(o + i) * p->inputs + c;
                tile_of(outputs, vectors, last < native_lanes)(gradients + o, p->outputs, inputs + c, p->inputs, count, to, last,
                                                               part || add ? nullptr : no_bias, {(const char*)inputs, 0});
            }
        }
    }
}

ENTRY(convattn_offset_conv)(const ConvattnOffsetConv* s, const ConvattnMap* in, const float* weight, const float* bias,
                            const ConvattnMap* out) {
    const int64_t before = failures;
    offset_conv(OffsetConv(*s), *in, weight, bias, *out);
    return failures != before;
}
