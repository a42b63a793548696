// What the kernels of RoIAlign share: their arguments, the stencil of a box along one axis, the place of a thread.
//
// Samples of a bin lie on a grid and bilinear weights are products, so a bin is sum_y sum_x Y[y] X[x] F[y, x]. A coarse
// level that is upsampled to the grid of the first is read through the product of both stencils (three cells for each
// sample and axis); the upsampled map never exists. Boxes and sums are float32 whatever the maps are.
//
// Built by roi_align_cuda.py with these macros, for the GPU by NVRTC, for tests by a C++ compiler:
//   SOURCES 1..4, TYPE_0 .. TYPE_3   number of levels and their formats: float, float16, bfloat16, uint8
//   PAYLOAD                          format of the output, and of the gradient that comes in
//   VEC                              channels of a thread
//   SAMPLES                          samples per bin and axis; 0: known at run time
//   COMPOSITE                        1: levels after the first are upsampled to its grid; 0: each has its own
#pragma once
#include "numbers.cuh"

#define MAX_SOURCES 4
#define LATER_TAPS (COMPOSITE ? 3 : 2)

struct Source {
    const void* values;  // "b h w c"; c is contiguous
    const float* scale;  // "b c"; uint8 only
    const float* offset;
    float* grad;  // as values, in float32; null where no gradient is wanted
    long long image_step;  // elements
    int row_step, cell_step;  // row_step 0: an image's rows follow each other
    float per_pixel;  // cells per input pixel
};

struct Arguments {
    Source sources[MAX_SOURCES];
    const float* boxes;  // "m 4", xyxy in input pixels
    const int* table;  // image of each box "m"; first box of each image "b + 1"; h and w of each level and image
    void* payload;  // "m r r c"
    int boxes_count, images, channels, size, samples, aligned;
    int run;  // bins of a thread
    int source;  // the level that roi_align_gather writes
};
static_assert(sizeof(Source) == 56 && sizeof(Arguments) == 280, "as _Source and _Arguments of roi_align_cuda.py");

// ---- one axis of one box -------------------------------------------------------------------------------------------

struct Axis {
    float start, step;  // first end of the box and length of a bin, in cells of the grid that is sampled
    float samples, share;  // samples per bin, and 1 / samples
    float ratio;  // cells read per cell sampled
    int cells, read;  // length of the grid that is sampled, and of the map that is read
};

// Coordinates are rounded operation by operation as torchvision's are: a sample right on the border is inside for both.
__device__ __forceinline__ Axis
make_axis(const Arguments& a, float low, float high, float per_pixel, int cells, int read) {
    const float half = a.aligned ? 0.5f : 0.0f;
    Axis axis;
    axis.start = __fsub_rn(__fmul_rn(low, per_pixel), half);
    float length = __fsub_rn(__fsub_rn(__fmul_rn(high, per_pixel), half), axis.start);
    if (!a.aligned) length = fmaxf(length, 1.0f);
    axis.step = __fdiv_rn(length, (float)a.size);
    const float whole = ceilf(axis.step);
    axis.samples = SAMPLES > 0 ? (float)SAMPLES : a.samples > 0 ? (float)a.samples : whole > 0.0f ? whole : 0.0f;
    axis.share = axis.samples > 0.0f ? 1.0f / axis.samples : 0.0f;
    axis.cells = cells;
    axis.read = read;
    axis.ratio = (float)read / (float)cells;
    return axis;
}

// What one sample reads: TAPS cells from `cell` on. Two on the grid itself, three through upsampling.
template <int TAPS>
struct Tap {
    int cell;
    float weight[TAPS];
};

// Cells and weight that upsampling gives a cell of the finer grid
__device__ __forceinline__ int upsampled_from(const Axis& axis, int cell, float& fraction) {
    const float at = fmaxf(axis.ratio * ((float)cell + 0.5f) - 0.5f, 0.0f);
    const int lower = min((int)at, axis.read - 1);
    fraction = lower < axis.read - 1 ? at - (float)lower : 0.0f;
    return lower;
}

