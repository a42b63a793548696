// Multi-scale deformable attention: each query and head sums the weighted samples of its points.
//
// A thread owns VEC channels of one query and head. Its neighbours own the next channels, then the next head, so that
// the output is written in whole lines and a cell is read in pieces that lie side by side.
#include "ms_deform_attn.cuh"

extern "C" __global__ void ms_deform_attn_forward(const __grid_constant__ Arguments a) {
    const Lane lane = find_lane(a);
    if (!lane.inside) return;
    const TYPE* from = (const TYPE*)a.value + values_of(a, lane.row) + lane.channel;
    float sums[VEC] = {};
    each_cell(a, lane.row, [&](int at, float weight) {
        float values[VEC];
        load(from + at, values);
        add(weight, values, sums);
    });
    store(sums, (TYPE*)a.result + lane.row * a.channels + lane.channel);
}
