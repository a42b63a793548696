// The gradients of deformable attention: of the values with atomic sums, of locations and weights without.
#include "ms_deform_attn.cuh"

// As forward, with writing in the place of reading.
extern "C" __global__ void ms_deform_attn_scatter(const __grid_constant__ Arguments a) {
    const Lane lane = find_lane(a);
    if (!lane.inside) return;
    float* to = a.by_value + values_of(a, lane.row) + lane.channel;
    float grad[VEC];
    load((const TYPE*)a.result + lane.row * a.channels + lane.channel, grad);
    each_cell(a, lane.row, [&](int at, float weight) { add_atomically(weight, grad, to + at); });
}

// A thread owns a point with all channels of its head: its sums need no other thread, and always the same order.
extern "C" __global__ void ms_deform_attn_points(const __grid_constant__ Arguments a) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x, row = i / (a.levels_count * POINTS);
    if (row >= a.rows) return;
    const Level level = a.levels[i / POINTS % a.levels_count];
    const Point point = find_point(a, level, a.locations + 2 * i);
    const TYPE *from = (const TYPE*)a.value + values_of(a, row), *grads = (const TYPE*)a.result + row * a.channels;
    float products[4] = {};  // <gradient, cell> for the four cells
    if (!point.outside)
#pragma unroll 2
        for (int channel = 0; channel < a.channels; channel += VEC) {
            float grad[VEC], values[VEC];
            load(grads + channel, grad);
#pragma unroll
            for (int c = 0; c < 4; c++) {
                if (!point.there[c]) continue;
                load(from + point.at[c] + channel, values);
#pragma unroll
                for (int v = 0; v < VEC; v++) products[c] += grad[v] * values[v];
            }
        }
    const float x = point.outside ? 0.0f : point.x, y = point.outside ? 0.0f : point.y;
    const float across_top = products[1] - products[0], across_bottom = products[3] - products[2];
    const float top = products[0] + x * across_top, down = products[2] + x * across_bottom - top;
    const float weight = __ldg(a.weights + i);
    a.by_weight[i] = top + y * down;
    a.by_location[2 * i] = (across_top + y * (across_bottom - across_top)) * weight * (float)level.w;
    a.by_location[2 * i + 1] = down * weight * (float)level.h;
}
