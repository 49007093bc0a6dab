// Pixel-shift attention, backward. With s_t(p) = softmax_scale * q(p).k(p + t) + bias_t the factor of the forward pass,
//   ds_t(p)  = sum_c dout_c(p) weight_tc v_c(p + t),    dbias_t = sum_p ds_t(p)
//   dq(p)    = softmax_scale * sum_t ds_t(p) k(p + t),  dk(p + t) += softmax_scale * ds_t(p) q(p)
//   dv(p + t) += s_t(p) weight_t dout(p),               dweight_t = sum_p s_t(p) dout(p) v(p + t)
// Lanes are channels, on the maps as they lie: a border rule and a stride only tell which pixel a tap reads, and what is
// added to that pixel needs no folding back. First come s, ds and dq, which need all channels of a head, then dk, dv and the
// tables, which need a few at a time: rows, then channels, are shared out where images and heads are fewer than threads.
#pragma once
#include "pixel_rows.h"

namespace {

// A vector of channels, and one that has fewer left.
struct WholeVector {
    INLINE Vec<native_lanes> load(const float* p) const { return ::load<native_lanes>(p); }
    INLINE void store(float* p, Vec<native_lanes> v) const { ::store<native_lanes>(p, v); }
};
struct FirstLanes {
    int count;
    INLINE Vec<native_lanes> load(const float* p) const { return load_first<native_lanes>(p, count); }
    INLINE void store(float* p, Vec<native_lanes> v) const { store_first<native_lanes>(p, v, count); }
};
// f(Index<V>, part, c) for channels c to c + V*lanes - 1, `part` being how a vector of them is read and written.
template <int Most, class F> INLINE void over_channels(int channels, F f) {
    constexpr int L = native_lanes;
    int c = 0;
    for (; c + Most * L <= channels; c += Most * L) f(Index<Most>{}, WholeVector{}, c);
    if constexpr (Most > 1)
        for (; c + L <= channels; c += L) f(Index<1>{}, WholeVector{}, c);
    if (c < channels) f(Index<1>{}, FirstLanes{channels - c}, c);
}

// The sums of L vectors' lanes, one in a lane of the result.
template <int L, int Step = 1> INLINE Vec<L> sums_of_lanes(Vec<L>* v) {
    if constexpr (Step == L) return v[0];
    else {
        repeat<L / 2 / Step>([&](auto i) UNROLLED { v[i] = add_lanes<L, Step>(v[2 * i], v[2 * i + 1]); });
        return sums_of_lanes<L, 2 * Step>(v);
    }
}

// The neighbours of one output that count: which taps they are, and which pixels of the map.
struct Found {
    int count, *tap, *row, *column;  // a row of -1: beyond a border of zeros
    bool inside(int i) const { return row[i] >= 0; }
    ptrdiff_t place(const ConvattnMap& map, int i) const { return row[i] * map.row + column[i] * map.column; }
};

struct PixelShiftBackward {
    const Geometry g;
    const bool elements;  // a head is one channel
    const float scale;
    const ConvattnMap &q, &k, &v, &dout, &dq, &dk, &dv;  // v.data and dv.data may be null
    const float *weight, *bias;                          // [taps][channels], [taps][heads] or null
    double *dweight, *dbias;                             // the same of every image

    static constexpr int vectors = 4, channel_block = vectors * native_lanes;
    // Where there is no v, a neighbour beyond a border of zeros still brings its bias.
    bool all() const { return bias && !v.data; }
    const float* zeros() const {
        alignas(64) static const float none[channel_block] = {};
        return none;
    }

