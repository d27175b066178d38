//! Sums of products on the wide registers of x86-64: the same products in the same order as `real::dot`, so the same bits.
//! Written out, as compilers find them in some builds and lose them in others.

use super::real::LANES;
use std::arch::x86_64::*;

macro_rules! wide {
    ($name:ident $number:ty, $rows:literal rows, $width:literal, $zero:ident $load:ident $multiply:ident $add:ident $store:ident) => {
        /// y[n] = dot(x, rows[n]) for as many rows as `y` has, which lie one after another.
        #[target_feature(enable = "avx")]
        pub fn $name(x: &[$number], rows: &[$number], y: &mut [$number], tree: fn([$number; LANES]) -> $number) {
            #[target_feature(enable = "avx")]
            fn some<const ROWS: usize>(x: &[$number], rows: &[$number], tree: fn([$number; LANES]) -> $number) -> [$number; ROWS] {
                let (steps, rest) = x.as_chunks::<LANES>();
                let mut rows = rows.chunks_exact(x.len());
                let rows: [(&[[$number; LANES]], &[$number]); ROWS] =
                    std::array::from_fn(|_| rows.next().map_or((&[][..], &[][..]), |row| row.as_chunks::<LANES>()));
                let mut sums = [[$zero(); LANES / $width]; ROWS];
                for (at, x) in steps.iter().enumerate() {
                    for (sums, (row, _)) in sums.iter_mut().zip(&rows) {
                        let row = &row[at];
                        for (part, sum) in sums.iter_mut().enumerate() {
                            // SAFETY: `part * $width + $width` is at most LANES, the length of both arrays.
                            let (x, w) = unsafe { ($load(x.as_ptr().add(part * $width)), $load(row.as_ptr().add(part * $width))) };
                            *sum = $add(*sum, $multiply(x, w));
                        }
                    }
                }
                let mut found = [0.0; ROWS];
                for ((found, sums), (_, of_rest)) in found.iter_mut().zip(&sums).zip(&rows) {
                    let mut partial = [0.0; LANES];
                    for (part, sum) in sums.iter().enumerate() {
                        // SAFETY: as above.
                        unsafe { $store(partial.as_mut_ptr().add(part * $width), *sum) };
                    }
                    for (sum, (x, w)) in partial.iter_mut().zip(rest.iter().zip(*of_rest)) {
                        *sum += x * w;
                    }
                    *found = tree(partial);
                }
                found
            }
            let (groups, rest) = y.as_chunks_mut::<$rows>();
            let (of_groups, of_rest) = rows.split_at(groups.len() * $rows * x.len());
            for (y, rows) in groups.iter_mut().zip(of_groups.chunks_exact($rows * x.len())) {
                *y = some::<$rows>(x, rows, tree);
            }
            for (y, row) in rest.iter_mut().zip(of_rest.chunks_exact(x.len())) {
                [*y] = some::<1>(x, row, tree);
            }
        }
    };
}

wide!(dots_f32 f32, 4 rows, 8, _mm256_setzero_ps _mm256_loadu_ps _mm256_mul_ps _mm256_add_ps _mm256_storeu_ps);
wide!(dots_f64 f64, 2 rows, 4, _mm256_setzero_pd _mm256_loadu_pd _mm256_mul_pd _mm256_add_pd _mm256_storeu_pd);
