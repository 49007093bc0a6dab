// The forward kernels as operators of another runtime (runtime_*.cpp): what they are given, checked, and what they compute.
//
// Maps are channels-last tensors [B, H, W, C], as the kernels like them best, but for correlate and aggregate, whose maps
// are [B, C, H, W]. Attributes: offsets (dy, dx, dy, dx, ...), stride (y, x), border (0 reflect, 1 zeros, 2 replicate),
// num_heads, scale. A file is not trusted: shapes that do not fit are an error of the run.
#pragma once
#include "convattn.h"

#include <new>
#include <string>
#include <thread>
#include <vector>

#define DECLARE(name, parameters, arguments) extern "C" int name parameters;
CONVATTN_FUNCTIONS(DECLARE)

namespace {

struct Refused {
    std::string why;
};

void expect(bool holds, const char* why) {
    if (!holds) throw Refused{why};
}

int32_t narrow(int64_t size) {
    expect(size >= 0 && size < (1 << 27), "a size of 2^27 or more");
    return (int32_t)size;
}

int32_t threads() {
    const unsigned cores = std::thread::hardware_concurrency();
    return cores < 1 ? 1 : cores > 16 ? 16 : (int32_t)cores;
}

int64_t strided(int64_t size, int64_t stride) { return size ? (size - 1) / stride + 1 : 0; }

struct Tensor {
    float* data = nullptr;  // null: an optional input that was left out
    std::vector<int64_t> shape;

    int64_t count() const {
        int64_t product = 1;
        for (int64_t size : shape) product *= size;
        return product;
    }
    int64_t operator[](size_t axis) const { return shape[axis]; }
    // The map as the kernels take it, from [B, H, W, C].
    ConvattnMap map() const {
        return {data, shape[1] * shape[2] * shape[3], 1, shape[2] * shape[3], shape[3]};
    }
    // The same from [B, C, H, W].
    ConvattnMap planes() const {
        return {data, shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1};
    }
};

// Inputs and outputs of one computation, as a runtime gives them.
struct Call {
    virtual Tensor input(size_t number) const = 0;
    virtual Tensor output(const std::vector<int64_t>& shape) const = 0;

    // A map [B, H, W, C], or with `planes` [B, C, H, W].
    Tensor map(size_t number, size_t rank = 4) const {
        Tensor tensor = input(number);
        expect(tensor.data && tensor.shape.size() == rank, "a map of another rank than the operator takes");
        for (int64_t size : tensor.shape) narrow(size);
        return tensor;
    }
};

// What an operator is told beside its tensors.
struct Attributes {
    std::vector<int32_t> offsets;
    int64_t stride[2], border, heads, relu;
    float scale;

    Attributes(const std::vector<int64_t>& pairs, const std::vector<int64_t>& steps, int64_t border, int64_t heads, int64_t relu, float scale)
        : border(border), heads(heads), relu(relu), scale(scale) {
        for (int64_t value : pairs) {
            expect(value >= -1024 && value <= 1024, "offsets of more than 1024 pixels");
            offsets.push_back((int32_t)value);
        }
        expect(steps.empty() || steps.size() == 2, "a stride of another count than two");
        for (size_t axis = 0; axis < 2; axis++) stride[axis] = steps.empty() ? 1 : steps[axis];
        expect(stride[0] >= 1 && stride[0] <= 1024 && stride[1] >= 1 && stride[1] <= 1024, "a stride that is not 1 to 1024");
        expect(offsets.size() % 2 == 0, "an odd number of offset coordinates");
        expect(border >= 0 && border <= 2, "a border that is not 0, 1 or 2");
        expect(heads >= 1, "no heads");
    }