    // Which column every tap reads from every output column, [taps][Wo].
    void fill_columns(int* columns) const {
        for (int m = 0; m < g.taps; m++)
            for (int x = 0; x < g.Wo; x++) columns[(size_t)m * g.Wo + x] = border_source(g.sx * x + g.dx(m), g.W, g.border);
    }
    void find(const int* columns, const int* row_of_tap, int x, Found& found) const {
        found.count = 0;
        for (int m = 0; m < g.taps; m++) {
            const int column = columns[(size_t)m * g.Wo + x], row = row_of_tap[m];
            const bool inside = column >= 0 && row >= 0;
            if (!inside && !all()) continue;
            found.row[found.count] = inside ? row : -1, found.column[found.count] = inside ? column : 0;
            found.tap[found.count++] = m;
        }
    }
    // f(found, pixel of the outputs, row, column) for the outputs of some rows, then done(rows so far) after each row.
    static size_t finding_floats(const Geometry& g) { return (size_t)g.taps * (g.Wo + 4); }
    template <class F, class Done> INLINE void over_outputs(int y0, int y1, F f, Done done) const {
        int *columns = scratch.take_ints((size_t)g.taps * g.Wo), *rows = scratch.take_ints(g.taps);
        Found found = {0, scratch.take_ints(g.taps), scratch.take_ints(g.taps), scratch.take_ints(g.taps)};
        fill_columns(columns);
        for (int y = y0; y < y1; y++) {
            for (int m = 0; m < g.taps; m++) rows[m] = border_source(g.sy * y + g.dy(m), g.H, g.border);
            for (int x = 0; x < g.Wo; x++) {
                find(columns, rows, x, found);
                f(found, y, x);
            }
            done(y);
        }
    }

    // One head of one image.
    struct Head {
        int b, n, c0, channels;
    };
    static float* at(const ConvattnMap& map, const Head& h, int y, int x) {
        return map.data + h.b * map.image + h.c0 + y * map.row + x * map.column;
    }
    static float* first(const ConvattnMap& map, const Head& h) { return map.data ? map.data + h.b * map.image + h.c0 : nullptr; }

    // s and ds of some rows, [pixel][2][taps], of those taps that count, and dq.
    static size_t similarity_floats(const Geometry& g) { return finding_floats(g) + 2 * (size_t)round_up(g.taps, native_lanes) * native_lanes; }
    NOINLINE void similarities(const Head& h, int y0, int y1, float* kept) const {
        constexpr int L = native_lanes;
        if (!scratch.reserve(similarity_floats(g))) return;
        const size_t padded = (size_t)round_up(g.taps, L) * L;
        float *products = scratch.take(2 * padded), *of_grad = products + padded;
        const float *keys = first(k, h), *values = first(v, h), *weights = weight + h.c0;
        over_outputs(
            y0, y1,
            [&](const Found& found, int y, int x) {
                const float *query = at(q, h, y, x), *grad = at(dout, h, y, x);
                float *s = kept + 2 * (size_t)g.taps * ((size_t)(y - y0) * g.Wo + x), *ds = s + g.taps;
                for (int i = 0; i < found.count; i++) {
                    Vec<L> product = {}, of = {};
                    const bool inside = found.inside(i);
                    const float *key = inside ? keys + found.place(k, i) : keys, *value = values ? values + found.place(v, i) : nullptr;
                    const float* w = weights + (size_t)found.tap[i] * g.C;
                    over_channels<1>(h.channels, [&](auto, auto part, int c) UNROLLED {
                        Vec<L> toward = part.load(grad + c) * part.load(w + c);
                        if (inside) product += part.load(query + c) * part.load(key + c);
                        of += value ? toward * part.load(value + c) : toward;
                    });
                    store<L>(products + i * L, product);
                    store<L>(of_grad + i * L, of);
                }
                for (int i = 0; i < found.count; i += L) {
                    Vec<L> product[L], of[L];
                    repeat<L>([&](auto j) UNROLLED {
                        product[j] = load<L>(products + (i + j) * L), of[j] = load<L>(of_grad + (i + j) * L);
                    });
                    const int valid = smaller(L, found.count - i);
                    store_first<L>(s + i, sums_of_lanes<L>(product) * scale, valid);
                    store_first<L>(ds + i, sums_of_lanes<L>(of), valid);
                }
                if (bias)
                    for (int i = 0; i < found.count; i++) s[i] += bias[(size_t)found.tap[i] * g.N + h.n];
                float* dquery = at(dq, h, y, x);
                over_channels<vectors>(h.channels, [&](auto V, auto part, int c) UNROLLED {
                    Vec<L> sum[V.value] = {};
                    for (int i = 0; i < found.count; i++) {
                        if (!found.inside(i)) continue;
                        const float* key = keys + found.place(k, i) + c;
                        repeat<V.value>([&](auto j) UNROLLED { sum[j] += ds[i] * part.load(key + j * L); });
                    }
                    repeat<V.value>([&](auto j) UNROLLED { part.store(dquery + c + j * L, sum[j] * scale); });
                });
            },
            [](int) {});
    }

