// The part of onnxruntime's C interface that csrc/onnxruntime.cpp uses, declared here so that a build needs no headers of
// its own. The interface is a table of functions that only ever grows at its end, so a place in it never changes.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace ort {

// The table as of onnxruntime 1.17, the first with parallel loops for custom operators.
constexpr uint32_t api_version = 17;
typedef const void* const* Api;

struct ApiBase {
    Api (*get_api)(uint32_t version);
    const char* (*version)();
};

struct Status;
struct Session;
struct Domain;
struct Value;
struct Shape;
struct Info;
struct Context;

enum Place {
    create_status = 0,
    create_domain = 26,
    add_operator = 27,
    add_domain = 28,
    tensor_data = 51,
    dimension_count = 61,
    dimensions = 62,
    tensor_shape = 65,
    float_attribute = 85,
    int_attribute = 86,
    input = 90,
    output = 91,
    release_status = 93,
    release_shape = 99,
    ints_attribute = 163,
    parallel_for = 274,
};

// Calls the function at a place; `Result(Arguments...)` is its C signature.
template <class Signature, class... Arguments> auto call(Api api, Place place, Arguments... arguments) {
    return ((Signature*)api[place])(arguments...);
}

enum ErrorCode { failed = 1, invalid_argument = 2 };
enum ElementType { float32 = 1 };
enum Presence { required = 0, optional = 1 };

struct Operator {
    uint32_t version;
    void* (*create)(const Operator*, Api, const Info*);
    const char* (*name)(const Operator*);
    const char* (*provider)(const Operator*);
    ElementType (*input_type)(const Operator*, size_t);
    size_t (*input_count)(const Operator*);
    ElementType (*output_type)(const Operator*, size_t);
    size_t (*output_count)(const Operator*);
    void (*compute)(void* kernel, Context*);
    void (*destroy)(void* kernel);
    Presence (*input_presence)(const Operator*, size_t);
    Presence (*output_presence)(const Operator*, size_t);
    int (*input_memory)(const Operator*, size_t);
    int (*variadic[4])(const Operator*);
    Status* (*create_or_fail)(const Operator*, Api, const Info*, void** kernel);
    Status* (*compute_or_fail)(void* kernel, Context*);
    void* unused[7];
};

}  // namespace ort
