// Pixel-shift attention, forward: every output from its neighbours by any set of offsets.
//   out[p][c] = sum_t weight[t][c] * (softmax_scale * sum_{c' of c's head} q[p][c'] * k[s*p + offset t][c'] + bias[t][head])
//               * v[s*p + offset t][c]
// Lanes are channels, on rows of pixels (pixel_rows.h); similarities are held for one row of outputs.
#pragma once
#include "pixel_rows.h"

namespace {

// A table [taps][channels], of the channels from c0 on, in whole vectors; nothing gives zeros.
INLINE float* table_rows(const float* table, const Geometry& g, int c0, int channels, int depth) {
    float* rows = scratch.take((size_t)g.taps * depth);
    for (int m = 0; m < g.taps; m++) {
        if (table) copy_pixel(table + (size_t)m * g.C + c0, channels, rows + (size_t)m * depth);
        else memset(rows + (size_t)m * depth, 0, (size_t)depth * 4);
    }
    return rows;
}

// What one row of outputs is made of.
struct PixelShiftRow {
    Queries q;
    const PixelRows &keys, *values;  // values may be null
    const Upcoming& upcoming;
    // The taps that count, in order. A neighbour beyond a border of zeros does not, but for the bias where there is no v.
    const ptrdiff_t* distance;
    const float* const* weight;  // a row of the table
    const float* bias;           // of a head; where a head is one channel, its row lies `to_bias` behind the weights'
    ptrdiff_t to_bias;
    float* out;
    int64_t step;
};

// A head of several channels.
template <bool Value> NOINLINE void head_row(const PixelShiftRow& row, float scale, float* similarity, float* memory) {
    constexpr int L = native_lanes;
    const PixelRows& keys = row.keys;
    for (int x = 0; x < row.q.valid; x += L) {
        float* of_block = similarity + (ptrdiff_t)x * row.q.taps;
        correlate_pixels(row.q, x, keys, row.distance, row.upcoming, memory, [&](int m, Vec<L> sum) UNROLLED {
            store<L>(of_block + m * L, sum * scale + row.bias[m]);
        });
    }
    for (int x = 0; x < row.q.valid; x += L) {
        const float* of_block = similarity + (ptrdiff_t)x * row.q.taps;
        const Terms terms = {Value ? row.values->at(x) : nullptr, keys.step(), row.distance, row.weight, keys.depth, row.q.taps};
        float* out = row.out + x * row.step;
        aggregate_pixels<Value, true>(
            terms, smaller(L, row.q.valid - x), [&](int m, int i) UNROLLED { return of_block[m * L + i]; },
            [&](int i, int c, Vec<L> sum) UNROLLED { store_channels(out + i * row.step, c, row.q.channels, sum); });
    }
}

// Heads of one channel: element by element.
template <int P, int V, bool Value>
INLINE void elements_together(const PixelShiftRow& row, float scale, int x, int c) {
    constexpr int L = native_lanes;
    const int channels = row.q.channels;
    const ptrdiff_t step = row.keys.step();
    const float *keys = row.keys.at(x) + c, *values = Value ? row.values->at(x) + c : nullptr;
    row.upcoming.fetch(x, P, c, smaller(c + V * L, channels));
    Vec<L> query[P][V], sum[P][V] = {};
    repeat<P>([&](auto i) UNROLLED {
        repeat<V>([&](auto v) UNROLLED {
            const float* at = row.q.data + (x + i) * row.q.step + c + v * L;
            query[i][v] = scale * (c + (v + 1) * L <= channels ? load<L>(at) : load_first<L>(at, channels - c - v * L));
        });
    });
    for (int m = 0; m < row.q.taps; m++) {
        const float *w = row.weight[m] + c, *b = w + row.to_bias;
        repeat<P>([&](auto i) UNROLLED {
            repeat<V>([&](auto v) UNROLLED {
                Vec<L> term = query[i][v] * load<L>(keys + row.distance[m] + i * step + v * L) + load<L>(b + v * L);
                term *= load<L>(w + v * L);
                if constexpr (Value) term *= load<L>(values + row.distance[m] + i * step + v * L);
                sum[i][v] += term;
            });
        });
    }
    repeat<P>([&](auto i) UNROLLED {
        repeat<V>([&](auto v) UNROLLED { store_channels(row.out + (x + i) * row.step, c + v * L, channels, sum[i][v]); });
    });
}
template <bool Value> NOINLINE void elements_row(const PixelShiftRow& row, float scale) {
    constexpr int P = block, L = native_lanes;
    for (int c = 0; c < row.q.channels; c += L) {
        int x = 0;
        for (; x + P <= row.q.valid; x += P) elements_together<P, 1, Value>(row, scale, x, c);
        for (; x < row.q.valid; x++) elements_together<1, 1, Value>(row, scale, x, c);
    }
}

struct PixelShift {
    const Geometry g;  // d: the channels of a head, or where a head is one channel, those that are worked on together
    const bool elements;
    const float scale;
    const ConvattnMap &q, &k, &v, &out;
    const float *weight, *bias;  // bias [taps][heads], or null
    int heads;