    // Sums over pixels of a table's numbers, in float32 over few and in float64 over those.
    static constexpr int pixels_together = 64;
    INLINE void add_table(float* sums, double* table, int channels) const {
        for (int m = 0; m < g.taps; m++)
            for (int c = 0; c < channels; c++) {
                table[(size_t)m * g.C + c] += sums[m * channel_block + c];
                sums[m * channel_block + c] = 0;
            }
    }

    // dk, dv and dweight of the channels from c on, from the s and ds of some rows.
    static size_t adding_floats(const Geometry& g) { return finding_floats(g) + 3 * (size_t)g.taps * channel_block; }
    template <int V, bool Value, class Part>
    NOINLINE void add(const Head& h, Part part, int c, int y0, int y1, const float* kept) const {
        constexpr int L = native_lanes;
        if (!scratch.reserve(adding_floats(g))) return;
        float* sums = scratch.take((size_t)g.taps * channel_block);
        memset(sums, 0, (size_t)g.taps * channel_block * 4);
        const int channels = smaller(V * L, h.channels - c);
        double* table = dweight + (size_t)h.b * g.taps * g.C + h.c0 + c;
        const float *values = Value ? first(v, h) + c : nullptr, *weights = weight + h.c0 + c;
        float *dkeys = first(dk, h) + c, *dvalues = Value ? first(dv, h) + c : nullptr;
        int pixels = 0;
        over_outputs(
            y0, y1,
            [&](const Found& found, int y, int x) {
                const float *s = kept + 2 * (size_t)g.taps * ((size_t)(y - y0) * g.Wo + x), *ds = s + g.taps;
                Vec<L> query[V], grad[V];
                repeat<V>([&](auto j) UNROLLED {
                    query[j] = scale * part.load(at(q, h, y, x) + c + j * L), grad[j] = part.load(at(dout, h, y, x) + c + j * L);
                });
                for (int i = 0; i < found.count; i++) {
                    const bool inside = Value || found.inside(i);
                    float *dtable = sums + found.tap[i] * channel_block, *dkey = inside ? dkeys + found.place(dk, i) : dkeys;
                    const float *w = weights + (size_t)found.tap[i] * g.C, *value = Value ? values + found.place(v, i) : nullptr;
                    float* dvalue = Value ? dvalues + found.place(dv, i) : nullptr;
                    repeat<V>([&](auto j) UNROLLED {
                        const Vec<L> weighted = s[i] * grad[j];
                        Vec<L> of_weight = weighted;
                        if constexpr (Value) {
                            of_weight *= part.load(value + j * L);
                            part.store(dvalue + j * L, part.load(dvalue + j * L) + weighted * part.load(w + j * L));
                        }
                        store<L>(dtable + j * L, load<L>(dtable + j * L) + of_weight);
                        if (inside) part.store(dkey + j * L, part.load(dkey + j * L) + ds[i] * query[j]);
                    });
                }
            },
            [&](int y) {
                pixels += g.Wo;
                if (pixels >= pixels_together || y == y1 - 1) add_table(sums, table, channels), pixels = 0;
            });
    }
    template <bool Value> void add_block(const Head& h, int from, int y0, int y1, const float* kept) const {
        over_channels<vectors>(smaller(channel_block, h.channels - from), [&](auto V, auto part, int c) {
            add<V.value, Value>(h, part, from + c, y0, y1, kept);
        });
    }
    void add_block(const Head& h, int from, int y0, int y1, const float* kept) const {
        if (v.data) add_block<true>(h, from, y0, y1, kept);
        else add_block<false>(h, from, y0, y1, kept);
    }
    void add_bias(const Head& h, int y0, int y1, const float* kept) const {
        if (!scratch.reserve(finding_floats(g))) return;
        double* table = dbias + (size_t)h.b * g.taps * g.N + h.n;
        over_outputs(
            y0, y1,
            [&](const Found& found, int y, int x) {
                const float* ds = kept + 2 * (size_t)g.taps * ((size_t)(y - y0) * g.Wo + x) + g.taps;
                for (int i = 0; i < found.count; i++) table[(size_t)found.tap[i] * g.N] += ds[i];
            },
            [](int) {});
    }

