// The convolution over any offsets, and ACmix's projection by the same tiles.
#include "offset_conv.h"
#include "projection.h"

namespace {

static_assert(projection_column == tile_outputs);
alignas(64) const float no_bias[tile_outputs] = {};

int width_of_column(const Projection& p, int column) { return smaller(tile_outputs, p.outputs - column * tile_outputs); }

// The weights of a column from input `first` on, as [input][tile_outputs].
void pack_weights(const Projection& p, int column, int first, int inputs, float* to) {
    constexpr int L = native_lanes;
    const size_t step = p.inputs;
    const float* from = p.weight + column * tile_outputs * step + first;
    for (int o = 0; o < width_of_column(p, column); o += L, from += L * step, to += L) {
        const int lanes = smaller(L, width_of_column(p, column) - o);
        int c = 0;
        for (; c + L <= inputs; c += L) {
            Vec<L> v[L];
            repeat<L>([&](auto i) UNROLLED { v[i] = load<L>(from + smaller(i, lanes - 1) * step + c); });
            transpose<L>(v);
            repeat<L>([&](auto i) UNROLLED { store<L>(to + (c + i) * tile_outputs, v[i]); });
        }
        for (; c < inputs; c++)
            for (int i = 0; i < lanes; i++) to[c * tile_outputs + i] = from[i * step + c];
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
    void multiply(int column, int first, int inputs, const float* packed, const float* weight) const {
        const int o = column * tile_outputs, width = width_of_column(p, column), vectors = ceil_div(width, native_lanes);
        const int last = width - (vectors - 1) * native_lanes;
        const float* begin = first ? nullptr : p.bias ? p.bias + o : no_bias;
        const char* next = (const char*)(weight + (size_t)inputs * tile_outputs);
        const ptrdiff_t row = tile_outputs * sizeof(float);
        for (int k = 0; k < tiles(); k++) {
            const int at = first_of_tile(k), pixels = first_of_tile(k + 1) - at;
            float* to[tile_pixels];
            for (int i = 0; i < pixels; i++) to[i] = target[at + i] + o;
            const FetchAhead ahead = {next + k * (row * inputs / tiles()), row / tiles()};
            tile_of(pixels, vectors, last < native_lanes)(packed + (size_t)at * inputs, weight, tile_outputs, inputs, to, last, begin, ahead);
        }
    }
};

}  // namespace

extern "C" void PACK_PROJECTION(const Projection* p, int first_column, int last_column, float* packed) {
    const size_t column = (size_t)p->inputs * tile_outputs;
    for (int j = first_column; j < last_column; j++) pack_weights(*p, j, 0, p->inputs, packed + j * column);
}

extern "C" int PROJECT(const Projection* p, const float* packed, const float* in, int pixels, float* const* target, int first_column,
                       int last_column) {
    const int chunk = smaller(packed_inputs, p->inputs), blocks = ceil_div(pixels, block_pixels);
    const size_t column = (size_t)p->inputs * tile_outputs, input_floats = (size_t)smaller(pixels, block_pixels) * chunk + native_lanes;
    if (!scratch.reserve(input_floats + (size_t)chunk * tile_outputs)) return 1;
    float *inputs = scratch.take(input_floats), *own = scratch.take((size_t)chunk * tile_outputs);
    for (int k = 0; k < blocks; k++) {
        const int first = first_of_part(pixels, k, blocks), end = first_of_part(pixels, k + 1, blocks);
        const ProjectedPixels of = {*p, in + (size_t)first * p->inputs, end - first, target + first};
        for (int c = 0; c < p->inputs; c += chunk) {
            const int count = smaller(chunk, p->inputs - c);
            of.pack(c, count, inputs);
            for (int j = first_column; j < last_column; j++) {
                if (!packed) pack_weights(*p, j, c, count, own);
                of.multiply(j, c, count, inputs, packed ? packed + j * column + (size_t)c * tile_outputs : own);
            }
        }
    }
    return 0;
}

ENTRY(convattn_offset_conv)(const ConvattnOffsetConv* s, const ConvattnMap* in, const float* weight, const float* bias,
                            const ConvattnMap* out) {
    const int64_t before = failures;
    offset_conv(OffsetConv(*s), *in, weight, bias, *out);
    return failures != before;
}