template <int TAPS>
__device__ __forceinline__ Tap<TAPS> make_tap(const Axis& axis, int bin, int sample) {
    Tap<TAPS> tap;
    tap.cell = 0;
#pragma unroll
    for (int t = 0; t < TAPS; t++) tap.weight[t] = 0.0f;
    const float within = __fdiv_rn(__fmul_rn((float)sample + 0.5f, axis.step), axis.samples);
    float at = __fadd_rn(__fadd_rn(axis.start, __fmul_rn((float)bin, axis.step)), within);
    if (!(at >= -1.0f && at <= (float)axis.cells)) return tap;  // outside, or not a number
    at = fmaxf(at, 0.0f);
    const int lower = min((int)at, axis.cells - 1);
    const float fraction = lower < axis.cells - 1 ? at - (float)lower : 0.0f;
    const float first = (1.0f - fraction) * axis.share, second = fraction * axis.share;
    if (TAPS == 2) {
        tap.cell = lower;
        tap.weight[0] = first;
        tap.weight[1] = second;
        return tap;
    }
    float up, next_up;
    tap.cell = upsampled_from(axis, lower, up);
    tap.weight[0] = first * (1.0f - up);
    tap.weight[1] = first * up;
    if (second > 0.0f) {  // then lower + 1 is a cell, and begins where lower does or one further
        const int next = upsampled_from(axis, lower + 1, next_up);
        const bool further = next > tap.cell;
        tap.weight[0] += further ? 0.0f : second * (1.0f - next_up);
        tap.weight[1] += further ? second * (1.0f - next_up) : second * next_up;
        tap.weight[TAPS - 1] += further ? second * next_up : 0.0f;
    }
    return tap;
}

// The samples of a bin that can lie on the map: an enormous box has millions beside it.
__device__ __forceinline__ void sample_range(const Axis& axis, int bin, int& first, int& last) {
    first = 0;
    last = (int)fminf(axis.samples, 1e9f) - 1;
    if (SAMPLES > 0 || !(axis.step > 0.0f)) return;
    const float each = axis.step * axis.share, from = axis.start + (float)bin * axis.step;
    const float low = (-1.0f - from) / each - 2.0f, high = ((float)axis.cells - from) / each + 2.0f;
    const float most = (float)last;
    first = (int)fmaxf(fminf(low, most), 0.0f);
    last = (int)fminf(fmaxf(high, -1.0f), most);
}

// The rows of a bin with their weights, each row once where samples ascend.
template <int TAPS>
struct Rows {
#if SAMPLES > 0
    Tap<TAPS> taps[SAMPLES];

    __device__ __forceinline__ Rows(const Axis& axis, int bin) {
#pragma unroll
        for (int i = 0; i < SAMPLES; i++) {
            taps[i] = make_tap<TAPS>(axis, bin, i);
            if (i == 0) continue;
            // what two samples share becomes the later one's
            const int shift = taps[i].cell - taps[i - 1].cell;
#pragma unroll
            for (int t = 0; t < TAPS; t++)
#pragma unroll
                for (int s = t; s < TAPS; s++)
                    if (s - t == shift) {
                        taps[i].weight[t] += taps[i - 1].weight[s];
                        taps[i - 1].weight[s] = 0.0f;
                    }
        }
    }

    template <typename F>
    __device__ __forceinline__ void each(const Axis&, F use) const {
#pragma unroll
        for (int i = 0; i < SAMPLES; i++)
#pragma unroll
            for (int t = 0; t < TAPS; t++)
                if (taps[i].weight[t] != 0.0f) use(taps[i].cell + t, taps[i].weight[t]);
    }
#else
    int bin;

    __device__ __forceinline__ Rows(const Axis&, int bin) : bin(bin) {}