    // Heads of one channel: element by element, nothing is kept.
    template <int V, bool Value, class Part> NOINLINE void elements_of(const Head& h, Part part, int c) const {
        constexpr int L = native_lanes;
        if (!scratch.reserve(adding_floats(g))) return;
        float *sums = scratch.take((size_t)g.taps * channel_block), *bias_sums = scratch.take((size_t)g.taps * channel_block);
        memset(sums, 0, (size_t)g.taps * channel_block * 4);
        memset(bias_sums, 0, (size_t)g.taps * channel_block * 4);
        const int channels = smaller(V * L, h.channels - c);
        const size_t table = (size_t)h.b * g.taps * g.C + h.c0 + c;
        const float *keys = first(k, h) + c, *values = Value ? first(v, h) + c : nullptr, *weights = weight + h.c0 + c;
        float *dkeys = first(dk, h) + c, *dvalues = Value ? first(dv, h) + c : nullptr;
        int pixels = 0;
        over_outputs(
            0, g.Ho,
            [&](const Found& found, int y, int x) {
                Vec<L> query[V], grad[V], dquery[V] = {};
                repeat<V>([&](auto j) UNROLLED {
                    query[j] = scale * part.load(at(q, h, y, x) + c + j * L), grad[j] = part.load(at(dout, h, y, x) + c + j * L);
                });
                for (int i = 0; i < found.count; i++) {
                    const bool inside = Value || found.inside(i);
                    const float *key = inside ? keys + found.place(k, i) : zeros(), *w = weights + (size_t)found.tap[i] * g.C;
                    const float *value = Value ? values + found.place(v, i) : nullptr, *b = bias ? bias + (size_t)found.tap[i] * g.C + h.c0 + c : zeros();
                    float *dkey = inside ? dkeys + found.place(dk, i) : dkeys, *dvalue = Value ? dvalues + found.place(dv, i) : nullptr;
                    float *dtable = sums + found.tap[i] * channel_block, *dbiases = bias_sums + found.tap[i] * channel_block;
                    repeat<V>([&](auto j) UNROLLED {
                        const Vec<L> of_key = part.load(key + j * L), s = query[j] * of_key + part.load(b + j * L);
                        const Vec<L> weighted = grad[j] * part.load(w + j * L);
                        Vec<L> ds = weighted, of_weight = grad[j] * s;
                        if constexpr (Value) {
                            const Vec<L> of_value = part.load(value + j * L);
                            ds *= of_value, of_weight *= of_value;
                            part.store(dvalue + j * L, part.load(dvalue + j * L) + weighted * s);
                        }
                        store<L>(dtable + j * L, load<L>(dtable + j * L) + of_weight);
                        if (bias) store<L>(dbiases + j * L, load<L>(dbiases + j * L) + ds);
                        dquery[j] += ds * of_key;
                        if (inside) part.store(dkey + j * L, part.load(dkey + j * L) + ds * query[j]);
                    });
                }
                repeat<V>([&](auto j) UNROLLED { part.store(at(dq, h, y, x) + c + j * L, dquery[j] * scale); });
            },
            [&](int y) {
                pixels += g.Wo;
                if (pixels < pixels_together && y < g.Ho - 1) return;
                add_table(sums, dweight + table, channels), pixels = 0;
                if (dbias) add_table(bias_sums, dbias + table, channels);
            });
    }

