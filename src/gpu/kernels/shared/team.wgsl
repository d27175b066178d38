// The sums of a team of LANES threads that is a subgroup or, where NARROW, a part of one; of a larger team, those of the subgroup.
// Every thread has them.
fn team_sum(v: vec4<f32>) -> vec4<f32> {
    if (!NARROW) { return vec4<f32>(subgroupAdd(v.x), subgroupAdd(v.y), subgroupAdd(v.z), subgroupAdd(v.w)); }
    var sum = v;
    for (var n = LANES / 2u; n > 0u; n /= 2u) {
        sum += vec4<f32>(
            subgroupShuffleXor(sum.x, n),
            subgroupShuffleXor(sum.y, n),
            subgroupShuffleXor(sum.z, n),
            subgroupShuffleXor(sum.w, n),
        );
    }
    return sum;
}
