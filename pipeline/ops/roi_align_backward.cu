// The gradient of RoIAlign to each of its maps, in two ways: fast with atomic sums, or in a fixed order.
#include "roi_align.cuh"

// ---- backward, fast: each thread adds its columns to the map -------------------------------------------------------

template <int TAPS>
struct Writer {
    Axis ys, xs;
    Rows<TAPS> rows;
    float* to;
    int row_step, cell_step;
    Columns<TAPS> columns;

    __device__ __forceinline__ Writer(const Arguments& a, int source, const Place& place)
        : ys(axis_of<TAPS>(a, source, place.image, place.box, 1)),
          xs(axis_of<TAPS>(a, source, place.image, place.box, 0)),
          rows(ys, place.row),
          row_step(row_step_of(a.sources[source], xs.read)),
          cell_step(a.sources[source].cell_step) {
        to = a.sources[source].grad;
        if (to != nullptr) to += place.image * a.sources[source].image_step + place.channel;
    }

    // Spreads the gradient of a bin over its columns.
    __device__ __forceinline__ void unpool(int bin, const float (&grad)[VEC]) {
        if (to == nullptr) return;
        int first, last;
        sample_range(xs, bin, first, last);
        for (int i = first; i <= last; i++) {
            const Tap<TAPS> tap = make_tap<TAPS>(xs, bin, i);
            columns.move(tap.cell, [&](int column, const float(&values)[VEC]) { write(column, values); });
#pragma unroll
            for (int t = 0; t < TAPS; t++) {
                if (tap.weight[t] == 0.0f) continue;
                if (!columns.used[t])
#pragma unroll
                    for (int c = 0; c < VEC; c++) columns.values[t][c] = 0.0f;
                columns.used[t] = true;
                add(tap.weight[t], grad, columns.values[t]);
            }
        }
    }

    __device__ __forceinline__ void write(int column, const float (&values)[VEC]) const {
        float* top = to + column * cell_step;
        rows.each(ys, [&](int row, float weight) { add_atomically(weight, values, top + row * row_step); });
    }

    __device__ __forceinline__ void finish() const {
#pragma unroll
        for (int t = 0; t < TAPS; t++)
            if (columns.used[t]) write(columns.cell + t, columns.values[t]);
    }
};

extern "C" __global__ void roi_align_scatter(const __grid_constant__ Arguments a) {
    const Place place = find_place(a);
    if (!place.inside) return;
    Writer<2> writer_0(a, 0, place);
#if SOURCES > 1
    Writer<LATER_TAPS> writer_1(a, 1, place);
#endif
#if SOURCES > 2
    Writer<LATER_TAPS> writer_2(a, 2, place);
#endif
#if SOURCES > 3
    Writer<LATER_TAPS> writer_3(a, 3, place);
#endif
#pragma unroll 1
    for (int bin = place.first; bin < place.end; bin++) {
        float grad[VEC];
        load((const PAYLOAD*)a.payload + payload_at(a, place.box, place.row, bin) + place.channel, grad);
        writer_0.unpool(bin, grad);
#if SOURCES > 1
        writer_1.unpool(bin, grad);
#endif
#if SOURCES > 2
        writer_2.unpool(bin, grad);
#endif
#if SOURCES > 3
        writer_3.unpool(bin, grad);
#endif
    }
    writer_0.finish();
#if SOURCES > 1
    writer_1.finish();
#endif
#if SOURCES > 2
    writer_2.finish();
#endif
#if SOURCES > 3
    writer_3.finish();
#endif
}

// ---- backward, deterministic: each cell gathers from the bins that read it, always in the same order ---------------

// Where along an axis of the sampled grid samples lie that may read a cell, a little wider rather than too narrow.
struct Reach {
    float low, high;
};

template <int TAPS>
__device__ __forceinline__ Reach reach_of(int cell, int cells, int read) {
    Reach reach = {(float)cell - 1.0f, (float)cell + 1.0f};
    if (TAPS == 3) {  // cells of the finer grid that are upsampled from it, and their neighbours
        const float finer = (float)cells / (float)read;
        reach.low = (reach.low + 0.5f) * finer - 1.5f;
        reach.high = (reach.high + 0.5f) * finer + 0.5f;
    }
    reach.low -= 0.01f;  // for rounding
    reach.high += 0.01f;
    return reach;
}

