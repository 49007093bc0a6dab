// The forward kernels as custom operators of onnxruntime, domain "convattn", in a library of their own that any program
// registers with its session: libconvattn_onnxruntime.so. It needs neither torch nor Python.
//
// Maps are channels-last tensors [B, H, W, C], as the kernels like them best, but for correlate and aggregate, whose maps
// are [B, C, H, W]. Attributes: offsets (dy, dx, dy, dx, ...), stride (y, x), border (0 reflect, 1 zeros, 2 replicate),
// num_heads, scale. A file is not trusted: shapes that do not fit are an error of the run.
#include "onnxruntime_call.h"
#include "onnxruntime_threads.h"

#include <new>

#define DECLARE(name, parameters, arguments) extern "C" int name parameters;
CONVATTN_FUNCTIONS(DECLARE)

namespace {

// Each operator: its name, how many inputs it has and how many of them must be there, and one computation. It returns
// what the kernels return: whether memory ran out.
struct Acmix {
    static constexpr const char* name = "acmix";
    static constexpr size_t inputs = 5;
    static bool needs(size_t input) { return input == 0 || input == 2 || input == 3; }
    // qkv [B, H, W, 3C], position [d, 2] or none, weight [3N, 3, 3, N, d], scale [1] or [C], bias [C] or none
    static bool run(const Attributes& a, const Call& call) {
        const Tensor qkv = call.map(0), position = call.input(1), weight = call.input(2), scale = call.input(3), bias = call.input(4);
        expect(qkv[3] % 3 == 0, "q, k and v of unequal channels");
        const int64_t channels = qkv[3] / 3, d = a.head_dim(channels);
        expect(d >= 16 && a.border == 0, "fewer than 16 channels a head, or another border than reflection");
        expect(!position.data || position.count() == 2 * d, "a position of another size than [d, 2]");
        expect(scale.count() == 1 || scale.count() == channels, "a scale of another size than [1] or [C]");
        expect(weight.count() == 27 * a.heads * channels, "a weight of another size than [3N, 3, 3, N, d]");
        expect(!bias.data || bias.count() == channels, "a bias of another size than [C]");
        const std::vector<float> scales(scale.count() == 1 ? channels : 0, scale.data[0]);
        const Tensor out = call.output({qkv[0], strided(qkv[1], a.stride[0]), strided(qkv[2], a.stride[1]), channels});
        const ConvattnWindow s = a.window(qkv[0], qkv[1], qkv[2], channels);
        return convattn_acmix_forward(&s, qkv.data, position.data, scales.empty() ? scale.data : scales.data(), weight.data, bias.data,
                                      out.data);
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
        if (!bias.data && !vectors.data && a.is_fast_window(channels)) {
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

ort::Status* error(ort::Api api, ort::ErrorCode code, const std::string& message) {
    return ort::call<ort::Status*(ort::ErrorCode, const char*)>(api, ort::create_status, code, message.c_str());
}

template <class Kind> struct Kernel {
    ort::Api api;
    Attributes attributes;

    static ort::Status* create(const ort::Operator*, ort::Api api, const ort::Info* info, void** kernel) try {
        *kernel = new Kernel{api, Attributes(api, info)};
        return nullptr;
    } catch (const Refused& refused) {
        return error(api, ort::invalid_argument, std::string("convattn.") + Kind::name + ": " + refused.why);
    } catch (const std::bad_alloc&) {
        return error(api, ort::failed, std::string("convattn.") + Kind::name + ": not enough memory");
    }
    static ort::Status* compute(void* of, ort::Context* context) {
        const Kernel& kernel = *(const Kernel*)of;
        const Runner here = {kernel.api, context};
        const Runner* outer = runner;
        runner = &here;
        ort::Status* status = kernel.computed(context);
        runner = outer;
        return status;
    }
    ort::Status* computed(ort::Context* context) const try {
        if (!Kind::run(attributes, Call{api, context})) return nullptr;
        throw std::bad_alloc();
    } catch (const Refused& refused) {
        return error(api, ort::invalid_argument, std::string("convattn.") + Kind::name + ": " + refused.why);
    } catch (const std::bad_alloc&) {
        return error(api, ort::failed, std::string("convattn.") + Kind::name + ": not enough memory; give it fewer or smaller images");
    }

    static const ort::Operator* description() {
        static const ort::Operator found = [] {
            ort::Operator op = {};
            op.version = ort::api_version;
            op.name = [](const ort::Operator*) { return Kind::name; };
            op.provider = [](const ort::Operator*) { return (const char*)nullptr; };
            op.input_type = op.output_type = [](const ort::Operator*, size_t) { return ort::float32; };
            op.input_count = [](const ort::Operator*) { return Kind::inputs; };
            op.output_count = [](const ort::Operator*) { return (size_t)1; };
            op.destroy = [](void* kernel) { delete (Kernel*)kernel; };
            op.input_presence = [](const ort::Operator*, size_t i) { return Kind::needs(i) ? ort::required : ort::optional; };
            op.output_presence = [](const ort::Operator*, size_t) { return ort::required; };
            op.input_memory = [](const ort::Operator*, size_t) { return 0; };
            for (auto& variadic : op.variadic) variadic = [](const ort::Operator*) { return 1; };
            op.create_or_fail = create;
            op.compute_or_fail = compute;
            return op;
        }();
        return &found;
    }
};

template <class... Kinds> ort::Status* add_all(ort::Api api, ort::Domain* domain) {
    ort::Status* status = nullptr;
    for (const ort::Operator* op : {Kernel<Kinds>::description()...})
        if (!status) status = ort::call<ort::Status*(ort::Domain*, const ort::Operator*)>(api, ort::add_operator, domain, op);
    return status;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(ort::Session* options, const ort::ApiBase* base) {
    const ort::Api api = base->get_api(ort::api_version);
    if (!api) return error(base->get_api(1), ort::failed, "convattn's operators need onnxruntime 1.17 or newer");
    // sessions keep using it, so it is never given back
    static ort::Domain* domain = nullptr;
    static ort::Status* failed = nullptr;
    static const bool once = [&] {
        failed = ort::call<ort::Status*(const char*, ort::Domain**)>(api, ort::create_domain, "convattn", &domain);
        if (!failed) failed = add_all<Acmix, Attend, Correlate, Aggregate, GroupConvolution, OffsetConvolution, PixelShiftAttention>(api, domain);
        return true;
    }();
    (void)once;
    if (failed) return error(api, ort::failed, "convattn's operators cannot be registered");
    return ort::call<ort::Status*(ort::Session*, ort::Domain*)>(api, ort::add_domain, options, domain);
}
