// ACmix's forward pass over bfloat16 maps by products of pairs (products.h). Each sum pairs what it adds up:
//
//   * dot products over channels: channels next to each other, as the map already holds them
//   * the convolution path: maps of q, k and v, two at a time
//   * weighted sums: columns next to each other; the softmax's weights are rounded to bfloat16
//
// k - p would not fit bfloat16, so -q . p is computed apart, in float32, and the logits begin with it.
#pragma once
#include "acmix_forward.h"

namespace {

// low[i] and high[i] become pair i.
INLINE void join_pairs(const BFloat16* low, const BFloat16* high, float* to, int count) {
    const typename MakeIndices<32>::type lanes;
    int i = 0;
    for (; i + 32 <= count; i += 32) {
        Halves<16> a, b, pairs[2];
        __builtin_memcpy(&a, low + i, sizeof a);
        __builtin_memcpy(&b, high + i, sizeof b);
        zip(a, b, pairs[0], pairs[1], lanes);
        store<16>(to + i, (Vec<16>)pairs[0]);
        store<16>(to + i + 16, (Vec<16>)pairs[1]);
    }
    for (; i + 16 <= count; i += 16) {
        const __m256i a = _mm256_loadu_si256((const __m256i*)(low + i)), b = _mm256_loadu_si256((const __m256i*)(high + i));
        store<16>(to + i, (Vec<16>)zip_halves((Halves<16>)_mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1), lanes));
    }
    for (; i < count; i++) {
        const uint32_t pair = low[i].bits | (uint32_t)high[i].bits << 16;
        __builtin_memcpy(to + i, &pair, 4);
    }
}
void round_pairs(const float* low, const float* high, float* to, size_t count) {
    size_t i = 0;
    for (; i + 16 <= count; i += 16) store<16>(to + i, rounded_pairs<16>(load<16>(low + i), load<16>(high + i)));
    const int rest = (int)(count - i);
    store_first<16>(to + i, rounded_pairs<16>(load_first<16>(low + i, rest), load_first<16>(high + i, rest)), rest);
}

// The rows of one image that a block of output rows reads, made when they are asked for: as pairs of maps
// [pixel][maps/2][d], an odd last map with zeros, and as pairs of columns [padded column][C].
struct PairedRows {
    const Problem& p;
    const BFloat16* image;
    const int columns;
    int next;
    Rows maps, values;
    BFloat16* zeros;

    static int map_pairs(const Problem& p) { return ceil_div(3 * p.N, 2); }
    static size_t map_row(const Problem& p) { return (size_t)p.W * map_pairs(p) * p.d; }
    static int value_columns(const Problem& p) { return p.S * (p.Wo - 1) + K - 1; }
    static size_t floats(const Problem& p) { return p.slots() * (map_row(p) + (size_t)value_columns(p) * p.C) + p.d; }

    // The caller has reserved floats(p).
    PairedRows(const Problem& p, const BFloat16* image, int first, Scratch& memory)
        : p(p), image(image), columns(value_columns(p)), next(first) {
        const size_t value_row = (size_t)columns * p.C;
        maps = {memory.take(p.slots() * map_row(p)), (ptrdiff_t)map_row(p), p.slots()};
        values = {memory.take(p.slots() * value_row), (ptrdiff_t)value_row, p.slots()};
        zeros = (BFloat16*)memory.take(p.d);
        memset(zeros, 0, p.d * sizeof(BFloat16));
    }

    void operator()(int, int last) {
        const int inputs = 3 * p.N;
        for (; next <= last; next++) {
            const BFloat16* row = image + (size_t)next * p.W * 3 * p.C;
            float* to = maps.at(next);
            for (int x = 0; x < p.W; x++)
                for (int t = 0; t < inputs; t += 2, to += p.d) {
                    const BFloat16* map = row + ((size_t)x * inputs + t) * p.d;
                    join_pairs(map, t + 1 < inputs ? map + p.d : zeros, to, p.d);
                }
            const BFloat16* v = row + 2 * p.C;
            to = values.at(next);
            for (int k = 0; k < columns; k++, to += p.C)
                join_pairs(v + (size_t)p.column[k] * 3 * p.C, v + (size_t)p.column[k + 1] * 3 * p.C, to, p.C);
        }
    }
};

