//! One row of logits as a distribution, in f64, and the divergence of two.

/// Softmax of a row, as logarithms.
#[derive(Debug, Clone, Copy)]
pub struct Row<'l> {
    logits: &'l [f32],
    highest: f64,
    /// ln Σ exp(logit − highest).
    rest: f64,
    /// The likeliest; of equals the first, as it is picked.
    best: usize,
}

impl<'l> Row<'l> {
    /// The distribution of `logits` [vocabulary]; `None` for invalid logits: NaN, +∞, or nothing above −∞.
    pub fn new(logits: &'l [f32]) -> Option<Self> {
        let mut best = 0;
        for (i, x) in logits.iter().enumerate() {
            if x.is_nan() || *x == f32::INFINITY {
                return None;
            }
            if *x > logits[best] {
                best = i;
            }
        }
        let highest = f64::from(*logits.get(best)?);
        let sum: f64 = logits.iter().map(|x| (f64::from(*x) - highest).exp()).sum();
        (highest > f64::NEG_INFINITY).then(|| Self { logits, highest, rest: sum.ln(), best })
    }
    /// ln p(id); −∞ for ids that the row lacks.
    pub fn log_p(&self, id: usize) -> f64 {
        self.logits.get(id).map_or(f64::NEG_INFINITY, |x| self.log(*x))
    }
    /// ln p of an id with this logit. Differences of logits are exact in f64, so that large ones lose nothing.
    fn log(&self, logit: f32) -> f64 {
        (f64::from(logit) - self.highest) - self.rest
    }
    /// The likeliest id.
    pub fn best(&self) -> usize {
        self.best
    }
    /// Kullback-Leibler divergence of `other` from this row, in nats: Σ p·(ln p − ln q). 0 for equal rows, exactly; ∞
    /// where `other` rules out what this row does not.
    ///
    /// It is summed as Σ p·(d + exp(−d) − 1) with d = ln p − ln q, which is the same as both add up to 1. No term is
    /// below 0, so that rounding cannot hide small divergences under the terms' cancelling signs.
    pub fn divergence(&self, other: &Row<'_>) -> f64 {
        let term = |(x, y): (&f32, &f32)| {
            let (log_p, log_q) = (self.log(*x), other.log(*y));
            let (p, d) = (log_p.exp(), log_p - log_q);
            if p == 0.0 {
                log_q.exp()
            } else if d.abs() < 1e-2 {
                // The series of d + exp(−d) − 1; what is left out is below 4e-14 of it.
                p * d * d * (0.5 - d * (1.0 / 6.0 - d * (1.0 / 24.0 - d * (1.0 / 120.0 - d / 720.0))))
            } else {
                (p * d + (log_q.exp() - p)).max(0.0)
            }
        };
        self.logits.iter().zip(other.logits).map(term).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(logits: &[f32]) -> Row<'_> {
        Row::new(logits).unwrap()
    }

    #[test]
    fn probabilities_are_those_of_softmax() {
        let logits = [1000.0, 1000.0 + 3f32.ln(), f32::NEG_INFINITY];
        let r = row(&logits);
        assert_eq!((r.best(), r.log_p(2), r.log_p(9)), (1, f64::NEG_INFINITY, f64::NEG_INFINITY));
        // ln 3 added to 1000 has an ulp of 6e-5.
        assert!((r.log_p(0) + 4f64.ln()).abs() < 4e-5 && (r.log_p(1) - 0.75f64.ln()).abs() < 4e-5);
        assert_eq!(row(&[0.0, 2.0, 2.0]).best(), 1);
        for bad in [&[][..], &[f32::NAN, 1.0], &[f32::INFINITY], &[f32::NEG_INFINITY; 2]] {
            assert!(Row::new(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn divergence_is_that_of_the_definition() {
        // p = (1/2, 1/2), q = (1/4, 3/4): ½ ln 2 + ½ ln ⅔ = ½ ln 4/3.
        let three = 3f32.ln();
        let (p, q) = ([0.0, 0.0], [0.0, three]);
        let exact = 0.5 * f64::ln((1.0 + f64::from(three).exp()).powi(2) / (4.0 * f64::from(three).exp()));
        assert!((row(&p).divergence(&row(&q)) - exact).abs() < 1e-15);
        // A shift of all logits is no difference.
        let shifted = [5.0f32, 5.0];
        assert_eq!(row(&p).divergence(&row(&shifted)), 0.0);
        assert_eq!(row(&q).divergence(&row(&q)), 0.0);
        // What one rules out.
        let out = [0.0, f32::NEG_INFINITY];
        assert_eq!(row(&p).divergence(&row(&out)), f64::INFINITY);
        assert!((row(&out).divergence(&row(&p)) - 2f64.ln()).abs() < 1e-15);
    }

    /// Two logits a hair apart: KL is p(1−p)ε²/2 up to ε³, far below the rounding of one term of the textbook sum.
    #[test]
    fn small_divergences_are_exact() {
        for epsilon in [1e-6f64, 1e-4, 0.00999, 0.0101] {
            let moved = [0.0f32, epsilon as f32];
            let e = f64::from(moved[1]);
            // KL((½, ½) ‖ softmax(0, e)) = ln cosh(e/2), by its series.
            let exact = (e / 2.0).powi(2) / 2.0 - (e / 2.0).powi(4) / 12.0 + (e / 2.0).powi(6) / 45.0;
            let found = row(&[0.0, 0.0]).divergence(&row(&moved));
            // exp and ln give each log-probability to an ulp of ½: 1e-16 against d of ε/2.
            assert!((found / exact - 1.0).abs() < 4e-16 / epsilon + 1e-12, "{epsilon}: {found} for {exact}");
        }
    }
}
