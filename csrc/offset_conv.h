// A convolution over any set of offsets that computes nothing for taps beyond a border of zeros: on maps of a few pixels
// most taps of most outputs are.
//   out[p][g*V + v] = bias[g*V + v] + sum_{t,c} weight[g][t][c][v] * in[s*p + offset t][c]
// Tap by tap, the inputs of the outputs that the tap reaches are packed tile by tile as [c][pixel], and a tile of outputs
// stays in registers while its channels run. Lanes are outputs. The weights are read in one stream from memory, so each
// block of them is fetched while the one before is multiplied.
#pragma once
#include "border.h"
#include "convattn.h"
#include "vectors.h"

namespace {

constexpr int tile_pixels = vector_registers == 32 ? 14 : 6, tile_vectors = 2;
constexpr int tile_outputs = tile_vectors * native_lanes;
constexpr int packed_inputs = 256;   // channels that are packed at once
constexpr int block_pixels = 448;    // outputs whose sums and inputs stay in a core's second-level cache

struct OffsetConv {
    int B, C, blocks, V, H, W, Ho, Wo, taps, sy, sx, border, threads;
    const int32_t* offsets;
    explicit OffsetConv(const ConvattnOffsetConv& s)
        : B(s.batch), C(s.inputs), blocks(s.blocks), V(s.block_outputs), H(s.height), W(s.width), Ho(s.out_height), Wo(s.out_width),
          taps(s.taps), sy(s.stride_y), sx(s.stride_x), border(s.border), threads(s.threads), offsets(s.offsets) {}
    int tiles_of_block() const { return ceil_div(V, tile_outputs); }
    int columns() const { return blocks * tiles_of_block(); }
};

struct FetchAhead {
    const char* at;
    ptrdiff_t step;  // bytes for every channel
};

// P outputs of up to 2 vectors: out[i][...] = begin[...] + sum_c x[c*x_step + i] * w[c*w_step + ...]; added to where `begin` is null.
// Tail: the last vector has `last` lanes.
template <int P, int O, bool Tail>
void offset_conv_tile(const float* x, ptrdiff_t x_step, const float* w, ptrdiff_t w_step, int inputs, float* const* out, int last, const float* begin,
                      FetchAhead ahead) {
    constexpr int L = native_lanes;
    Vec<L> sum[P][O] = {};
    for (int c = 0; c < inputs; c++, x += x_step, w += w_step, ahead.at += ahead.step) {
        Vec<L> tap[O];
        repeat<O>([&](auto o) UNROLLED {
            tap[o] = Tail && o == O - 1 ? load_first<L>(w + o * L, last) : load<L>(w + o * L);
            PIN(tap[o]);
        });
        __builtin_prefetch(ahead.at, 0, 2);
        __builtin_prefetch(ahead.at + 64, 0, 2);
        repeat<P>([&](auto i) UNROLLED {
            const float value = x[i];
            repeat<O>([&](auto o) UNROLLED { sum[i][o] += value * tap[o]; });
        });
    }
    repeat<P>([&](auto i) UNROLLED {
        repeat<O>([&](auto o) UNROLLED {
            float* target = out[i] + o * L;
            const float* from = begin ? begin + o * L : target;
            if constexpr (Tail && o == O - 1) store_first<L>(target, load_first<L>(from, last) + sum[i][o], last);
            else store<L>(target, load<L>(from) + sum[i][o]);
        });
    });
}

typedef void (*OffsetConvTile)(const float*, ptrdiff_t, const float*, ptrdiff_t, int, float* const*, int, const float*, FetchAhead);

template <int O, bool Tail, int... P> OffsetConvTile tile_of(int pixels, Indices<P...>) {
    static constexpr OffsetConvTile of[] = {offset_conv_tile<P + 1, O, Tail>...};
    return of[pixels - 1];
}
OffsetConvTile tile_of(int pixels, int vectors, bool tail) {
    typename MakeIndices<tile_pixels>::type up_to;
    if (vectors == 1) return tail ? tile_of<1, true>(pixels, up_to) : tile_of<1, false>(pixels, up_to);
    return tail ? tile_of<2, true>(pixels, up_to) : tile_of<2, false>(pixels, up_to);
}

// Channels of up to tile_pixels pixels as packed[c][pixels]; up to a vector behind the last is overwritten.
void pack_tile(const float* const* pixel, int pixels, int channels, float* packed) {
    constexpr int L = native_lanes;
    int c = 0;
    if constexpr (tile_pixels <= L) {
        const float* from[L];
        for (int i = 0; i < L; i++) from[i] = pixel[i < pixels ? i : 0];
        for (; c + L <= channels; c += L) {
            Vec<L> v[L];
            repeat<L>([&](auto i) UNROLLED { v[i] = load<L>(from[i] + c); });
            transpose<L>(v);
            repeat<L>([&](auto i) UNROLLED { store<L>(packed + (ptrdiff_t)(c + i) * pixels, v[i]); });
        }
    }
    for (; c < channels; c++)
        for (int i = 0; i < pixels; i++) packed[(ptrdiff_t)c * pixels + i] = pixel[i][c];
}

// Some rows of outputs, counted through the batch, and some columns of tiles.
struct OffsetConvUnit {
    const OffsetConv& p;
    const ConvattnMap &in, &out;
    const float *weight, *bias;
    int64_t first_row;
    int rows, first_column, last_column;