// 2^x for x <= 0, to 8e-5 of it: bfloat16 keeps 4e-3. 0 of -infinity, NaN of NaN.
template <int L> INLINE Vec<L> exp2_roughly(Vec<L> x) {
    constexpr int down = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    Vec<L> r;  // x - floor(x)
    if constexpr (L == 16) r = (Vec<L>)_mm512_reduce_ps((__m512)x, down);
    else r = (Vec<L>)_mm256_reduce_ps((__m256)x, down);
    Vec<L> poly = 0.0780245f * r + 0.2260676f;
    poly = poly * r + 0.6958332f;
    poly = poly * r + 0.9999253f;
    if constexpr (L == 16) return (Vec<L>)_mm512_scalef_ps((__m512)poly, (__m512)x);
    else return (Vec<L>)_mm256_scalef_ps((__m256)poly, (__m256)x);
}

template <int L, int S> struct Logits<Pairs, L, S> {
    const Problem& p;
    const int length;
    float *column_x;           // of padded column S*i + f at [f][i]
    float *row_y;              // of the block's key rows
    float *along_x, *along_y;  // -(q . weight_x) x [row][K][L], -(q . weight_y) [row][L]

    static int plane(const Problem& p) { return p.Wo + L + K; }
    static size_t floats(const Problem& p) { return (size_t)S * plane(p) + S * (block_rows - 1) + K + block_rows * (K + 1) * L; }
    explicit Logits(const Problem& p)
        : p(p), length(plane(p)), column_x(scratch.take((size_t)S * length)), row_y(scratch.take(S * (block_rows - 1) + K)),
          along_x(scratch.take(block_rows * K * L)), along_y(scratch.take(block_rows * L)) {
        for (int f = 0; f < S; f++)
            for (int i = 0; i < length; i++) column_x[f * length + i] = p.column_x[S * i + f];
        memset(along_x, 0, block_rows * K * L * sizeof(float));
        memset(along_y, 0, block_rows * L * sizeof(float));
    }
    void key_row(int r, int y) const { row_y[r] = p.row_y(y); }
    static float query_factor(float) { return 1.f; }

    // Before the logits of a tile, whose planar queries are q.
    void tile(int rows, int x0, const float* q) const {
        if (!p.weight_x) return;
        for (int i = 0; i < rows; i++) {
            Vec<L> x = {}, y = {};
            for (int c = 0; c < p.d; c += 2) {
                Bits<L> pair, low, high;
                __builtin_memcpy(&pair, q + ((size_t)c / 2 * rows + i) * L, sizeof pair);
                low = pair << 16, high = pair & 0xffff0000;
                x -= (Vec<L>)low * p.weight_x[c] + (Vec<L>)high * p.weight_x[c + 1];
                y -= (Vec<L>)low * p.weight_y[c] + (Vec<L>)high * p.weight_y[c + 1];
            }
            for (int dx = 0; dx < K; dx++) store<L>(along_x + (i * K + dx) * L, x * load<L>(column_x + dx % S * length + x0 + dx / S));
            store<L>(along_y + i * L, y);
        }
    }
    INLINE Vec<L> operator()(int i, int r, int dx) const { return load<L>(along_x + (i * K + dx) * L) + load<L>(along_y + i * L) * row_y[r]; }

    // logits -> exp2(scale * (logit - max)) rounded, as pairs of a row's columns (tap_column); inverse = 1 / their sum.
    static void softmax(float* logits, float scale, float* inverse) {
        Vec<L> max = load<L>(logits);
        for (int j = 1; j < window_taps; j++) {
            const Vec<L> s = load<L>(logits + j * L);
            max = max < s ? s : max;
        }
        max *= scale;
        Vec<L> sum = {};
        const Bits<L> ones = Bits<L>{} + 0x3f803f80;  // pairs of them
        for (int dy = 0; dy < K; dy++) {
            Vec<L> e[K];
            repeat<K>([&](auto dx) UNROLLED { e[dx] = exp2_roughly<L>(load<L>(logits + (dy * K + dx) * L) * scale - max); });
            repeat<row_taps<Pairs>>([&](auto tap) UNROLLED {
                constexpr int first = tap_column<Pairs>(tap.value);
                const Vec<L> pair = rounded_pairs<L>(first == 2 * tap ? e[first] : Vec<L>{}, e[first + 1]);
                sum = Pairs::add_product<L>(sum, pair, (Vec<L>)ones);
                store<L>(logits + (dy * row_taps<Pairs> + tap) * L, pair);
            });
        }
        store<L>(inverse, 1.f / sum);
    }
};

}  // namespace