    int64_t taps() const { return (int64_t)offsets.size() / 2; }
    int64_t head_dim(int64_t channels) const {
        expect(channels > 0 && channels % heads == 0, "channels that the heads do not divide");
        return channels / heads;
    }
    // Of k or v, a map of `channels`.
    ConvattnOffsets geometry(int64_t batch, int64_t channels, int64_t height, int64_t width) const {
        expect(taps() > 0, "no offsets");
        expect(height > 0 && width > 0, "an empty map");
        head_dim(channels);
        return {narrow(batch), narrow(channels), narrow(heads), narrow(height), narrow(width), narrow(strided(height, stride[0])),
                narrow(strided(width, stride[1])), narrow(taps()), narrow(stride[0]), narrow(stride[1]), (int32_t)border, threads(),
                offsets.data(), scale};
    }
    // The size of a window that the kernels for reflected windows serve, as in ops/_abi.py, or 0.
    int fast_window(int64_t channels) const {
        if (border != 0 || stride[0] != stride[1] || stride[0] > 2 || head_dim(channels) < 4) return 0;
        for (int size : {3, 5, 7}) {
            bool found = taps() == size * size;
            for (int m = 0; found && m < size * size; m++)
                found = offsets[2 * m] == m / size - size / 2 && offsets[2 * m + 1] == m % size - size / 2;
            if (found) return size;
        }
        return 0;
    }
    ConvattnWindow window(int64_t batch, int64_t height, int64_t width, int64_t channels) const {
        expect(height > 0 && width > 0, "an empty map");
        expect(stride[0] == stride[1] && stride[0] <= 2, "a stride that is not 1 or 2");
        return {narrow(batch), narrow(height), narrow(width), narrow(heads), narrow(head_dim(channels)), narrow(stride[0]),
                relu ? 1 : 0, threads(), scale, 0, fast_window(channels), 0, 0};
    }
};

// Each operator: its name, how many inputs it has and how many of them must be there, and one computation. It returns
// what the kernels return: whether memory ran out.
struct AcmixTables {
    const Tensor position, weight, scale, bias;
    const std::vector<float> scales;

