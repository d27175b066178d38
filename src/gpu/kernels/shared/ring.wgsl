// The slot that holds a position: a sequence has some slots of a cache, its slab, and they are a ring. All arithmetic from
// position to slot is here.
#include "origins"
// First slot and slots of a token's sequence in the caches of this kernel's layer.
fn slab_of(token: u32) -> vec2<u32> {
    let two = origins[entry_of(token)].slabs[p.slab / 2u];
    return select(two.xy, two.zw, p.slab % 2u == 1u);
}
fn slot(slab: vec2<u32>, position: u32) -> u32 {
    return slab.x + position % slab.y;
}
// The place of a position in the ring, and the slot of the position that is `more` after the one at a place: fewer than
// there are slots, since no slab holds more.
fn place_of(slab: vec2<u32>, position: u32) -> u32 {
    return position % slab.y;
}
fn slot_after(slab: vec2<u32>, place: u32, more: u32) -> u32 {
    let sum = place + more;
    return slab.x + select(sum, sum - slab.y, sum >= slab.y);
}
