// The slot that holds a position: the cache is a ring. All arithmetic from position to slot is here.
fn slot(position: u32) -> u32 {
    return position % p.capacity;
}
