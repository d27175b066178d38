//! `y[i] = a[left + i] · b[right + i]`: the product of parts of two rows, which may be the same row.

use super::real::Real;

/// For each row of `a` and `b`, which are `widths` wide, the product of `width` elements of each from `firsts` on.
pub fn mul<T: Real>([a, b]: [&[T]; 2], widths: [usize; 2], firsts: [usize; 2], width: usize) -> Vec<T> {
    let rows = a.chunks_exact(widths[0]).zip(b.chunks_exact(widths[1]));
    rows.flat_map(|(a, b)| a[firsts[0]..][..width].iter().zip(&b[firsts[1]..][..width]).map(|(&a, &b)| a * b)).collect()
}

/// For each row of `x`, which is `of` wide, the `width` elements from `first` on.
pub fn part<T: Real>(x: &[T], of: usize, first: usize, width: usize) -> std::borrow::Cow<'_, [T]> {
    if of == width {
        return x.into();
    }
    x.chunks_exact(of).flat_map(|row| row[first..][..width].iter().copied()).collect::<Vec<T>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_row() {
        let x = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        assert_eq!(mul([&x, &x], [4, 4], [0, 2], 2), [3.0, 8.0, 35.0, 48.0]);
        assert_eq!(mul([&x, &x[..4]], [4, 2], [3, 1], 1), [8.0, 32.0]);
        assert_eq!(*part(&x, 4, 1, 2), [2.0, 3.0, 6.0, 7.0]);
    }
}
