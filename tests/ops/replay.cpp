// Repeats calls of the CPU kernels that tests/ops/recorded.py wrote down, and compares the answers: ./replay FILE
//
// What a kernel writes may differ from the recorded numbers by a share of the largest of them: another processor adds in
// another order. Every region of memory ends where its block on
// the heap does, so that an emulator or a sanitizer sees who passes it.
#include "../../csrc/convattn.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <type_traits>
#include <string>
#include <vector>

extern "C" const char* convattn_isa();
extern "C" int convattn_abi_version();
#define DECLARE(name, parameters, arguments) extern "C" int name parameters;
CONVATTN_FUNCTIONS(DECLARE)

enum Kind : uint32_t { FLOAT32, BFLOAT16, FLOAT16, FLOAT64, INT32 };
// Of the largest number that the kernel wrote into a region.
const double tolerance[] = {3e-5, 1.0 / 128, 1.0 / 1024, 3e-5, 0};

struct Input {
    FILE* file;
    void read(void* to, size_t bytes) {
        if (bytes && fread(to, 1, bytes, file) != bytes) {
            fprintf(stderr, "replay: the file ends within a call\n");
            exit(2);
        }
    }
    template <class T> T one() {
        T value;
        read(&value, sizeof value);
        return value;
    }
};

struct Region {
    Kind kind;
    std::vector<unsigned char> before, after;
    unsigned char* memory;
    explicit Region(Input& in) : kind(in.one<Kind>()), before(in.one<uint64_t>()), after(before.size()) {
        in.read(before.data(), before.size());
        in.read(after.data(), after.size());
        // malloc aligns to 16 bytes, as torch does to 64: less would ask more of a kernel than its callers may
        memory = (unsigned char*)malloc(before.size() ? before.size() : 1);
        memcpy(memory, before.data(), before.size());
    }
    Region(Region&& other) : kind(other.kind), before(std::move(other.before)), after(std::move(other.after)) {
        memory = other.memory;
        other.memory = nullptr;
    }
    ~Region() { free(memory); }
};

double number(Kind kind, const unsigned char* at) {
    if (kind == FLOAT64) {
        double value;
        memcpy(&value, at, 8);
        return value;
    }
    float value;
    uint32_t bits = 0;
    uint16_t half = 0;
    if (kind == FLOAT32) memcpy(&bits, at, 4);
    else memcpy(&half, at, 2);
    if (kind == BFLOAT16) bits = (uint32_t)half << 16;
    if (kind == FLOAT16) {
        const int exponent = half >> 10 & 31, fraction = half & 1023;
        const double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                            : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                           : ldexp(fraction, -24);
        return half & 0x8000 ? -size : size;
    }
    memcpy(&value, &bits, 4);
    return value;
}

// The largest difference in shares of the tolerance; above 1 is wrong.
double difference(const Region& region) {
    const size_t step = region.kind == FLOAT64 ? 8 : region.kind == FLOAT32 || region.kind == INT32 ? 4 : 2;
    double largest = 0.01, worst = 0;  // sums of nothing but rounding errors are below it
    auto differs = [&](const unsigned char* a, const unsigned char* b) { return memcmp(a, b, step) != 0; };
    for (size_t i = 0; i < region.before.size(); i += step)
        if (differs(&region.before[i], &region.after[i]) || differs(region.memory + i, &region.after[i])) {
            const double value = fabs(number(region.kind, &region.after[i]));
            if (isfinite(value) && value > largest) largest = value;
        }
    for (size_t i = 0; i < region.before.size(); i += step) {
        if (!differs(region.memory + i, &region.after[i])) continue;
        if (!differs(&region.before[i], &region.after[i]) && region.kind == INT32) return INFINITY;
        const double got = number(region.kind, region.memory + i), wanted = number(region.kind, &region.after[i]);
        if (got == wanted || (isnan(got) && isnan(wanted))) continue;
        const double share = fabs(got - wanted) / (tolerance[region.kind] * largest);
        if (!(share <= worst)) worst = isnan(share) ? INFINITY : share;
    }
    return worst;
}

