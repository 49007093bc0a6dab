// What the kernels over any set of offsets share, on padded planes (planar.h): lanes are pixels.
//
// Work is cut into units of one image, one head and a band of output rows; a band's planes stay in the cache.
#pragma once
#include "planar.h"

namespace {

constexpr int group = 8;                      // channels whose sums are held in registers
constexpr size_t band_floats = 128 * 1024;    // planes of one band: half a core's second-level cache

ptrdiff_t* distances(const Geometry& g) {
    ptrdiff_t* distance = scratch.take_array<ptrdiff_t>(g.taps);
    for (int m = 0; m < g.taps; m++) distance[m] = g.distance(m);
    return distance;
}

// Output rows of a band: as many as fit the cache, not so few that rows are mostly read twice.
int rows_of_band(const Geometry& g, size_t floats_per_row) {
    const int fit = (int)(band_floats / (floats_per_row + 1)), reach = ceil_div(g.top + g.below, 2 * g.sy);
    return smaller(g.Ho, larger(larger(fit, reach), 1));
}
// The same where bands are the units of work: enough of them for all threads.
int rows_of_unit(const Geometry& g, size_t floats_per_row) {
    const int64_t share = ceil_div((int64_t)g.B * g.N * g.Ho, (int64_t)g.threads);
    return larger(1, (int)smaller((int64_t)rows_of_band(g, floats_per_row), share));
}

template <class F> void over_units(const Geometry& g, int band_rows, F f) {
    const int bands = ceil_div(g.Ho, band_rows);
#pragma omp parallel for schedule(dynamic, 1) num_threads(g.threads) if (g.threads > 1)
    for (int64_t u = 0; u < (int64_t)g.B * g.N * bands; u++) {
        const int y0 = (int)(u % bands) * band_rows;
        f((int)(u / bands / g.N), (int)(u / bands % g.N), y0, smaller(band_rows, g.Ho - y0));
    }
}

// f(Index<L>): half vectors for maps of few columns.
template <class F> void choose_lanes(const Geometry& g, F f) {
    if (native_lanes > 8 && g.Wo <= 8) f(Index<smaller(native_lanes, 8)>{});
    else f(Index<native_lanes>{});
}

// result(m, sum) for every tap: sum_c q[c] * (key[c][distance m] + table[m][c]); table may be null.
template <int L, int T, bool Table, class Result>
INLINE void correlate_taps(const float* q, size_t q_step, const float* key, size_t key_step, const ptrdiff_t* distance,
                           const float* table, int d, int m, Result result) {
    Vec<L> sum[T] = {};
    ptrdiff_t at[T];
    repeat<T>([&](auto t) UNROLLED { at[t] = distance[m + t]; });
    for (int c = 0; c < d; c++, q += q_step, key += key_step) {
        Vec<L> query = load<L>(q);
        PIN(query);
        repeat<T>([&](auto t) UNROLLED {
            if constexpr (Table) sum[t] += query * (load<L>(key + at[t]) + table[(size_t)(m + t) * d + c]);
            else sum[t] += query * load<L>(key + at[t]);
        });
    }
    repeat<T>([&](auto t) UNROLLED { result(m + t, sum[t]); });
}
template <int L, bool Table, class Result>
INLINE void correlate_all(const float* q, size_t q_step, const float* key, size_t key_step, const ptrdiff_t* distance,
                          const float* table, int d, int taps, Result result) {
    int m = 0;
    for (; m + 8 <= taps; m += 8) correlate_taps<L, 8, Table>(q, q_step, key, key_step, distance, table, d, m, result);
    for (; m + 2 <= taps; m += 2) correlate_taps<L, 2, Table>(q, q_step, key, key_step, distance, table, d, m, result);
    for (; m < taps; m++) correlate_taps<L, 1, Table>(q, q_step, key, key_step, distance, table, d, m, result);
}

// result(c, sum) for every channel: sum_m weight(m) * (value[c][distance m] + table[m][c])
template <int L, int G, class Weight, class Result>
INLINE void aggregate_channels(const float* value, size_t step, const ptrdiff_t* distance, const float* table, int d, int taps, int c,
                               Weight weight, Result result) {
    Vec<L> sum[G] = {};
    for (int m = 0; m < taps; m++) {
        Vec<L> w = weight(m);
        PIN(w);
        const float* v = value + c * step + distance[m];
        if (table) {
            repeat<G>([&](auto i) UNROLLED { sum[i] += w * (load<L>(v + i * step) + table[(size_t)m * d + c + i]); });
        } else {
            repeat<G>([&](auto i) UNROLLED { sum[i] += w * load<L>(v + i * step); });
        }
    }
    repeat<G>([&](auto i) UNROLLED { result(c + i, sum[i]); });
}
template <int L, class Weight, class Result>
INLINE void aggregate_all(const float* value, size_t step, const ptrdiff_t* distance, const float* table, int d, int taps,
                          Weight weight, Result result) {
    int c = 0;
    for (; c + group <= d; c += group) aggregate_channels<L, group>(value, step, distance, table, d, taps, c, weight, result);
    for (; c < d; c++) aggregate_channels<L, 1>(value, step, distance, table, d, taps, c, weight, result);
}

// --- scatter: rows of targets gather from the queries that see them --------------------------------------------------

// Weights (or maps) at the output resolution with zeros to the left and right, so that a shifted read needs no mask.
struct ZeroPadded {
    float* data;
    int rows, row_size, margin;  // row r of plane m begins, at column 0, at data + (m*rows + r)*row_size + margin
    static int margin_of(const Geometry& g) { return round_up((g.left + g.right) / g.sx, native_lanes) + native_lanes; }
    static int row_size_of(const Geometry& g) { return 2 * margin_of(g) + round_up(g.Wo, native_lanes); }
    static size_t floats(const Geometry& g, int planes, int rows) { return (size_t)planes * rows * row_size_of(g); }
    ZeroPadded(const Geometry& g, int planes, int rows)
        : data(scratch.take(floats(g, planes, rows))), rows(rows), row_size(row_size_of(g)), margin(margin_of(g)) {
        memset(data, 0, floats(g, planes, rows) * 4);
    }
    float* at(int m, int r) const { return data + ((size_t)m * rows + r) * row_size + margin; }
};

// target[c][padded position] of a band = sum of weights * u over the queries of the band that see the position; then
// fold(c0, channels, planes) may add the planes to a map.
template <int L>
void scatter_band(const Geometry& g, const ZeroPadded& weights, const ZeroPadded& u, int channels, int rows, const Planes& target) {
    const int plane_width = g.plane_width(), used = g.Wo + (g.left + g.right) / g.sx;
    for (int tr = 0; tr < g.padded_rows(rows); tr++)
        for (int phase = 0; phase < g.sx; phase++)
            for (int i0 = 0; i0 < used; i0 += L) {
                auto sums = [&](auto G, int c) UNROLLED {
                    Vec<L> sum[G.value] = {};
                    for (int m = 0; m < g.taps; m++) {
                        const int down = tr - g.dy(m) - g.top, across = g.dx(m) + g.left;
                        if (down < 0 || down % g.sy || down / g.sy >= rows || across % g.sx != phase) continue;
                        const int r = down / g.sy, j = i0 - across / g.sx;
                        if (j <= -L || j >= g.Wo) continue;
                        Vec<L> w = load<L>(weights.at(m, r) + j);
                        PIN(w);
                        repeat<G.value>([&](auto i) UNROLLED { sum[i] += w * load<L>(u.at(c + i, r) + j); });
                    }
                    repeat<G.value>([&](auto i) UNROLLED { store<L>(target.at(c + i, tr) + phase * plane_width + i0, sum[i]); });
                };
                int c = 0;
                for (; c + group <= channels; c += group) sums(Index<group>{}, c);
                for (; c < channels; c++) sums(Index<1>{}, c);
            }
}

// Adds the padded planes of a band to the pixels that they stand for: the adjoint of padded_planes.
void fold_planes(const Geometry& g, const Planes& planes, int channels, int y0, const ConvattnMap& map, int b, int c0) {
    constexpr int L = native_lanes;
    const int plane_width = g.plane_width(), columns = g.sx * (g.Wo - 1) + g.left + g.right + 1;
    for (int r = 0; r < planes.rows; r++) {
        const int y = border_source(g.sy * y0 + r - g.top, g.H, g.border);
        if (y < 0) continue;
        float* row = map.data + b * map.image + c0 * map.channel + y * map.row;
        for (int u = 0; u < columns;) {
            const int x = border_source(u - g.left, g.W, g.border);
            if (x < 0) {
                u++;
                continue;
            }
            const bool inner = g.sx == 1 && u - g.left >= 0 && u - g.left + L <= g.W && u + L <= columns;
            const float* src = planes.at(0, r) + (u % g.sx) * plane_width + u / g.sx;
            float* target = row + x * map.column;
            int c = 0;
            if (inner && map.channel == 1) {
                for (; c + L <= channels; c += L) {
                    Vec<L> v[L];
                    repeat<L>([&](auto i) UNROLLED { v[i] = load<L>(src + (c + i) * planes.channel_step()); });
                    transpose<L>(v);
                    repeat<L>([&](auto i) UNROLLED {
                        float* t = target + i * map.column + c;
                        store<L>(t, load<L>(t) + v[i]);
                    });
                }
            }
            for (; c < channels; c++) {
                const float* plane = src + c * planes.channel_step();
                float* t = target + c * map.channel;
                for (int l = 0; l < (inner ? L : 1); l++) t[l * map.column] += plane[l];
            }
            u += inner ? L : 1;
        }
    }
}

}  // namespace