// Whether a box has samples there: most boxes have none, and this is all that a thread computes for them.
__device__ __forceinline__ bool reaches(const Arguments& a, int box, int axis, float per_pixel, Reach reach) {
    const float half = a.aligned ? 0.5f : 0.0f;
    const float start = __ldg(a.boxes + 4 * box + axis) * per_pixel - half;
    float end = __ldg(a.boxes + 4 * box + axis + 2) * per_pixel - half;
    if (!a.aligned) end = fmaxf(end, start + 1.0f);
    return fmaxf(start, end) >= reach.low && fminf(start, end) <= reach.high;
}

// The bins with samples there: first <= bin <= last
__device__ __forceinline__ void bins_of(const Axis& axis, Reach reach, int bins, int& first, int& last) {
    first = 0;
    last = bins - 1;
    if (!(axis.step > 0.0f)) return;
    const float from = (reach.low - axis.start) / axis.step, to = (reach.high - axis.start) / axis.step;
    first = (int)fminf(fmaxf(floorf(from), 0.0f), (float)bins);
    last = (int)fmaxf(fminf(floorf(to), (float)(bins - 1)), -1.0f);
}

// The weight of a cell in a bin
template <int TAPS>
__device__ __forceinline__ float weight_of(const Axis& axis, int bin, int cell) {
    float sum = 0.0f;
    int first, last;
    sample_range(axis, bin, first, last);
    for (int i = first; i <= last; i++) {
        const Tap<TAPS> tap = make_tap<TAPS>(axis, bin, i);
#pragma unroll
        for (int t = 0; t < TAPS; t++) sum += tap.cell + t == cell ? tap.weight[t] : 0.0f;
    }
    return sum;
}

template <int TAPS>
__device__ __forceinline__ void gather(const Arguments& a) {
    const Source& source = a.sources[a.source];
    const int image = blockIdx.y, lanes = a.channels / VEC;
    const int *grid = grid_of(a, a.source, image), *first_box = a.table + a.boxes_count;
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x, cell = thread / lanes;
    const int row = cell / grid[1], column = cell % grid[1], channel = thread % lanes * VEC;
    if (row >= grid[0]) return;
    const int* sampled = grid_of(a, TAPS == 3 ? 0 : a.source, image);
    const float per_pixel = a.sources[TAPS == 3 ? 0 : a.source].per_pixel;
    const Reach below = reach_of<TAPS>(row, sampled[0], grid[0]), beside = reach_of<TAPS>(column, sampled[1], grid[1]);
    float sums[VEC] = {};
    for (int box = first_box[image]; box < first_box[image + 1]; box++) {
        if (!reaches(a, box, 1, per_pixel, below) || !reaches(a, box, 0, per_pixel, beside)) continue;
        const Axis ys = axis_of<TAPS>(a, a.source, image, box, 1), xs = axis_of<TAPS>(a, a.source, image, box, 0);
        int top, bottom, left, right;
        bins_of(ys, below, a.size, top, bottom);
        bins_of(xs, beside, a.size, left, right);
        for (int y = top; y <= bottom; y++) {
            const float weight = weight_of<TAPS>(ys, y, row);
            if (weight == 0.0f) continue;
            for (int x = left; x <= right; x++) {
                const float product = weight * weight_of<TAPS>(xs, x, column);
                if (product == 0.0f) continue;
                float grad[VEC];
                load((const PAYLOAD*)a.payload + payload_at(a, box, y, x) + channel, grad);
                add(product, grad, sums);
            }
        }
    }
    float* to = source.grad + image * source.image_step + channel;
    store(sums, to + row * row_step_of(source, grid[1]) + column * source.cell_step);
}

extern "C" __global__ void roi_align_gather(const __grid_constant__ Arguments a) {
    if (COMPOSITE && a.source > 0) gather<3>(a);
    else gather<2>(a);
}
