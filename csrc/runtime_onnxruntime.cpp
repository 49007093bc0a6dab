// The operators of onnxruntime, domain "convattn". Any program registers this library with its session; it needs neither
// torch nor Python.
#include "onnxruntime_abi.h"
#include "runtime_operators.h"
#include "runtime_threads.h"

namespace {

// Those of a session: its threads wait by spinning, so a second set of threads would have to share their cores.
struct SessionThreads : Threads {
    ort::Api api;
    const ort::Context* context;
    SessionThreads(ort::Api api, const ort::Context* context) : api(api), context(context) {}

    unsigned members(unsigned wanted) const override { return wanted; }
    bool run(void (*member)(void*, size_t), unsigned members, void* data) const override {
        ort::Status* failed = ort::call<ort::Status*(const ort::Context*, void (*)(void*, size_t), size_t, size_t, void*)>(
            api, ort::parallel_for, context, member, (size_t)members, (size_t)members, data);
        if (failed) ort::call<void(ort::Status*)>(api, ort::release_status, failed);
        return !failed;
    }
};

struct SessionCall : Call {
    ort::Api api;
    ort::Context* context;
    SessionCall(ort::Api api, ort::Context* context) : api(api), context(context) {}

    void check(ort::Status* status) const {
        if (!status) return;
        ort::call<void(ort::Status*)>(api, ort::release_status, status);
        throw Refused{"onnxruntime did not give an input or output"};
    }
    Tensor input(size_t number) const override {
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
    Tensor output(const std::vector<int64_t>& shape) const override {
        ort::Value* value = nullptr;
        Tensor tensor;
        tensor.shape = shape;
        check(ort::call<ort::Status*(ort::Context*, size_t, const int64_t*, size_t, ort::Value**)>(
            api, ort::output, context, (size_t)0, tensor.shape.data(), tensor.shape.size(), &value));
        check(ort::call<ort::Status*(ort::Value*, void**)>(api, ort::tensor_data, value, (void**)&tensor.data));
        return tensor;
    }
};

bool ignore(ort::Api api, ort::Status* status) {
    if (status) ort::call<void(ort::Status*)>(api, ort::release_status, status);
    return !status;
}
int64_t integer(ort::Api api, const ort::Info* info, const char* name, int64_t otherwise) {
    int64_t value = otherwise;
    return ignore(api, ort::call<ort::Status*(const ort::Info*, const char*, int64_t*)>(api, ort::int_attribute, info, name, &value))
               ? value
               : otherwise;
}
std::vector<int64_t> integers(ort::Api api, const ort::Info* info, const char* name) {
    typedef ort::Status* Signature(const ort::Info*, const char*, int64_t*, size_t*);
    size_t size = 0;
    if (!ignore(api, ort::call<Signature>(api, ort::ints_attribute, info, name, (int64_t*)nullptr, &size))) return {};
    std::vector<int64_t> values(size);
    if (size) ignore(api, ort::call<Signature>(api, ort::ints_attribute, info, name, values.data(), &size));
    return values;
}
Attributes attributes_of(ort::Api api, const ort::Info* info) {
    float scale = 1.f;
    ignore(api, ort::call<ort::Status*(const ort::Info*, const char*, float*)>(api, ort::float_attribute, info, "scale", &scale));
    return Attributes(integers(api, info, "offsets"), integers(api, info, "stride"), integer(api, info, "border", 1),
                      integer(api, info, "num_heads", 1), integer(api, info, "relu", 0), scale);
}

ort::Status* error(ort::Api api, ort::ErrorCode code, const std::string& message) {
    return ort::call<ort::Status*(ort::ErrorCode, const char*)>(api, ort::create_status, code, message.c_str());
}
ort::Status* status(ort::Api api, const Outcome& came) {
    if (came.code == Outcome::computed) return nullptr;
    return error(api, came.code == Outcome::refused ? ort::invalid_argument : ort::failed, came.why);
}

template <class Kind> struct Kernel {
    ort::Api api;
    Attributes attributes;

    static ort::Status* create(const ort::Operator*, ort::Api api, const ort::Info* info, void** kernel) {
        return status(api, outcome<Kind>([&] {
            *kernel = new Kernel{api, attributes_of(api, info)};
            return false;
        }));
    }
    static ort::Status* compute(void* of, ort::Context* context) {
        const Kernel& kernel = *(const Kernel*)of;
        const SessionThreads threads(kernel.api, context);
        const RunOn here(threads);
        return status(kernel.api, outcome<Kind>([&] { return Kind::run(kernel.attributes, SessionCall(kernel.api, context)); }));
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

ort::Status* add_all(ort::Api api, ort::Domain* domain) {
    ort::Status* status = nullptr;
    each_operator([&](auto kind) {
        const ort::Operator* op = Kernel<decltype(kind)>::description();
        if (!status) status = ort::call<ort::Status*(ort::Domain*, const ort::Operator*)>(api, ort::add_operator, domain, op);
    });
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
        if (!failed) failed = add_all(api, domain);
        return true;
    }();
    (void)once;
    if (failed) return error(api, ort::failed, "convattn's operators cannot be registered");
    return ort::call<ort::Status*(ort::Session*, ort::Domain*)>(api, ort::add_domain, options, domain);
}
