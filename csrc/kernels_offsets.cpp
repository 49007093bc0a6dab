// correlate, aggregate, scatter and attend over any set of offsets, on padded planes (planar.h): lanes are pixels.
//
// Work is cut into units of one image, one head and a band of output rows; a band's planes stay in the cache.
#include "planar.h"
#include "softmax.h"

namespace {

constexpr int group = 8;                      // channels whose sums are held in registers
constexpr int weights_ahead = 64;             // how many floats ahead the weights of every tap are fetched
constexpr size_t band_floats = 128 * 1024;    // planes of one band: half a core's second-level cache

ptrdiff_t* distances(const Geometry& g) {
    ptrdiff_t* distance = scratch.take_array<ptrdiff_t>(g.taps);
    for (int m = 0; m < g.taps; m++) distance[m] = g.distance(m);
    return distance;
}
size_t distance_floats(const Geometry& g) { return 2 * (size_t)g.taps; }

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

ENTRY(convattn_correlate)(const ConvattnOffsets* s, const ConvattnMap* q, const ConvattnMap* k, float* logits) {
    const int64_t before = failures;
    const Geometry g(*s);
    const int band = rows_of_unit(g, (size_t)g.d * (g.sy * g.row_size() + out_row_size(g)));
    choose_lanes(g, [&](auto lanes) {
        constexpr int L = decltype(lanes)::value;
        over_units(g, band, [&](int b, int n, int y0, int rows) {
            if (!scratch.reserve(padded_floats(g, g.d, rows) + out_floats(g, g.d, rows) + distance_floats(g))) return;
            const ptrdiff_t* distance = distances(g);
            const Planes keys = padded_planes(g, *k, b, n * g.d, g.d, y0, rows, scratch.take(padded_floats(g, g.d, rows)));
            const Planes queries = out_planes(g, *q, b, n * g.d, g.d, y0, rows, scratch.take(out_floats(g, g.d, rows)));
            const size_t plane = (size_t)g.Ho * g.Wo;
            float* out = logits + ((size_t)b * g.N + n) * g.taps * plane;
            for (int r = 0; r < rows; r++)
                for (int x = 0; x < g.Wo; x += L) {
                    float* target = out + (size_t)(y0 + r) * g.Wo + x;
                    const int valid = smaller(L, g.Wo - x);
                    correlate_all<L, false>(queries.at(0, r) + x, queries.channel_step(), keys.at(0, g.sy * r) + x, keys.channel_step(),
                                            distance, nullptr, g.d, g.taps, [&](int m, Vec<L> sum) UNROLLED {
                                                if (valid == L) store<L>(target + m * plane, sum);
                                                else store_first<L>(target + m * plane, sum, valid);
                                            });
                }
        });
    });
    return failures != before;
}

ENTRY(convattn_aggregate)(const ConvattnOffsets* s, const float* weights, const ConvattnMap* v, const ConvattnMap* out) {
    const int64_t before = failures;
    const Geometry g(*s);
    const int band = rows_of_unit(g, (size_t)g.d * (g.sy * g.row_size() + out_row_size(g)));
    choose_lanes(g, [&](auto lanes) {
        constexpr int L = decltype(lanes)::value;
        over_units(g, band, [&](int b, int n, int y0, int rows) {
            if (!scratch.reserve(padded_floats(g, g.d, rows) + out_floats(g, g.d, rows) + distance_floats(g))) return;
            const ptrdiff_t* distance = distances(g);
            const Planes values = padded_planes(g, *v, b, n * g.d, g.d, y0, rows, scratch.take(padded_floats(g, g.d, rows)));
            const Planes result = {scratch.take(out_floats(g, g.d, rows)), rows, out_row_size(g)};
            const size_t plane = (size_t)g.Ho * g.Wo;
            const float* w = weights + ((size_t)b * g.N + n) * g.taps * plane;
            for (int r = 0; r < rows; r++)
                for (int x = 0; x < g.Wo; x += L) {
                    const float* at = w + (size_t)(y0 + r) * g.Wo + x;
                    const int valid = smaller(L, g.Wo - x);
                    const float* value = values.at(0, g.sy * r) + x;
                    // too many streams for the processor to foresee
                    for (int m = 0; m < g.taps; m++) __builtin_prefetch(at + m * plane + weights_ahead, 0, 2);
                    auto store_sum = [&](int c, Vec<L> sum) UNROLLED { store<L>(result.at(c, r) + x, sum); };
                    if (valid == L)
                        aggregate_all<L>(value, values.channel_step(), distance, nullptr, g.d, g.taps,
                                         [&](int m) UNROLLED { return load<L>(at + m * plane); }, store_sum);
                    else
                        aggregate_all<L>(value, values.channel_step(), distance, nullptr, g.d, g.taps,
                                         [&](int m) UNROLLED { return load_first<L>(at + m * plane, valid); }, store_sum);
                }
            store_planes(result, *out, b, n * g.d, g.d, y0, rows, g.Wo);
        });
    });
    return failures != before;
}

// `out` is added to.
ENTRY(convattn_scatter)(const ConvattnOffsets* s, const float* weights, const ConvattnMap* u, const ConvattnMap* out) {
    const int64_t before = failures;
    const Geometry g(*s);
    const int band = rows_of_band(g, (size_t)g.d * (g.sy * g.row_size() + out_row_size(g)) + (size_t)g.taps * g.Wo);
    // Bands of a head share target rows, so they run one after the other; where heads are few, channels are shared out.
    const int64_t heads = (int64_t)g.B * g.N;
    const int parts = heads >= g.threads ? 1 : smaller(g.threads, ceil_div(g.d, group));
    const int part = round_up(ceil_div(g.d, parts), group);
    choose_lanes(g, [&](auto lanes) {
        constexpr int L = decltype(lanes)::value;
#pragma omp parallel for schedule(dynamic, 1) num_threads(g.threads) if (g.threads > 1)
        for (int64_t unit = 0; unit < heads * parts; unit++) {
            const int b = (int)(unit / parts / g.N), n = (int)(unit / parts % g.N);
            const int first = (int)(unit % parts) * part, channels = smaller(part, g.d - first);
            const size_t plane = (size_t)g.Ho * g.Wo;
            for (int y0 = 0; channels > 0 && y0 < g.Ho; y0 += band) {
                const int rows = smaller(band, g.Ho - y0), c0 = n * g.d + first;
                if (!scratch.reserve(ZeroPadded::floats(g, g.taps + channels, rows) + padded_floats(g, channels, rows) + out_floats(g, channels, rows)))
                    break;
                const ZeroPadded w(g, g.taps, rows), source(g, channels, rows);
                for (int m = 0; m < g.taps; m++)
                    for (int r = 0; r < rows; r++)
                        memcpy(w.at(m, r), weights + (((size_t)b * g.N + n) * g.taps + m) * plane + (size_t)(y0 + r) * g.Wo, g.Wo * 4);
                const Planes maps = out_planes(g, *u, b, c0, channels, y0, rows, scratch.take(out_floats(g, channels, rows)));
                for (int c = 0; c < channels; c++)
                    for (int r = 0; r < rows; r++) memcpy(source.at(c, r), maps.at(c, r), g.Wo * 4);
                const Planes target = {scratch.take(padded_floats(g, channels, rows)), g.padded_rows(rows), g.row_size()};
                scatter_band<L>(g, w, source, channels, rows, target);
                fold_planes(g, target, channels, y0, *out, b, c0);
            }
        }
    });
    return failures != before;
}

// --- attend ----------------------------------------------------------------------------------------------------------

namespace {

struct AttendInputs {
    const ConvattnMap &q, &k, &v;
    const float *bias, *key_offsets;
    float softmax_scale;
};

// logits[m][lane] in base 2 of L pixels; `query` is [d][L], already scaled.
template <int L>
INLINE void attend_logits(const Geometry& g, const AttendInputs& in, int n, const float* query, const float* key, size_t step,
                          const ptrdiff_t* distance, float* logits) {
    const float* table = in.key_offsets ? in.key_offsets + (size_t)n * g.taps * g.d : nullptr;
    const float* bias = in.bias ? in.bias + (size_t)n * g.taps : nullptr;
    auto result = [&](int m, Vec<L> sum) UNROLLED {
        if (bias) sum += bias[m] * 1.4426950408889634f;
        store<L>(logits + m * L, sum);
    };
    if (table) correlate_all<L, true>(query, L, key, step, distance, table, g.d, g.taps, result);
    else correlate_all<L, false>(query, L, key, step, distance, nullptr, g.d, g.taps, result);
}

template <int L> void attend_band(const Geometry& g, const AttendInputs& in, const ConvattnMap& out, int b, int n, int y0, int rows) {
    const size_t padded = padded_floats(g, g.d, rows), plain = out_floats(g, g.d, rows);
    if (!scratch.reserve(2 * padded + 2 * plain + distance_floats(g) + (size_t)(g.taps + g.d + 1) * L)) return;
    const ptrdiff_t* distance = distances(g);
    const Planes keys = padded_planes(g, in.k, b, n * g.d, g.d, y0, rows, scratch.take(padded));
    const Planes values = padded_planes(g, in.v, b, n * g.d, g.d, y0, rows, scratch.take(padded));
    const Planes queries = out_planes(g, in.q, b, n * g.d, g.d, y0, rows, scratch.take(plain));
    const Planes result = {scratch.take(plain), rows, out_row_size(g)};
    float *logits = scratch.take((size_t)g.taps * L), *query = scratch.take((size_t)g.d * L), *inverse = scratch.take(L);
    const float to_base_2 = in.softmax_scale * 1.4426950408889634f;
    for (int r = 0; r < rows; r++)
        for (int x = 0; x < g.Wo; x += L) {
            for (int c = 0; c < g.d; c++) store<L>(query + c * L, load<L>(queries.at(c, r) + x) * to_base_2);
            attend_logits<L>(g, in, n, query, keys.at(0, g.sy * r) + x, keys.channel_step(), distance, logits);
            softmax<L>(logits, g.taps, inverse);
            const Vec<L> norm = load<L>(inverse);
            aggregate_all<L>(values.at(0, g.sy * r) + x, values.channel_step(), distance, nullptr, g.d, g.taps,
                             [&](int m) UNROLLED { return load<L>(logits + m * L); },
                             [&](int c, Vec<L> sum) UNROLLED { store<L>(result.at(c, r) + x, sum * norm); });
        }
    store_planes(result, out, b, n * g.d, g.d, y0, rows, g.Wo);
}

// One head of one image, band by band. dS and P of a band lie zero-padded for the scatter of dk and dv.
template <int L> struct AttendBackward {
    const Geometry& g;
    const AttendInputs& in;
    const ConvattnMap &dout, &dq, &dk, &dv;
    const int b, n;
    double *dbias, *dtable;  // of this image and head, or null

    void run(int band) {
        for (int i = 0; dbias && i < g.taps; i++) dbias[i] = 0;
        for (size_t i = 0; dtable && i < (size_t)g.taps * g.d; i++) dtable[i] = 0;
        for (int y0 = 0; y0 < g.Ho; y0 += band) rows(y0, smaller(band, g.Ho - y0));
    }

    void rows(int y0, int rows) {
        const size_t padded = padded_floats(g, g.d, rows), plain = out_floats(g, g.d, rows);
        if (!scratch.reserve(2 * padded + 3 * plain + distance_floats(g) + ZeroPadded::floats(g, 2 * (g.taps + g.d), rows) +
                             (size_t)(2 * g.taps + 2 * g.d + 1) * L + (size_t)g.taps * (g.d + 1) * L))
            return;
        const ptrdiff_t* distance = distances(g);
        const int c0 = n * g.d;
        const Planes keys = padded_planes(g, in.k, b, c0, g.d, y0, rows, scratch.take(padded));
        const Planes values = padded_planes(g, in.v, b, c0, g.d, y0, rows, scratch.take(padded));
        const Planes queries = out_planes(g, in.q, b, c0, g.d, y0, rows, scratch.take(plain));
        const Planes grads = out_planes(g, dout, b, c0, g.d, y0, rows, scratch.take(plain));
        const Planes dqueries = {scratch.take(plain), rows, out_row_size(g)};
        const ZeroPadded P(g, g.taps, rows), dS(g, g.taps, rows), q_padded(g, g.d, rows), g_padded(g, g.d, rows);
        float *prob = scratch.take((size_t)g.taps * L), *dprob = scratch.take((size_t)g.taps * L);
        float *query = scratch.take((size_t)g.d * L), *grad = scratch.take((size_t)g.d * L), *inverse = scratch.take(L);
        float *table_sum = scratch.take((size_t)g.taps * g.d * L), *bias_sum = scratch.take((size_t)g.taps * L);
        if (dtable) memset(table_sum, 0, (size_t)g.taps * g.d * L * 4);
        if (dbias) memset(bias_sum, 0, (size_t)g.taps * L * 4);
        const float* table = in.key_offsets ? in.key_offsets + (size_t)n * g.taps * g.d : nullptr;
        for (int r = 0; r < rows; r++)
            for (int x = 0; x < g.Wo; x += L) {
                const int valid = smaller(L, g.Wo - x);
                for (int c = 0; c < g.d; c++) {
                    const Vec<L> qv = load<L>(queries.at(c, r) + x), gv = load<L>(grads.at(c, r) + x);
                    store<L>(query + c * L, qv * (in.softmax_scale * 1.4426950408889634f));
                    store<L>(grad + c * L, gv);
                    store_first<L>(q_padded.at(c, r) + x, qv, valid);
                    store_first<L>(g_padded.at(c, r) + x, gv, valid);
                }
                attend_logits<L>(g, in, n, query, keys.at(0, g.sy * r) + x, keys.channel_step(), distance, prob);
                correlate_all<L, false>(grad, L, values.at(0, g.sy * r) + x, values.channel_step(), distance, nullptr, g.d, g.taps,
                                        [&](int m, Vec<L> sum) UNROLLED { store<L>(dprob + m * L, sum); });
                softmax<L>(prob, g.taps, inverse);
                const Vec<L> norm = load<L>(inverse);
                Vec<L> mean = {};
                for (int m = 0; m < g.taps; m++) mean += load<L>(prob + m * L) * load<L>(dprob + m * L);
                mean *= norm;
                for (int m = 0; m < g.taps; m++) {
                    const Vec<L> p = load<L>(prob + m * L) * norm, dlogit = p * (load<L>(dprob + m * L) - mean);
                    store_first<L>(P.at(m, r) + x, p, valid);
                    store_first<L>(dS.at(m, r) + x, dlogit * in.softmax_scale, valid);
                    store<L>(dprob + m * L, dlogit * in.softmax_scale);
                    if (dbias) store<L>(bias_sum + m * L, load<L>(bias_sum + m * L) + only_first(dlogit, valid));
                }
                aggregate_all<L>(keys.at(0, g.sy * r) + x, keys.channel_step(), distance, table, g.d, g.taps,
                                 [&](int m) UNROLLED { return load<L>(dprob + m * L); },
                                 [&](int c, Vec<L> sum) UNROLLED { store<L>(dqueries.at(c, r) + x, sum); });
                if (dtable) add_table(dprob, queries, r, x, valid, table_sum);
            }
        store_planes(dqueries, dq, b, c0, g.d, y0, rows, g.Wo);
        for (int i = 0; dbias && i < g.taps; i++) dbias[i] += sum_of_lanes<L>(load<L>(bias_sum + i * L));
        for (size_t i = 0; dtable && i < (size_t)g.taps * g.d; i++) dtable[i] += sum_of_lanes<L>(load<L>(table_sum + i * L));
        const Planes target = {keys.data, g.padded_rows(rows), g.row_size()};  // the keys are done with
        scatter_band<L>(g, dS, q_padded, g.d, rows, target);
        fold_planes(g, target, g.d, y0, dk, b, c0);
        scatter_band<L>(g, P, g_padded, g.d, rows, target);
        fold_planes(g, target, g.d, y0, dv, b, c0);
    }

    static Vec<L> only_first(Vec<L> v, int valid) {
        alignas(64) float lanes[L];
        store<L>(lanes, v);
        return load_first<L>(lanes, valid);
    }

    // dr[m][c] += dS[m] q[c], a lane a pixel
    void add_table(const float* dlogits, const Planes& queries, int r, int x, int valid, float* table_sum) {
        for (int m = 0; m < g.taps; m++) {
            const Vec<L> weight = only_first(load<L>(dlogits + m * L), valid);
            for (int c = 0; c < g.d; c++) {
                float* t = table_sum + ((size_t)m * g.d + c) * L;
                store<L>(t, load<L>(t) + weight * load_first<L>(queries.at(c, r) + x, valid));
            }
        }
    }
};

}  // namespace

ENTRY(convattn_attend)(const ConvattnOffsets* s, const ConvattnMap* q, const ConvattnMap* k, const ConvattnMap* v, const float* bias,
                       const float* key_offsets, const ConvattnMap* out) {
    const int64_t before = failures;
    const Geometry g(*s);
    const AttendInputs in = {*q, *k, *v, bias, key_offsets, s->softmax_scale};
    const int band = rows_of_unit(g, 2 * (size_t)g.d * (g.sy * g.row_size() + out_row_size(g)));
    choose_lanes(g, [&](auto lanes) {
        over_units(g, band, [&](int b, int n, int y0, int rows) { attend_band<decltype(lanes)::value>(g, in, *out, b, n, y0, rows); });
    });
    return failures != before;
}

// dk and dv are added to.
ENTRY(convattn_attend_backward)(const ConvattnOffsets* s, const ConvattnMap* q, const ConvattnMap* k, const ConvattnMap* v,
                                const float* bias, const float* key_offsets, const ConvattnMap* dout, const ConvattnMap* dq,
                                const ConvattnMap* dk, const ConvattnMap* dv, double* dbias, double* dkey_offsets) {
    const int64_t before = failures;
    const Geometry g(*s);
    const AttendInputs in = {*q, *k, *v, bias, key_offsets, s->softmax_scale};
    const int band = rows_of_band(g, (size_t)g.d * (2 * g.sy * g.row_size() + 5 * out_row_size(g)) + 2 * (size_t)g.taps * g.Wo);
    choose_lanes(g, [&](auto lanes) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(g.threads) if (g.threads > 1)
        for (int64_t unit = 0; unit < (int64_t)g.B * g.N; unit++) {
            AttendBackward<decltype(lanes)::value> head = {g, in, *dout, *dq, *dk, *dv, (int)(unit / g.N), (int)(unit % g.N),
                                                           dbias ? dbias + (size_t)unit * g.taps : nullptr,
                                                           dkey_offsets ? dkey_offsets + (size_t)unit * g.taps * g.d : nullptr};
            head.run(band);
        }
    });
    return failures != before;
}
