//! `y[i] = x[i] · factor`, or `x[i] · factor · w[i]` with learned numbers, one for all elements or one for each
//!
//! The scalar of Gemma 4's layers (transformers `Gemma4TextDecoderLayer`: `hidden_states *= layer_scalar`), the factor 2^-1/2 on the
//! inputs of its layers (`per_layer_input_scale`), and what its router reads (`Gemma4TextRouter`: `scale · hidden_size^-1/2`).

use super::real::Real;

/// `x` times `factor`, and times `weight` where there is one, which is of one element or as wide as a row.
pub fn scale<T: Real>(x: &[T], factor: f64, weight: Option<&[T]>) -> Vec<T> {
    let (factor, one) = (T::from_f64(factor), [T::from_f32(1.0)]);
    let weight = weight.unwrap_or(&one);
    x.iter().zip(weight.iter().cycle()).map(|(&x, &w)| x * (factor * w)).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn by_hand() {
        assert_eq!(super::scale(&[1.0f32, -2.0], 0.5, None), [0.5, -1.0]);
        assert_eq!(super::scale(&[1.0f32, -2.0], 0.5, Some(&[3.0])), [1.5, -3.0]);
        assert_eq!(super::scale(&[1.0f32, -2.0, 1.0, 1.0], 0.5, Some(&[2.0, 4.0])), [1.0, -4.0, 1.0, 2.0]);
    }
}