void* pointer(Input& in, std::vector<Region>& regions) {
    const int32_t index = in.one<int32_t>();
    const uint64_t offset = in.one<uint64_t>();
    return index < 0 ? nullptr : regions[index].memory + offset;
}

// Structures live until the call has been made.
struct Arguments {
    Input& in;
    std::vector<Region>& regions;
    std::vector<std::vector<uint64_t>> structures;
    template <class T> T next() {
        const char tag = in.one<char>();
        if constexpr (std::is_same<T, float>::value) {
            if (tag == 'F') return in.one<float>();
        } else {
            if (tag == 'P') return (T)pointer(in, regions);
            if (tag == 'S') {
                const uint32_t size = in.one<uint32_t>();
                structures.emplace_back((size + 7) / 8);
                char* bytes = (char*)structures.back().data();
                in.read(bytes, size);
                for (uint32_t left = in.one<uint32_t>(); left; left--) {
                    const uint32_t field = in.one<uint32_t>();
                    void* p = pointer(in, regions);
                    memcpy(bytes + field, &p, sizeof p);
                }
                return (T)bytes;
            }
        }
        fprintf(stderr, "replay: an argument of another kind than the kernel's\n");
        exit(2);
    }
};

template <class... T> int call(int (*function)(T...), Arguments& from) {
    struct Call {
        int result;
        Call(int (*f)(T...), T... values) : result(f(values...)) {}
    };
    return Call{function, from.next<T>()...}.result;  // braces: one argument is read after the other
}

int run(const std::string& name, Arguments& from) {
#define CALL(kernel, parameters, arguments) \
    if (name == #kernel) return call(kernel, from);
    CONVATTN_FUNCTIONS(CALL)
    fprintf(stderr, "replay: no kernel is called %s\n", name.c_str());
    exit(2);
}

int main(int count, char** words) {
    Input in{count == 2 ? fopen(words[1], "rb") : nullptr};
    char magic[17];
    if (!in.file || fread(magic, 1, 17, in.file) != 17 || memcmp(magic, "convattn calls 1\n", 17)) {
        fprintf(stderr, "replay: needs a file of calls that tests/ops/recorded.py wrote\n");
        return 2;
    }
    if (convattn_abi_version() != CONVATTN_ABI_VERSION) {
        fprintf(stderr, "replay: the library has another interface than convattn.h\n");
        return 2;
    }
    struct Row {
        std::string name;
        int calls, wrong;
        double worst;
    };
    std::vector<Row> rows;
    uint32_t length;
    while (fread(&length, 4, 1, in.file) == 1) {
        std::string name(length, ' ');
        in.read(&name[0], length);
        std::vector<Region> regions;
        const uint32_t many = in.one<uint32_t>();
        regions.reserve(many);
        for (uint32_t i = 0; i < many; i++) regions.emplace_back(in);
        Arguments from{in, regions, {}};
        const uint32_t given = in.one<uint32_t>();
        from.structures.reserve(given);
        double worst = run(name, from) ? INFINITY : 0;
        for (const Region& region : regions) worst = fmax(worst, difference(region));
        if (rows.empty() || rows.back().name != name) {
            size_t i = 0;
            while (i < rows.size() && rows[i].name != name) i++;
            if (i == rows.size()) rows.push_back({name, 0, 0, 0});
            else std::swap(rows[i], rows.back());
        }
        rows.back().calls++;
        rows.back().wrong += worst > 1;
        rows.back().worst = fmax(rows.back().worst, worst);
    }
    int calls = 0, wrong = 0;
    for (const Row& row : rows) {
        printf("%-28s %4d calls, %d wrong, at worst %.3f of the tolerance\n", row.name.c_str(), row.calls, row.wrong, row.worst);
        calls += row.calls;
        wrong += row.wrong;
    }
    printf("%s: %d calls of %zu kernels, %d wrong\n", convattn_isa(), calls, rows.size(), wrong);
    return wrong || !calls;
}
