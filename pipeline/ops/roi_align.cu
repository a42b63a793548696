// RoIAlign over the sum of several channels-last maps.
//
// A thread owns VEC channels of a run of bins in one row of one box: it knows Y once, walks the columns from left to
// right, makes each weighted column sum_y Y[y] F[y, x] once, and gives it to every bin that touches it.
#include "roi_align.cuh"

template <typename T>
struct Dequantise {
    __device__ __forceinline__ Dequantise(const Source&, long long) {}
    __device__ __forceinline__ void apply(float (&)[VEC], float) const {}
};

template <>
struct Dequantise<uint8> {
    float scale[VEC], offset[VEC];

    __device__ __forceinline__ Dequantise(const Source& source, long long at) {
        load(source.scale + at, scale);
        load(source.offset + at, offset);
    }
    // A column of stored values -> of their meaning; linear, so once after the sum is enough.
    __device__ __forceinline__ void apply(float (&column)[VEC], float weight) const {
#pragma unroll
        for (int i = 0; i < VEC; i++) column[i] = column[i] * scale[i] + offset[i] * weight;
    }
};

// One level under one row of bins.
template <typename T, int TAPS>
struct Reader {
    Axis ys, xs;
    Rows<TAPS> rows;
    const T* from;
    int row_step, cell_step;
    Dequantise<T> meaning;
    Columns<TAPS> columns;

    __device__ __forceinline__ Reader(const Arguments& a, int source, const Place& place)
        : ys(axis_of<TAPS>(a, source, place.image, place.box, 1)),
          xs(axis_of<TAPS>(a, source, place.image, place.box, 0)),
          rows(ys, place.row),
          row_step(row_step_of(a.sources[source], xs.read)),
          cell_step(a.sources[source].cell_step),
          meaning(a.sources[source], (long long)place.image * a.channels + place.channel) {
        from = (const T*)a.sources[source].values + place.image * a.sources[source].image_step + place.channel;
    }

    // Adds what a bin reads of this level.
    __device__ __forceinline__ void pool(int bin, float (&sums)[VEC]) {
        int first, last;
        sample_range(xs, bin, first, last);
        for (int i = first; i <= last; i++) {
            const Tap<TAPS> tap = make_tap<TAPS>(xs, bin, i);
            columns.move(tap.cell, [](int, const float(&)[VEC]) {});
#pragma unroll
            for (int t = 0; t < TAPS; t++) {
                if (tap.weight[t] == 0.0f) continue;
                if (!columns.used[t]) read(tap.cell + t, columns.values[t]);
                columns.used[t] = true;
                add(tap.weight[t], columns.values[t], sums);
            }
        }
    }

    // The weighted sum of a column.
    __device__ __forceinline__ void read(int column, float (&sums)[VEC]) const {
        float total = 0.0f;
#pragma unroll
        for (int i = 0; i < VEC; i++) sums[i] = 0.0f;
        const T* top = from + column * cell_step;
        rows.each(ys, [&](int row, float weight) {
            float values[VEC];
            load(top + row * row_step, values);
            add(weight, values, sums);
            total += weight;
        });
        meaning.apply(sums, total);
    }
};

extern "C" __global__ void roi_align_forward(const __grid_constant__ Arguments a) {
    const Place place = find_place(a);
    if (!place.inside) return;
    Reader<TYPE_0, 2> reader_0(a, 0, place);
#if SOURCES > 1
    Reader<TYPE_1, LATER_TAPS> reader_1(a, 1, place);
#endif
#if SOURCES > 2
    Reader<TYPE_2, LATER_TAPS> reader_2(a, 2, place);
#endif
#if SOURCES > 3
    Reader<TYPE_3, LATER_TAPS> reader_3(a, 3, place);
#endif
#pragma unroll 1
    for (int bin = place.first; bin < place.end; bin++) {
        float sums[VEC] = {};
        reader_0.pool(bin, sums);
#if SOURCES > 1
        reader_1.pool(bin, sums);
#endif
#if SOURCES > 2
        reader_2.pool(bin, sums);
#endif
#if SOURCES > 3
        reader_3.pool(bin, sums);
#endif
        store(sums, (PAYLOAD*)a.payload + payload_at(a, place.box, place.row, bin) + place.channel);
    }
}