    // From input `first` on: position [d, 2] or none, weight [3N, 3, 3, N, d], scale [1] or [C], bias [C] or none
    AcmixTables(const Attributes& a, const Call& call, size_t first, int64_t channels)
        : position(call.input(first)), weight(call.input(first + 1)), scale(call.input(first + 2)), bias(call.input(first + 3)),
          scales(scale.count() == 1 ? channels : 0, scale.data[0]) {
        expect(a.fast_window(channels), "fewer than 4 channels a head, or no reflected window of 3x3, 5x5 or 7x7");
        expect(!position.data || position.count() == 2 * a.head_dim(channels), "a position of another size than [d, 2]");
        expect(scale.count() == 1 || scale.count() == channels, "a scale of another size than [1] or [C]");
        expect(weight.count() == 27 * a.heads * channels, "a weight of another size than [3N, 3, 3, N, d]");
        expect(!bias.data || bias.count() == channels, "a bias of another size than [C]");
    }
    const float* every_scale() const { return scales.empty() ? scale.data : scales.data(); }
};

struct Acmix {
    static constexpr const char* name = "acmix";
    static constexpr size_t inputs = 5;
    static bool needs(size_t input) { return input == 0 || input == 2 || input == 3; }
    // qkv [B, H, W, 3C], tables
    static bool run(const Attributes& a, const Call& call) {
        const Tensor qkv = call.map(0);
        expect(qkv[3] % 3 == 0, "q, k and v of unequal channels");
        const int64_t channels = qkv[3] / 3;
        const AcmixTables t(a, call, 1, channels);
        const ConvattnWindow s = a.window(qkv[0], qkv[1], qkv[2], channels);
        const Tensor out = call.output({qkv[0], strided(qkv[1], a.stride[0]), strided(qkv[2], a.stride[1]), channels});
        return convattn_acmix_forward(&s, qkv.data, t.position.data, t.every_scale(), t.weight.data, t.bias.data, out.data);
    }
};

struct AcmixLayer {
    static constexpr const char* name = "acmix_layer";
    static constexpr size_t inputs = 7;
    static bool needs(size_t input) { return input != 2 && input != 3 && input != 6; }
    // x [B, H, W, C_in], projection_weight [ceil(3C / 32), C_in, 32], projection_bias [3C] or none, tables
    static bool run(const Attributes& a, const Call& call) {
        const Tensor x = call.map(0), projection = call.map(1, 3), bias = call.input(2);
        const int64_t channels = call.input(4).count() / (27 * a.heads);
        const AcmixTables t(a, call, 3, channels);
        expect(projection.shape == std::vector<int64_t>{(3 * channels + 31) / 32, x[3], 32},
               "a projection_weight of another shape than [ceil(3C / 32), C_in, 32]");
        expect(!bias.data || bias.count() == 3 * channels, "a projection_bias of another size than [3C]");
        ConvattnWindow s = a.window(x[0], x[1], x[2], channels);
        s.inputs = (int32_t)x[3], s.packed = 1;
        const Tensor out = call.output({x[0], strided(x[1], a.stride[0]), strided(x[2], a.stride[1]), channels});
        return convattn_acmix_layer_forward(&s, x.data, projection.data, bias.data, t.position.data, t.every_scale(), t.weight.data, t.bias.data,
                                            nullptr, out.data);
    }
};

struct Attend {
    static constexpr const char* name = "attend";
    static constexpr size_t inputs = 5;
    static bool needs(size_t input) { return input < 3; }
    // q [B, Ho, Wo, C], k and v [B, H, W, C], bias [1 or N, K] or none, key_offsets [1 or N, K, d] or none
    static bool run(const Attributes& a, const Call& call) {
        const Tensor q = call.map(0), k = call.map(1), v = call.map(2), bias = call.input(3), vectors = call.input(4);
        const int64_t channels = k[3], d = a.head_dim(channels);
        const ConvattnOffsets s = a.geometry(k[0], channels, k[1], k[2]);
        expect(k.shape == v.shape, "k and v of different shapes");
        expect(q.shape == std::vector<int64_t>{k[0], s.out_height, s.out_width, channels}, "q of another shape than the output");
        const std::vector<float> biases = every_head(bias, a.heads, a.taps()), offsets = every_head(vectors, a.heads, a.taps() * d);
        const Tensor out = call.output({q[0], q[1], q[2], q[3]});
        const ConvattnMap maps[] = {q.map(), k.map(), v.map(), out.map()};
        if (!bias.data && !vectors.data && a.fast_window(channels)) {
            const ConvattnWindow window = a.window(k[0], k[1], k[2], channels);
            return convattn_window_forward(&window, maps, maps + 1, maps + 2, maps + 3);
        }
        return convattn_attend(&s, maps, maps + 1, maps + 2, bias.data ? biases.data() : nullptr, vectors.data ? offsets.data() : nullptr,
                               maps + 3);
    }
    static std::vector<float> every_head(const Tensor& table, int64_t heads, int64_t size) {
        std::vector<float> values;
        if (!table.data) return values;
        expect(table.count() == size || table.count() == heads * size, "a table of another size than one a head");
        for (int64_t n = 0; n < heads; n++) {
            const float* from = table.data + (table.count() == size ? 0 : n * size);
            values.insert(values.end(), from, from + size);
        }
        return values;
    }
};

struct Correlate {
    static constexpr const char* name = "correlate";
    static constexpr size_t inputs = 2;
    static bool needs(size_t) { return true; }
    // q [B, C, Ho, Wo], k [B, C, H, W]
    static bool run(const Attributes& a, const Call& call) {
        const Tensor q = call.map(0), k = call.map(1);
        const ConvattnOffsets s = a.geometry(k[0], k[1], k[2], k[3]);
        expect(q.shape == std::vector<int64_t>{k[0], k[1], s.out_height, s.out_width}, "q of another shape than the output");
        const Tensor out = call.output({k[0], a.heads, a.taps(), s.out_height, s.out_width});
        const ConvattnMap maps[] = {q.planes(), k.planes()};
        return convattn_correlate(&s, maps, maps + 1, out.data);
    }
};

struct Aggregate {
    static constexpr const char* name = "aggregate";
    static constexpr size_t inputs = 2;
    static bool needs(size_t) { return true; }
    // weights [B, N, K, Ho, Wo], v [B, C, H, W]
    static bool run(const Attributes& a, const Call& call) {
        const Tensor weights = call.map(0, 5), v = call.map(1);
        const ConvattnOffsets s = a.geometry(v[0], v[1], v[2], v[3]);
        expect(weights.shape == std::vector<int64_t>{v[0], a.heads, a.taps(), s.out_height, s.out_width},
               "weights of another shape than [B, N, K, Ho, Wo]");
        const Tensor out = call.output({v[0], v[1], s.out_height, s.out_width});
        const ConvattnMap maps[] = {v.planes(), out.planes()};
        return convattn_aggregate(&s, weights.data, maps, maps + 1);
    }
};

struct GroupConvolution {
    static constexpr const char* name = "group_convolution";
    static constexpr size_t inputs = 3;
    static bool needs(size_t input) { return input < 2; }
    // x [B, H, W, T d], weight [T, 3, 3, N, d], bias [N d] or none
    static bool run(const Attributes& a, const Call& call) {
        const Tensor x = call.map(0), weight = call.map(1, 5), bias = call.input(2);
        expect(weight[0] * weight[4] == x[3] && weight[1] == 3 && weight[2] == 3 && weight.count() > 0,
               "a weight of another shape than [T, 3, 3, N, d]");
        expect(a.stride[0] == a.stride[1] && a.stride[0] <= 2, "a stride that is not 1 or 2");
        expect(x[1] > 0 && x[2] > 0, "an empty map");
        const int64_t channels = weight[3] * weight[4];
        expect(!bias.data || bias.count() == channels, "a bias of another size than [C]");
        const Tensor out = call.output({x[0], strided(x[1], a.stride[0]), strided(x[2], a.stride[1]), channels});
        const ConvattnGroupConv s = {narrow(x[0]), narrow(x[1]), narrow(x[2]), narrow(weight[4]), narrow(weight[0]), narrow(weight[3]),
                                     narrow(a.stride[0]), threads()};
        const ConvattnMap maps[] = {x.map(), out.map()};
        return convattn_group_conv_forward(&s, maps, weight.data, bias.data, maps + 1);
    }
};

struct OffsetConvolution {
    static constexpr const char* name = "offset_convolution";
    static constexpr size_t inputs = 3;
    static bool needs(size_t input) { return input < 2; }
    // x [B, H, W, C], weight [G, D C, V], bias [G V] or none
    static bool run(const Attributes& a, const Call& call) {
        const Tensor x = call.map(0), weight = call.map(1, 3), bias = call.input(2);
        const ConvattnOffsets g = a.geometry(x[0], x[3], x[1], x[2]);
        const int64_t channels = weight[0] * weight[2];
        expect(weight[1] == a.taps() * x[3] && channels > 0, "a weight of another shape than [G, D C, V]");
        expect(!bias.data || bias.count() == channels, "a bias of another size than [G V]");
        const Tensor out = call.output({x[0], g.out_height, g.out_width, narrow(channels)});
        const ConvattnOffsetConv s = {g.batch, g.channels, narrow(weight[0]), narrow(weight[2]), g.height, g.width, g.out_height,
                                      g.out_width, g.taps, g.stride_y, g.stride_x, g.border, g.threads, g.offsets};
        const ConvattnMap maps[] = {x.map(), out.map()};
        return convattn_offset_conv(&s, maps, weight.data, bias.data, maps + 1);
    }
};

struct PixelShiftAttention {
    static constexpr const char* name = "pixel_shift_attention";
    static constexpr size_t inputs = 5;
    static bool needs(size_t input) { return input != 2 && input != 4; }
    // q [B, Ho, Wo, C], k [B, H, W, C], v like k or none, weight [K, C], bias [N, K] or none
    static bool run(const Attributes& a, const Call& call) {
        const Tensor q = call.map(0), k = call.map(1), v = call.input(2), weight = call.input(3), bias = call.input(4);
        const ConvattnOffsets s = a.geometry(k[0], k[3], k[1], k[2]);
        expect(!v.data || v.shape == k.shape, "k and v of different shapes");
        expect(q.shape == std::vector<int64_t>{k[0], s.out_height, s.out_width, k[3]}, "q of another shape than the output");
        expect(weight.count() == a.taps() * k[3], "a weight of another size than [K, C]");
        expect(!bias.data || bias.count() == a.heads * a.taps(), "a bias of another size than [N, K]");
        std::vector<float> by_tap;
        for (int64_t m = 0; bias.data && m < a.taps(); m++)
            for (int64_t n = 0; n < a.heads; n++) by_tap.push_back(bias.data[n * a.taps() + m]);
        const Tensor out = call.output({q[0], q[1], q[2], q[3]});
        const ConvattnMap maps[] = {q.map(), k.map(), v.data ? v.map() : ConvattnMap{}, out.map()};
        return convattn_pixel_shift(&s, maps, maps + 1, v.data ? maps + 2 : nullptr, weight.data, bias.data ? by_tap.data() : nullptr,
                                    maps + 3);
    }
};

// What came of an operator, and why if it was not computed.
struct Outcome {
    enum Code { computed, no_memory, refused } code;
    std::string why;
};

template <class Kind, class Work> Outcome outcome(Work work) try {
    if (work()) throw std::bad_alloc();
    return {Outcome::computed, ""};
} catch (const Refused& refused) {
    return {Outcome::refused, std::string("convattn.") + Kind::name + ": " + refused.why};
} catch (const std::bad_alloc&) {
    return {Outcome::no_memory, std::string("convattn.") + Kind::name + ": not enough memory; give it fewer or smaller images"};
}

// Calls `use` with every operator.
template <class... Kinds, class Use> void each_of(Use use) { (use(Kinds()), ...); }
template <class Use> void each_operator(Use use) {
    each_of<Acmix, AcmixLayer, Attend, Correlate, Aggregate, GroupConvolution, OffsetConvolution, PixelShiftAttention>(use);
}

}  // namespace
