// The words of CUDA that our kernels use, for a C++ compiler: every block and thread is one turn of a loop.
// The kernels need no barrier and share no memory; one thread after the other is one of the orders a GPU may take.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__

struct Index {
    unsigned x, y, z;
};
static Index blockIdx, threadIdx, blockDim;

// Addresses that are not aligned for their word fault on a GPU; here the sanitizer of the compiler finds them.
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

using std::max;
using std::min;

template <typename T>
T __ldg(const T* from) {
    return *from;
}
template <typename T>
void __stcs(T* to, T value) {
    *to = value;
}
inline float atomicAdd(float* to, float value) {
    const float before = *to;
    *to += value;
    return before;
}

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// float16 by arithmetic: not every compiler has the type
inline float half_bits_to_float(unsigned short bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float value = exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp((float)fraction, -24);
    if (exponent == 31) value = fraction ? NAN : INFINITY;
    return bits >> 15 ? -value : value;
}
inline unsigned short float_to_half_bits(float value) {
    const unsigned short sign = std::signbit(value) ? 0x8000 : 0;
    const float size = std::fabs(value);
    if (std::isnan(value)) return 0x7e00;
    if (size >= 65520.0f) return sign | 0x7c00;
    int exponent = size < std::ldexp(1.0f, -14) ? -14 : std::ilogb(size);
    const int fraction = (int)std::nearbyint(std::ldexp(size, 10 - exponent));  // 0..2048, ties to even
    // below 2^-14 the exponent field is 0; a carry out of the fraction lands in it by itself
    return sign | (unsigned short)(fraction + (exponent + 14) * 1024);
}

// Runs a kernel over its grid.
template <typename Kernel, typename Arguments>
void run(Kernel kernel, const Arguments& arguments, unsigned blocks_x, unsigned blocks_y, unsigned threads) {
    blockDim = {threads, 1, 1};
    for (unsigned y = 0; y < blocks_y; y++)
        for (unsigned x = 0; x < blocks_x; x++)
            for (unsigned thread = 0; thread < threads; thread++) {
                blockIdx = {x, y, 0};
                threadIdx = {thread, 0, 0};
                kernel(arguments);
            }
}
