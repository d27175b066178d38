// First position that the query at position q sees.
fn first_visible(q: u32) -> u32 {
    if (p.window == 0u || q + 1u <= p.window) { return 0u; }
    return q + 1u - p.window;
}