    float* at_output(int64_t row, int x) const { return out.data + row / p.Ho * out.image + row % p.Ho * out.row + x * out.column; }

    void begin() const {
        const int tiles = p.tiles_of_block();
        for (int j = first_column; j < last_column; j++) {
            const int o = j % tiles * tile_outputs, from = j / tiles * p.V + o, width = smaller(tile_outputs, p.V - o);
            for (int64_t row = first_row; row < first_row + rows; row++)
                for (int x = 0; x < p.Wo; x++) {
                    float* target = at_output(row, x) + from;
                    if (bias) memcpy(target, bias + from, width * sizeof(float));
                    else memset(target, 0, width * sizeof(float));
                }
        }
    }

    // The outputs that a tap reaches, and what it reads for each.
    int reached(int t, const float** source, float** target) const {
        int n = 0;
        for (int64_t row = first_row; row < first_row + rows; row++) {
            const int y = border_source((int)(row % p.Ho) * p.sy + p.offsets[2 * t], p.H, p.border);
            if (y < 0) continue;
            const float* from = in.data + row / p.Ho * in.image + y * in.row;
            for (int x = 0; x < p.Wo; x++) {
                const int column = border_source(x * p.sx + p.offsets[2 * t + 1], p.W, p.border);
                if (column < 0) continue;
                source[n] = from + column * in.column;
                target[n++] = at_output(row, x);
            }
        }
        return n;
    }

    const float* weights(int t, int c, int column) const {
        return weight + (((size_t)(column / p.tiles_of_block()) * p.taps + t) * p.C + c) * p.V;
    }

    void run() const {
        begin();
        const int pixels = rows * p.Wo, chunk = smaller(packed_inputs, p.C);
        if (!scratch.reserve((size_t)pixels * (chunk + 4) + native_lanes)) return;
        float* packed = scratch.take((size_t)pixels * chunk + native_lanes);
        const float** source = scratch.take_array<const float*>(pixels);
        float** target = scratch.take_array<float*>(pixels);
        for (int t = 0; t < p.taps; t++) {
            const int n = reached(t, source, target), tiles = ceil_div(n, tile_pixels);
            if (n == 0) continue;
            for (int c = 0; c < p.C; c += chunk) {
                const int channels = smaller(chunk, p.C - c);
                for (int k = 0; k < tiles; k++) {
                    const int first = (int)((int64_t)n * k / tiles), count = (int)((int64_t)n * (k + 1) / tiles) - first;
                    const float* from[tile_pixels] = {};
                    for (int i = 0; i < count; i++) from[i] = source[first + i] + c;
                    pack_tile(from, count, channels, packed + (size_t)first * channels);
                }
                multiply(t, c, channels, n, tiles, packed, target);
            }
        }
    }

    void multiply(int t, int c, int channels, int n, int tiles, const float* packed, float* const* target) const {
        const int tiles_of_block = p.tiles_of_block();
        const bool more = c + channels < p.C;
        for (int j = first_column; j < last_column; j++) {
            const int s = j % tiles_of_block, o = s * tile_outputs, width = smaller(tile_outputs, p.V - o);
            const int vectors = ceil_div(width, native_lanes), last = width - (vectors - 1) * native_lanes;
            const float* w = weights(t, c, j) + o;
            const bool next_here = j - s + tiles_of_block < last_column;
            const int next_t = next_here || more ? t : smaller(t + 1, p.taps - 1);
            const int next_c = next_here ? c : more ? c + channels : 0;
            const char* next = (const char*)weights(next_t, next_c, next_here ? j + tiles_of_block : first_column);
            const ptrdiff_t row = (ptrdiff_t)p.V * sizeof(float), shares = (ptrdiff_t)tiles_of_block * tiles;
            for (int k = 0; k < tiles; k++) {
                const int first = (int)((int64_t)n * k / tiles), count = (int)((int64_t)n * (k + 1) / tiles) - first;
                float* to[tile_pixels];
                for (int i = 0; i < count; i++) to[i] = target[first + i] + (j / tiles_of_block) * p.V + o;
                const FetchAhead ahead = {next + ((ptrdiff_t)s * tiles + k) * (row * channels / shares), row / shares};
                tile_of(count, vectors, last < native_lanes)(packed + (size_t)first * channels, count, w, p.V, channels, to, last, nullptr, ahead);
            }
        }
    }
};

void offset_conv(const OffsetConv& p, const ConvattnMap& in, const float* weight, const float* bias, const ConvattnMap& out) {
    const int64_t rows = (int64_t)p.B * p.Ho;
    if (rows == 0) return;
    const int64_t row_blocks = smaller(rows, ceil_div(rows * p.Wo, (int64_t)block_pixels));
    // Few blocks: all threads on each, every one with outputs, hence weights, of its own.
    const int splits = row_blocks < 4 * p.threads ? smaller(p.threads, p.columns()) : 1;
    auto first_row = [&](int64_t block) { return rows / row_blocks * block + smaller(block, rows % row_blocks); };
#pragma omp parallel for schedule(dynamic, 1) num_threads(p.threads) if (p.threads > 1)
    for (int64_t u = 0; u < row_blocks * splits; u++) {
        const int64_t block = u / splits, split = u % splits, first = first_row(block);
        OffsetConvUnit{p, in, out, weight, bias, first, (int)(first_row(block + 1) - first), first_of_part(p.columns(), split, splits),
                       first_of_part(p.columns(), split + 1, splits)}.run();
    }
}

}  // namespace
