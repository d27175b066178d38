//! For i < half = rotary_dim / 2 of every head at position p, with c = cos[p, i] and s = sin[p, i], and the pair
//! (a, b) = (i, i + half), or (2i, 2i + 1) of neighbours:
//! `y[a] = x[a]·c − x[b]·s`,  `y[b] = x[b]·c + x[a]·s`; the rest of the head passes through.
//!
//! Su et al., "RoFormer" (arXiv 2104.09864), which pairs neighbours; most of transformers' `apply_rotary_pos_emb` pair halves.
//! The tables are host data that all executors share: `plan::rope`.

use super::real::Real;
use crate::model::RopePairing;
use crate::plan::rope::RopeTable;

/// Rotates `x` [T, width] of heads of `head_dim`; row t stands at position `first` + t, which the table covers.
pub fn rope<T: Real>(x: &[T], width: usize, head_dim: usize, table: &RopeTable, first: usize) -> Vec<T> {
    let half = table.half_dim;
    let mut y = x.to_vec();
    for (position, row) in (first..).zip(y.chunks_exact_mut(width)) {
        let cos = &table.cos[position * half..][..half];
        let sin = &table.sin[position * half..][..half];
        for head in row.chunks_exact_mut(head_dim) {
            for i in 0..half {
                let (c, s) = (T::from_f32(cos[i]), T::from_f32(sin[i]));
                let (first, second) = match table.pairing {
                    RopePairing::Halves => (i, i + half),
                    RopePairing::Neighbours => (2 * i, 2 * i + 1),
                };
                let (a, b) = (head[first], head[second]);
                head[first] = a * c - b * s;
                head[second] = b * c + a * s;
            }
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarter_turns_of_two_heads() {
        // Position 1 turns by 90 degrees; elements 0 and 1 of a head of 3 are the pair, element 2 passes through.
        let table = RopeTable { half_dim: 1, pairing: RopePairing::Halves, cos: vec![1.0, 0.0], sin: vec![0.0, 1.0] };
        let x = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(rope(&x, 6, 3, &table, 0), x);
        assert_eq!(rope(&x, 6, 3, &table, 1), [-2.0, 1.0, 3.0, -5.0, 4.0, 6.0]);
    }

    #[test]
    fn quarter_turns_of_halves_and_of_neighbours() {
        let x = [1.0f32, 2.0, 3.0, 4.0, 5.0];
        let turned = |pairing| rope(&x, 5, 5, &RopeTable { half_dim: 2, pairing, cos: vec![0.0, 1.0], sin: vec![1.0, 0.0] }, 0);
        assert_eq!(turned(RopePairing::Halves), [-3.0, 2.0, 1.0, 4.0, 5.0]);
        assert_eq!(turned(RopePairing::Neighbours), [-2.0, 1.0, 3.0, 4.0, 5.0]);
    }
}
