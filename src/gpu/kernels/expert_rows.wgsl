// Puts together the rows that one expert computes. A row is a chosen expert of a token. `order` has how many tiles there are; the
// rows, expert by expert, those of no expert last; of each tile its first row's place among them, how many rows it has, at most
// p.tile, and its expert. In which order an expert's rows lie changes no bit: each is computed by itself. One workgroup.
#include "step"
struct Params {
    experts: u32,
    chosen: u32,
    stride: u32,      // from token to token of the numbers
    tile: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> numbers: array<f32>;
@group(1) @binding(3) var<storage, read_write> order: array<u32>;

const WG = 256u;
override MOST: u32 = 1u; // experts, and none
var<workgroup> counts: array<atomic<u32>, MOST>;
var<workgroup> nexts: array<atomic<u32>, MOST>;

fn expert_of(row: u32) -> u32 {
    let token = row / p.chosen;
    let number = numbers[token * p.stride + row - token * p.chosen];
    return select(p.experts, u32(number), number >= 0.0 && number < f32(p.experts));
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) thread: u32) {
    let rows = step.tokens * p.chosen;
    for (var expert = thread; expert <= p.experts; expert += WG) { atomicStore(&counts[expert], 0u); }
    workgroupBarrier();
    for (var row = thread; row < rows; row += WG) {
        atomicAdd(&counts[expert_of(row)], 1u);
    }
    workgroupBarrier();
    for (var expert = thread; expert <= p.experts; expert += WG) {
        var first = 0u;
        var tile = 0u;
        for (var before = 0u; before < expert; before++) {
            let count = atomicLoad(&counts[before]);
            first += count;
            tile += (count + p.tile - 1u) / p.tile;
        }
        atomicStore(&nexts[expert], first);
        let count = atomicLoad(&counts[expert]);
        var at = 1u + rows + 3u * tile;
        for (var done = 0u; done < count; done += p.tile) {
            order[at] = first + done;
            order[at + 1u] = min(p.tile, count - done);
            order[at + 2u] = expert;
            at += 3u;
            tile += 1u;
        }
        if (expert == p.experts) { order[0] = tile; }
    }
    workgroupBarrier();
    for (var row = thread; row < rows; row += WG) {
        let place = atomicAdd(&nexts[expert_of(row)], 1u);
        order[1u + place] = row;
    }
}
