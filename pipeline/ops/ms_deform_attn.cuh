// What the kernels of deformable attention share: their arguments, and which cells a point reads.
//
// Locations, weights and sums are float32 whatever the values are. A point outside its level by a cell or more reads
// nothing; one that is not a number spoils what it touches, so that it is noticed.
//
// Built by ms_deform_attn_cuda.py with these macros, for the GPU by NVRTC, for tests by a C++ compiler:
//   TYPE    format of the values, of the output, and of the gradient that comes in: float, float16, bfloat16
//   VEC     channels of a thread
//   POINTS  of each level
#pragma once
#include "numbers.cuh"

#define MAX_LEVELS 8

struct Level {
    int h, w, first;  // first: its first token
};

struct Arguments {
    const void* value;  // "b s m d"
    const float* locations;  // "b q m l p 2", (x, y) in 0-1
    const float* weights;  // "b q m l p"
    void* result;  // "b q m d"; in a backward pass the gradient that comes in
    float *by_value, *by_location, *by_weight;  // gradients, shaped as what they are of
    long long rows;  // b * q * m
    Level levels[MAX_LEVELS];
    int levels_count, tokens, queries, heads, channels;
};
static_assert(sizeof(Arguments) == 184, "as _Arguments of ms_deform_attn_cuda.py");

// The four cells around a point: top left, top right, bottom left, bottom right.
struct Point {
    bool outside;
    bool there[4];  // whether each is a cell of the level
    int at[4];  // elements from the first of the image
    float x, y;  // how far right of the left cells, and below the upper ones
};

// Rounded operation by operation, as the CPU does: a point right on a cell belongs to the same four for both.
__device__ __forceinline__ float place_of(float coordinate, int cells) {
    return __fsub_rn(__fmul_rn(coordinate, (float)cells), 0.5f);
}

__device__ __forceinline__ Point find_point(const Arguments& a, const Level& level, const float* location) {
    Point point;
    const float x = place_of(__ldg(location), level.w), y = place_of(__ldg(location + 1), level.h);
    point.outside = x < -1.0f || x >= (float)level.w || y < -1.0f || y >= (float)level.h;
    const float left = floorf(x), above = floorf(y);
    point.x = x - left;
    point.y = y - above;
    const bool known = x == x && y == y && !point.outside;  // only then can it be an integer
    const int column = known ? (int)left : 0, row = known ? (int)above : 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int c = column + i % 2, r = row + i / 2;
        point.there[i] = !point.outside && c >= 0 && c < level.w && r >= 0 && r < level.h;
        point.at[i] = (level.first + r * level.w + c) * a.heads * a.channels;
    }
    return point;
}

// The share of a cell in the sample of a point
__device__ __forceinline__ float part_of(const Point& point, int i) {
    return (i % 2 ? point.x : 1.0f - point.x) * (i / 2 ? point.y : 1.0f - point.y);
}

// First element of the channels of a head in the values of an image. row: of image, query and head.
__device__ __forceinline__ long long values_of(const Arguments& a, long long row) {
    const long long image = row / ((long long)a.queries * a.heads);
    return (image * a.tokens * a.heads + row % a.heads) * a.channels;
}

// VEC channels of a row of image, query and head
struct Lane {
    long long row;
    int channel;
    bool inside;
};

__device__ __forceinline__ Lane find_lane(const Arguments& a) {
    const unsigned lanes = a.channels / VEC;
    const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    Lane lane;
    lane.row = thread / lanes;
    lane.channel = thread % lanes * VEC;
    lane.inside = lane.row < a.rows;
    return lane;
}

// `use(element, weight)` for each cell that a row reads, elements counted from the first of the image
template <typename F>
__device__ __forceinline__ void each_cell(const Arguments& a, long long row, F use) {
    const float* locations = a.locations + row * (a.levels_count * POINTS * 2);
    const float* weights = a.weights + row * (a.levels_count * POINTS);
#pragma unroll 1
    for (int l = 0; l < a.levels_count; l++)
#pragma unroll
        for (int p = 0; p < POINTS; p++) {
            const int i = l * POINTS + p;
            const Point point = find_point(a, a.levels[l], locations + 2 * i);
            const float weight = __ldg(weights + i);
#pragma unroll
            for (int c = 0; c < 4; c++)
                if (point.there[c]) use(point.at[c], weight * part_of(point, c));
        }
}