    // Rows whose s and ds fit half a core's second-level cache.
    static constexpr size_t kept_floats = 128 * 1024;
    int rows_together() const { return larger(1, (int)smaller((int64_t)g.Ho, (int64_t)(kept_floats / (2 * (size_t)g.taps * g.Wo + 1)))); }
    size_t floats_of(int rows) const { return 2 * (size_t)g.taps * g.Wo * rows; }

    void run() const {
        if (elements) return run_elements();
        const int64_t heads = (int64_t)g.B * g.N;
        const int rows = rows_together(), blocks = ceil_div(g.d, channel_block);
        const bool share = heads < g.threads;  // the rows, then the channels, of every head
        const int buffers = share ? 1 : g.threads;
        const size_t floats = (floats_of(rows) + 15) / 16 * 16;
        float* kept = (float*)aligned_alloc(64, floats * 4 * buffers);
        if (!kept) {
            fail();
            return;
        }
        if (share) {
            const int parts = g.threads;
            for (int64_t u = 0; u < heads; u++)
                for (int y0 = 0; y0 < g.Ho; y0 += rows) {
                    const Head h = {(int)(u / g.N), (int)(u % g.N), (int)(u % g.N) * g.d, g.d};
                    const int y1 = smaller(g.Ho, y0 + rows);
#pragma omp parallel for schedule(static, 1) num_threads(parts)
                    for (int part = 0; part < parts; part++) {
                        const int from = y0 + first_of_part(y1 - y0, part, parts), to = y0 + first_of_part(y1 - y0, part + 1, parts);
                        similarities(h, from, to, kept + floats_of(from - y0));
                    }
#pragma omp parallel for schedule(dynamic, 1) num_threads(parts)
                    for (int block = 0; block < blocks + 1; block++) {
                        if (block < blocks) add_block(h, block * channel_block, y0, y1, kept);
                        else if (dbias) add_bias(h, y0, y1, kept);
                    }
                }
        } else {
#pragma omp parallel for schedule(static, 1) num_threads(g.threads) if (g.threads > 1)
            for (int thread = 0; thread < g.threads; thread++)
                for (int64_t u = heads * thread / g.threads; u < heads * (thread + 1) / g.threads; u++)
                    for (int y0 = 0; y0 < g.Ho; y0 += rows) {
                        const Head h = {(int)(u / g.N), (int)(u % g.N), (int)(u % g.N) * g.d, g.d};
                        const int y1 = smaller(g.Ho, y0 + rows);
                        float* own = kept + floats * thread;
                        similarities(h, y0, y1, own);
                        for (int block = 0; block < blocks; block++) add_block(h, block * channel_block, y0, y1, own);
                        if (dbias) add_bias(h, y0, y1, own);
                    }
        }
        free(kept);
    }
    void run_elements() const {
        const int blocks = ceil_div(g.C, channel_block);
#pragma omp parallel for schedule(dynamic, 1) num_threads(g.threads) if (g.threads > 1)
        for (int64_t u = 0; u < (int64_t)g.B * blocks; u++) {
            const int c0 = (int)(u % blocks) * channel_block;
            const Head h = {(int)(u / blocks), 0, c0, smaller(channel_block, g.C - c0)};
            over_channels<vectors>(h.channels, [&](auto V, auto part, int c) {
                if (v.data) elements_of<V.value, true>(h, part, c);
                else elements_of<V.value, false>(h, part, c);
            });
        }
    }
};

}  // namespace