    template <typename F>
    __device__ __forceinline__ void each(const Axis& axis, F use) const {
        Tap<TAPS> open;  // rows that the next sample may still add to
        open.cell = 0;
#pragma unroll
        for (int t = 0; t < TAPS; t++) open.weight[t] = 0.0f;
        int first, last;
        sample_range(axis, bin, first, last);
        for (int i = first; i <= last + 1; i++) {
            Tap<TAPS> tap;
            if (i <= last) tap = make_tap<TAPS>(axis, bin, i);
            else tap.cell = open.cell + TAPS;  // closes all
            const int shift = tap.cell - open.cell;
#pragma unroll
            for (int s = 0; s < TAPS; s++) {
                if (open.weight[s] == 0.0f) continue;
                if (i > last || shift < 0 || s < shift) use(open.cell + s, open.weight[s]);
                else
#pragma unroll
                    for (int t = 0; t < TAPS; t++)
                        if (s - t == shift) tap.weight[t] += open.weight[s];
            }
            if (i <= last) open = tap;
        }
    }
#endif
};

// ---- where a thread works ------------------------------------------------------------------------------------------

struct Place {
    int box, image, channel;  // first of VEC channels
    int row, first, end;  // row of bins, and which bins of it
    bool inside;
};

__device__ __forceinline__ Place find_place(const Arguments& a) {
    const unsigned lanes = a.channels / VEC, runs = (a.size + a.run - 1) / a.run;
    const unsigned blocks = (lanes * runs * a.size + blockDim.x - 1) / blockDim.x;  // for each box
    const unsigned thread = blockIdx.x % blocks * blockDim.x + threadIdx.x, run = thread / lanes;
    Place place;
    place.box = blockIdx.x / blocks;
    place.row = run / runs;
    place.first = run % runs * a.run;
    place.end = min(place.first + a.run, a.size);
    place.channel = thread % lanes * VEC;
    place.inside = place.row < a.size;
    place.image = a.table[place.box];
    return place;
}

__device__ __forceinline__ const int* grid_of(const Arguments& a, int source, int image) {
    return a.table + a.boxes_count + a.images + 1 + 2 * (source * a.images + image);
}

// The x (0) or y (1) axis of a box on a level that TAPS says how to read
template <int TAPS>
__device__ __forceinline__ Axis axis_of(const Arguments& a, int source, int image, int box, int axis) {
    const int sampled = TAPS == 3 ? 0 : source;
    const float* corners = a.boxes + 4 * box + axis;
    const int cells = grid_of(a, sampled, image)[1 - axis], read = grid_of(a, source, image)[1 - axis];
    return make_axis(a, __ldg(corners), __ldg(corners + 2), a.sources[sampled].per_pixel, cells, read);
}

__device__ __forceinline__ long long payload_at(const Arguments& a, int box, int row, int bin) {
    return (((long long)box * a.size + row) * a.size + bin) * a.channels;
}

__device__ __forceinline__ int row_step_of(const Source& source, int w) {
    return source.row_step ? source.row_step : w * source.cell_step;
}

// TAPS columns from `cell` on. The window only moves on where samples ascend, so that each column is made once.
template <int TAPS>
struct Columns {
    float values[TAPS][VEC];
    bool used[TAPS];
    int cell;

    __device__ __forceinline__ Columns() : cell(0) {
#pragma unroll
        for (int t = 0; t < TAPS; t++) used[t] = false;
    }

    // To columns from `to` on; `leave(column, values)` sees those that are no longer among them.
    template <typename F>
    __device__ __forceinline__ void move(int to, F leave) {
        const int shift = to - cell;
        if (shift == 0) return;
#pragma unroll
        for (int t = 0; t < TAPS; t++)
            if (used[t] && (shift < 0 || t < shift)) leave(cell + t, values[t]);
#pragma unroll
        for (int t = 0; t < TAPS; t++) {
            bool kept = false;
#pragma unroll
            for (int s = t + 1; s < TAPS; s++)
                if (s - t == shift) {
                    kept = used[s];
#pragma unroll
                    for (int i = 0; i < VEC; i++) values[t][i] = values[s][i];
                }
            used[t] = kept;
        }
        cell = to;
    }
};
