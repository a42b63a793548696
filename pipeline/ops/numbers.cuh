// Number formats of feature maps; VEC values at a time, loaded and stored in words of up to 16 bytes.
//
// No header of the CUDA toolkit is needed, so that NVRTC alone can compile this. The two conversions of float16 are one
// instruction each; a build for the CPU brings its own.
#pragma once

struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };
typedef unsigned char uint8;

#ifdef __CUDACC__
__device__ __forceinline__ float half_bits_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
__device__ __forceinline__ unsigned short float_to_half_bits(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(uint8 value) { return (float)value; }
__device__ __forceinline__ float to_float(bfloat16 value) { return __uint_as_float((unsigned)value.bits << 16); }
__device__ __forceinline__ float to_float(float16 value) { return half_bits_to_float(value.bits); }

__device__ __forceinline__ void from_float(float value, float& to) { to = value; }
__device__ __forceinline__ void from_float(float value, float16& to) { to.bits = float_to_half_bits(value); }
__device__ __forceinline__ void from_float(float value, bfloat16& to) {
    const unsigned bits = __float_as_uint(value);
    // to nearest, ties to even; a NaN must not round to infinity
    to.bits = value != value ? 0x7fc0 : (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The type that moves so many bytes at once
template <int BYTES> struct Word;
template <> struct Word<1> { typedef unsigned char type; };
template <> struct Word<2> { typedef unsigned short type; };
template <> struct Word<4> { typedef unsigned type; };
template <> struct Word<8> { typedef uint2 type; };
template <> struct Word<16> { typedef uint4 type; };

// VEC values in words of up to 16 bytes
template <typename T>
struct Words {
    static const int EACH = VEC * sizeof(T) < 16 ? VEC : 16 / sizeof(T);
    typedef typename Word<EACH * sizeof(T)>::type Whole;
    union Packed {
        Whole whole;
        T values[EACH];
    };
};

template <typename T>
__device__ __forceinline__ void load(const T* from, float (&to)[VEC]) {
    typedef Words<T> W;
#pragma unroll
    for (int first = 0; first < VEC; first += W::EACH) {
        typename W::Packed packed;
        packed.whole = __ldg((const typename W::Whole*)(from + first));
#pragma unroll
        for (int i = 0; i < W::EACH; i++) to[first + i] = to_float(packed.values[i]);
    }
}

template <typename T>
__device__ __forceinline__ void store(const float (&from)[VEC], T* to) {
    typedef Words<T> W;
#pragma unroll
    for (int first = 0; first < VEC; first += W::EACH) {
        typename W::Packed packed;
#pragma unroll
        for (int i = 0; i < W::EACH; i++) from_float(from[first + i], packed.values[i]);
        __stcs((typename W::Whole*)(to + first), packed.whole);  // never read here: the maps stay in the cache
    }
}

__device__ __forceinline__ void add(float weight, const float (&values)[VEC], float (&sums)[VEC]) {
#pragma unroll
    for (int i = 0; i < VEC; i++) sums[i] += weight * values[i];
}

// `to` is float32 in global memory, aligned as VEC floats of at most 16 bytes.
__device__ __forceinline__ void add_atomically(float weight, const float (&values)[VEC], float* to) {
#if __CUDA_ARCH__ >= 900 && VEC % 4 == 0
#pragma unroll
    for (int i = 0; i < VEC; i += 4)
        asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to + i)),
                     "f"(weight * values[i]), "f"(weight * values[i + 1]), "f"(weight * values[i + 2]),
                     "f"(weight * values[i + 3])
                     : "memory");
#else
#pragma unroll
    for (int i = 0; i < VEC; i++) atomicAdd(to + i, weight * values[i]);
#endif
}
