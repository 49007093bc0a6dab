// attend over any set of offsets, forward and backward, by bands of output rows (offset_bands.h).
#include "offset_bands.h"
#include "softmax.h"

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