    static constexpr int element_channels = 64;  // rows of so many fit the first-level cache
    static Geometry geometry(const ConvattnOffsets& s) {
        Geometry g(s);
        if (g.d == 1) g.d = smaller(element_channels, g.C), g.N = ceil_div(g.C, g.d);
        return g;
    }
    PixelShift(const ConvattnOffsets& s, const ConvattnMap& q, const ConvattnMap& k, const ConvattnMap& v, const ConvattnMap& out,
               const float* weight, const float* bias)
        : g(geometry(s)), elements(s.heads == s.channels), scale(s.softmax_scale), q(q), k(k), v(v), out(out), weight(weight),
          bias(bias), heads(s.heads) {}

    void rows(int b, int n, int y0, int y1) const {
        const int depth = PixelRows::depth_of(g.d), c0 = n * g.d, channels = smaller(g.d, g.C - c0);
        const size_t tables = 2 * (size_t)g.taps * depth, row_floats = (size_t)g.taps * (round_up(g.Wo, native_lanes) + 1) + correlate_floats(g);
        if (!scratch.reserve(2 * PixelRows::floats(g) + 2 * distance_floats(g) + tables + row_floats)) return;
        PixelRows keys(g, k, b, c0, channels), values(g, v.data ? v : k, b, c0, channels);
        ptrdiff_t* distance = scratch.take_array<ptrdiff_t>(g.taps);
        const float** factor = scratch.take_array<const float*>(g.taps);
        const float* weights = table_rows(weight, g, c0, channels, depth);
        const float* biases = elements ? table_rows(bias, g, c0, channels, depth) : weights;
        float *of_head = scratch.take(g.taps), *similarity = scratch.take((size_t)g.taps * round_up(g.Wo, native_lanes));
        float* memory = scratch.take(correlate_floats(g));
        const bool all = bias && !v.data;
        for (int y = y0; y < y1; y++) {
            keys.read(y, all);
            if (v.data) values.read(y, false);
            keys.distances(y, distance);
            Upcoming upcoming;
            upcoming.add(q.data + b * q.image + c0 + (y + 1) * q.row, q.column);
            keys.add_to(upcoming);
            if (v.data) values.add_to(upcoming);
            int taps = 0;
            for (int m = 0; m < g.taps; m++) {
                if (!all && !keys.finds_row(y, m)) continue;
                distance[taps] = distance[m], factor[taps] = weights + (size_t)m * depth;
                of_head[taps++] = bias && !elements ? bias[(size_t)m * heads + n] : 0.f;
            }
            const Queries queries = {q.data + b * q.image + c0 + y * q.row, q.column, channels, g.Wo, taps};
            const PixelShiftRow row = {queries, keys, &values, upcoming, distance, factor, of_head, biases - weights,
                                       out.data + b * out.image + c0 + y * out.row, out.column};
            if (elements && v.data) elements_row<true>(row, scale);
            else if (elements) elements_row<false>(row, scale);
            else if (v.data) head_row<true>(row, scale, similarity, memory);
            else head_row<false>(row, scale, similarity, memory);
        }
    }

    void run() const {
        over_shares(g, [&](int b, int n, int y0, int y1) { rows(b, n, y0, y1); });
    }
};

}  // namespace
