// Local attention, backward: recomputes the softmax, because the forward saved nothing.
//   dP = dout . v;  D = sum_j P dP = dout . attention;  dS = alpha P (dP - D) scale
//   dq = sum_j dS (k_j - p_j);  dk_j += dS q;  dv_j += alpha P dout;  dalpha = sum D;  dp_j = -dk_j
#pragma once
#include "window.h"

namespace {

// Adds to each padded column k the sum over query rows and queries of weights * source(query): add(k, sum).
template <int L, int V, int S, int Q, class Weights, class Source, class Add>
INLINE void scatter_row(int first, int valid, int first_row, int last_row, Weights weights, Source source, Add add) {
    constexpr int columns = S * (Q - 1) + K;
    Vec<V> sum[columns] = {};
    for (int i = first_row; i <= last_row; i++) {
        const float* w = weights(i) + first;
        repeat<Q>([&](auto x) UNROLLED {
            if (first + x >= valid) return;  // not by a weight of zero: 0 * NaN would leave the query's window
            Vec<V> value = source(i, first + x);
            PIN(value);
            repeat<K>([&](auto dx) UNROLLED { sum[S * x.value + dx.value] += value * w[dx * L + x]; });
        });
    }
    repeat<columns>([&](auto k) UNROLLED { add(S * first + k, sum[k]); });
}

struct Attended {
    View q, k, v;  // q at the output resolution
};
struct WindowGradients {
    View dq, dk, dv;      // added to
    double* dposition;    // [d][2], added to, or null
};

template <int L, int S> struct BackwardAttention {
    static constexpr int most_rows = S * (block_rows - 1) + K;
    const Problem& p;
    const Attended& maps;
    const WindowGradients& grad;
    const View& dout;
    const float alpha;
    const int b, n;
    PlanarRows<L> keys, values;
    float *q, *g, *prob, *dprob, *along_x, *along_y, *position_sum;
    const float **key_rows, **value_rows, **source_rows;
    int* key_y;
    double dalpha = 0;

    static size_t floats(const Problem& p) {
        return 2 * PlanarRows<L>::floats(p) + 2 * (size_t)block_rows * (p.d + window_taps) * L + 2 * L + 2 * (size_t)p.d + 7 * most_rows;
    }
    // The caller has reserved floats(p).
    BackwardAttention(const Problem& p, const Attended& maps, const WindowGradients& grad, const View& dout, float alpha, int b, int n)
        : p(p), maps(maps), grad(grad), dout(dout), alpha(alpha), b(b), n(n), keys(p, rows_of(maps.k, b), maps.k.pixel, n, true, 0),
          values(p, rows_of(maps.v, b), maps.v.pixel, n, false, 0), q(scratch.take((size_t)block_rows * p.d * L)),
          g(scratch.take((size_t)block_rows * p.d * L)), prob(scratch.take((size_t)block_rows * window_taps * L)),
          dprob(scratch.take((size_t)block_rows * window_taps * L)), along_x(scratch.take(L)), along_y(scratch.take(L)),
          position_sum(scratch.take(2 * p.d)),
          key_rows(scratch.take_array<const float*>(most_rows)), value_rows(scratch.take_array<const float*>(most_rows)),
          source_rows(scratch.take_array<const float*>(most_rows)), key_y(scratch.take_ints(most_rows)) {}

    void run() {
        memset(position_sum, 0, 2 * (size_t)p.d * sizeof(float));
        for (int y = 0; y < p.Ho; y += block_rows) {
            const int rows = smaller(block_rows, p.Ho - y), last = smaller(p.H - 1, larger(reach, S * (y + rows - 1) + reach));
            const int span = S * (rows - 1) + K;
            keys.load_until(last);
            values.load_until(last);
            for (int r = 0; r < span; r++) {
                key_y[r] = reflect(S * y + r - reach, p.H);
                key_rows[r] = keys.row(key_y[r]);
                value_rows[r] = values.row(key_y[r]);
                source_rows[r] = maps.k.at(b, key_y[r]) + n * p.d;
            }
            const int tile = tile_width(p.Wo, L);
            for (int x0 = 0; x0 < p.Wo; x0 += tile) block(y, rows, x0, smaller(tile, p.Wo - x0));
            flush_position();
        }
    }

    void block(int y, int rows, int x0, int valid) {
        const float *q_row = maps.q.at(b, y) + n * p.d, *g_row = dout.at(b, y) + n * p.d;
        const Rows queries = rows_of(maps.q, b).from_channel(n * p.d), grads = rows_of(dout, b).from_channel(n * p.d);
        planar_queries<L>(queries, maps.q.pixel, y, rows, x0, p.Wo - 1, p.softmax_scale * 1.4426950408889634f, p.d, q);
        planar_queries<L>(grads, dout.pixel, y, rows, x0, p.Wo - 1, 1.f, p.d, g);
        similarity_of_rows<L, S>(rows, q, key_rows, x0, keys.plane, p.d, prob);
        similarity_of_rows<L, S>(rows, g, value_rows, x0, values.plane, p.d, dprob);
        for (int i = 0; i < rows; i++) {
            softmax_backward(i, valid);
            if (p.weight_x) position_terms(i, q_row + i * maps.q.row, x0, valid);
            query_gradient(i, y + i, x0, valid);
        }
        scatter(dprob, q_row, maps.q, grad.dk, rows, x0, valid);
        scatter(prob, g_row, dout, grad.dv, rows, x0, valid);
    }

    // prob becomes alpha P, dprob becomes dS.
    void softmax_backward(int i, int valid) {
        float *P = prob + (size_t)i * window_taps * L, *dP = dprob + (size_t)i * window_taps * L;
        alignas(64) float inverse[L], D[L];
        softmax<L>(P, window_taps, inverse);
        const Vec<L> norm = load<L>(inverse);
        Vec<L> dot[4] = {};
        int j = 0;
        for (; j + 4 <= window_taps; j += 4)
            repeat<4>([&](auto u) UNROLLED { dot[u] += load<L>(P + (j + u) * L) * load<L>(dP + (j + u) * L); });
        for (; j < window_taps; j++) dot[0] += load<L>(P + j * L) * load<L>(dP + j * L);
        const Vec<L> mean = (dot[0] + dot[1] + dot[2] + dot[3]) * norm, factor = norm * alpha;
        store<L>(D, mean);
        for (int l = 0; l < valid; l++) dalpha += D[l];
        for (j = 0; j < window_taps; j++) {
            const Vec<L> weight = load<L>(P + j * L) * factor;
            store<L>(dP + j * L, weight * (load<L>(dP + j * L) - mean) * p.softmax_scale);
            store<L>(P + j * L, weight);
        }
    }

    // p is linear, so sum_j dS_j p_j is position . (sum_j dS_j x_j, sum_j dS_j y_j).
    void position_terms(int i, const float* q_row, int x0, int valid) {
        const float* dS = dprob + (size_t)i * window_taps * L;
        Vec<L> sum_x = {}, sum_y = {};
        for (int dx = 0; dx < K; dx++) {
            alignas(64) float at[L];
            for (int l = 0; l < L; l++) at[l] = p.column_x[S * (x0 + l) + dx];
            Vec<L> total = {};
            for (int dy = 0; dy < K; dy++) total += load<L>(dS + (dy * K + dx) * L);
            sum_x += total * load<L>(at);
        }
        for (int dy = 0; dy < K; dy++) {
            Vec<L> total = {};
            for (int dx = 0; dx < K; dx++) total += load<L>(dS + (dy * K + dx) * L);
            sum_y += total * p.row_y(key_y[S * i + dy]);
        }
        store<L>(along_x, sum_x);
        store<L>(along_y, sum_y);
        for (int x = 0; x < valid; x++) {
            const float* query = q_row + (x0 + x) * maps.q.pixel;
            over_channels(p.d, [&](auto v, int c0) UNROLLED {
                constexpr int V = v.value;
                float* t = position_sum + c0;
                const Vec<V> value = load<V>(query + c0);
                store<V>(t, load<V>(t) + value * along_x[x]);
                store<V>(t + p.d, load<V>(t + p.d) + value * along_y[x]);
            });
        }
    }
    void flush_position() {
        if (!p.weight_x) return;
        for (int c = 0; c < p.d; c++) {
            grad.dposition[2 * c] -= position_sum[c];
            grad.dposition[2 * c + 1] -= position_sum[p.d + c];
        }
        memset(position_sum, 0, 2 * (size_t)p.d * sizeof(float));
    }

    void query_gradient(int i, int y, int x0, int valid) {
        const int* column = p.column + S * x0;
        const float* const* source_row = source_rows + S * i;
        float* target = grad.dq.at(b, y, x0) + n * p.d;
        const ptrdiff_t pixel = maps.k.pixel;
        weighted_sums<L, S>(
            p, dprob + (size_t)i * window_taps * L, valid,
            [&](auto v, int c0, int dy, int k) UNROLLED { return load<v.value>(source_row[dy] + column[k] * pixel + c0); },
            [&](auto v, int c0, int x, auto sum) UNROLLED {
                constexpr int V = v.value;
                float* t = target + x * grad.dq.pixel + c0;
                if (p.weight_x) sum -= load<V>(p.weight_x + c0) * along_x[x] + load<V>(p.weight_y + c0) * along_y[x];
                store<V>(t, load<V>(t) + sum);
            });
    }

    // target of key j += weights_j * source of the query
    void scatter(const float* weights, const float* source_row, const View& source_view, const View& target_view,
                 int rows, int x0, int valid) {
        const int* column = p.column + S * x0;
        ptrdiff_t query[L];
        for (int l = 0; l < L; l++) query[l] = smaller(x0 + l, p.Wo - 1) * source_view.pixel;
        const int span = S * (rows - 1) + K;
        over_channels(p.d, [&](auto v, int c0) UNROLLED {
            constexpr int V = v.value;
            auto source = [&](int i, int x) UNROLLED { return load<V>(source_row + i * source_view.row + query[x] + c0); };
            for (int r = 0; r < span; r++) {
                float* target = target_view.at(b, key_y[r]) + n * p.d + c0;
                auto add = [&](int k, auto sum) UNROLLED {
                    float* t = target + column[k] * target_view.pixel;
                    store<V>(t, load<V>(t) + sum);
                };
                if constexpr (V >= 4) {
                    const int first = r < K ? 0 : (r - K) / S + 1, last_row = smaller(rows - 1, r / S);
                    auto row_weights = [&](int i) UNROLLED { return weights + (size_t)(i * K + r - S * i) * K * L; };
                    in_strips<L, S>(valid, [&](auto Q, int x) UNROLLED {
                        scatter_row<L, V, S, Q.value>(x, valid, first, last_row, row_weights, source, add);
                    });
                } else {
                    for (int i = 0; i < rows; i++) {
                        const int dy = r - S * i;
                        if (dy < 0 || dy >= K) continue;
                        for (int x = 0; x < valid; x++)
                            for (int dx = 0; dx < K; dx++)
                                add(S * x + dx, source(i, x) * weights[((i * K + dy) * K + dx) * L + x]);
                    }
                }
            }
        });
    }
};

}  // namespace
