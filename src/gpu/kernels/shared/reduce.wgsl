// Sum and maximum over a workgroup of WG threads (WG a power of two). Every thread gets the result.
// `begin_reduce` must run first.
var<workgroup> partial: array<f32, WG>;
var<private> thread: u32;
#ifdef SUBGROUPS
var<private> lane: u32;
var<private> lanes: u32;

fn workgroup_sum(value: f32) -> f32 {
    let sum = subgroupAdd(value);
    if (lane == 0u) { partial[thread / lanes] = sum; }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < WG / lanes; i++) { total += partial[i]; }
    workgroupBarrier();
    return total;
}

fn workgroup_max(value: f32) -> f32 {
    let highest = subgroupMax(value);
    if (lane == 0u) { partial[thread / lanes] = highest; }
    workgroupBarrier();
    var result = partial[0];
    for (var i = 1u; i < WG / lanes; i++) { result = max(result, partial[i]); }
    workgroupBarrier();
    return result;
}
#else
fn workgroup_sum(value: f32) -> f32 {
    partial[thread] = value;
    workgroupBarrier();
    for (var n = WG / 2u; n > 0u; n /= 2u) {
        if (thread < n) { partial[thread] += partial[thread + n]; }
        workgroupBarrier();
    }
    let total = partial[0];
    workgroupBarrier();
    return total;
}

fn workgroup_max(value: f32) -> f32 {
    partial[thread] = value;
    workgroupBarrier();
    for (var n = WG / 2u; n > 0u; n /= 2u) {
        if (thread < n) { partial[thread] = max(partial[thread], partial[thread + n]); }
        workgroupBarrier();
    }
    let result = partial[0];
    workgroupBarrier();
    return result;
}
#endif
