//! `y[i] = x[i] · factor`, or `x[i] · factor · w` with one learned number w
//!
//! The scalar of Gemma 4's layers (transformers `Gemma4TextDecoderLayer`: `hidden_states *= layer_scalar`), and the factor 2^-1/2 on
//! the inputs of its layers (`per_layer_input_scale`).

use super::real::Real;

/// `x` times `factor`, and times `weight` where there is one.
pub fn scale<T: Real>(x: &[T], factor: f64, weight: Option<T>) -> Vec<T> {
    let factor = T::from_f64(factor) * weight.unwrap_or(T::from_f32(1.0));
    x.iter().map(|&x| x * factor).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn by_hand() {
        assert_eq!(super::scale(&[1.0f32, -2.0], 0.5, None), [0.5, -1.0]);
        assert_eq!(super::scale(&[1.0f32, -2.0], 0.5, Some(3.0)), [1.5, -3.0]);
    }
}
