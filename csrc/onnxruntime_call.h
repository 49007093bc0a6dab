// What an operator in csrc/onnxruntime.cpp is given: its tensors and its attributes, checked.
#pragma once
#include "convattn.h"
#include "onnxruntime_abi.h"

#include <initializer_list>
#include <string>
#include <thread>
#include <vector>

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

// Inputs and outputs of one computation.
struct Call {
    ort::Api api;
    ort::Context* context;

    void check(ort::Status* status) const {
        if (!status) return;
        ort::call<void(ort::Status*)>(api, ort::release_status, status);
        throw Refused{"onnxruntime did not give an input or output"};
    }
    Tensor input(size_t number) const {
        const ort::Value* value = nullptr;
        check(ort::call<ort::Status*(const ort::Context*, size_t, const ort::Value**)>(
            api, ort::input, context, number, &value));
        Tensor tensor;
        if (!value) return tensor;
        ort::Shape* shape = nullptr;
        check(ort::call<ort::Status*(const ort::Value*, ort::Shape**)>(api, ort::tensor_shape, value, &shape));
        size_t rank = 0;
        check(ort::call<ort::Status*(const ort::Shape*, size_t*)>(api, ort::dimension_count, shape, &rank));
        tensor.shape.resize(rank);
        check(ort::call<ort::Status*(const ort::Shape*, int64_t*, size_t)>(
            api, ort::dimensions, shape, tensor.shape.data(), rank));
        ort::call<void(ort::Shape*)>(api, ort::release_shape, shape);
        check(ort::call<ort::Status*(ort::Value*, void**)>(
            api, ort::tensor_data, (ort::Value*)value, (void**)&tensor.data));
        static float nothing;  // an empty tensor has no address, and is there all the same
        if (!tensor.data) tensor.data = &nothing;
        return tensor;
    }
    // A map [B, H, W, C], or with `planes` [B, C, H, W].
    Tensor map(size_t number, size_t rank = 4) const {
        Tensor tensor = input(number);
        expect(tensor.data && tensor.shape.size() == rank, "a map of another rank than the operator takes");
        for (int64_t size : tensor.shape) narrow(size);
        return tensor;
    }
    Tensor output(std::initializer_list<int64_t> shape) const {
        ort::Value* value = nullptr;
        Tensor tensor;
        tensor.shape = shape;
        check(ort::call<ort::Status*(ort::Context*, size_t, const int64_t*, size_t, ort::Value**)>(
            api, ort::output, context, (size_t)0, (const int64_t*)tensor.shape.data(), tensor.shape.size(), &value));
        check(ort::call<ort::Status*(ort::Value*, void**)>(api, ort::tensor_data, value, (void**)&tensor.data));
        return tensor;
    }
};

struct Attributes {
    std::vector<int32_t> offsets;
    int64_t stride[2], border, heads, relu;
    float scale;

    Attributes(ort::Api api, const ort::Info* info)
        : border(integer(api, info, "border", 1)), heads(integer(api, info, "num_heads", 1)), relu(integer(api, info, "relu", 0)), scale(1.f) {
        ignore(api, ort::call<ort::Status*(const ort::Info*, const char*, float*)>(api, ort::float_attribute, info, "scale", &scale));
        for (int64_t value : integers(api, info, "offsets")) {
            expect(value >= -1024 && value <= 1024, "offsets of more than 1024 pixels");
            offsets.push_back((int32_t)value);
        }
        const std::vector<int64_t> steps = integers(api, info, "stride");
        for (size_t axis = 0; axis < 2; axis++) stride[axis] = steps.size() == 2 ? steps[axis] : 1;
        expect(stride[0] >= 1 && stride[0] <= 1024 && stride[1] >= 1 && stride[1] <= 1024, "a stride that is not 1 to 1024");
        expect(offsets.size() % 2 == 0, "an odd number of offset coordinates");
        expect(border >= 0 && border <= 2, "a border that is not 0, 1 or 2");
        expect(heads >= 1, "no heads");
    }

    static bool ignore(ort::Api api, ort::Status* status) {
        if (status) ort::call<void(ort::Status*)>(api, ort::release_status, status);
        return !status;
    }
    static int64_t integer(ort::Api api, const ort::Info* info, const char* name, int64_t otherwise) {
        int64_t value = otherwise;
        return ignore(api, ort::call<ort::Status*(const ort::Info*, const char*, int64_t*)>(api, ort::int_attribute, info, name, &value))
                   ? value
                   : otherwise;
    }
    static std::vector<int64_t> integers(ort::Api api, const ort::Info* info, const char* name) {
        typedef ort::Status* Signature(const ort::Info*, const char*, int64_t*, size_t*);
        size_t size = 0;
        if (!ignore(api, ort::call<Signature>(api, ort::ints_attribute, info, name, (int64_t*)nullptr, &size))) return {};
        std::vector<int64_t> values(size);
        if (size) ignore(api, ort::call<Signature>(api, ort::ints_attribute, info, name, values.data(), &size));
        return values;
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
    // Whether the kernels for reflected 7x7 windows serve, as in ops/_abi.py.
    bool is_fast_window(int64_t channels) const {
        bool window = border == 0 && stride[0] == stride[1] && stride[0] <= 2 && taps() == 49 && head_dim(channels) >= 16;
        for (int m = 0; window && m < 49; m++) window = offsets[2 * m] == m / 7 - 3 && offsets[2 * m + 1] == m % 7 - 3;
        return window;
    }
    ConvattnWindow window(int64_t batch, int64_t height, int64_t width, int64_t channels) const {
        expect(height > 0 && width > 0, "an empty map");
        expect(stride[0] == stride[1] && stride[0] <= 2, "a stride that is not 1 or 2");
        return {narrow(batch), narrow(height), narrow(width), narrow(heads), narrow(head_dim(channels)), narrow(stride[0]),
                relu ? 1 : 0, threads(), scale, 0};
    }
};

}  // namespace
