//! The lines of an attribution.

use super::{Attribution, Noise, Tensor};
use crate::debug::agreement::brief;
use crate::debug::number::significant;

impl Attribution {
    /// `ATTRIBUTION klMean=… tokens=… differing=… equal=… restored=…`.
    pub fn text(&self) -> String {
        let kl = self.kl.map_or(String::new(), |kl| format!(" klMean={} tokens={}", significant(kl), self.tokens));
        let complete = if self.complete { "" } else { " incomplete=true" };
        format!("ATTRIBUTION{kl} differing={} equal={} restored={}{complete}", self.tensors.len(), self.equal, self.restored)
    }
    /// One line for each tensor that differs, in order.
    pub fn lines(&self) -> Vec<String> {
        self.tensors.iter().map(Tensor::text).collect()
    }
}

impl Tensor {
    /// `TENSOR name=… role=L3.q_proj sqnr=31.42dB klRegained=… klShare=87.3% sensitivity=… squaredError=… relativeL2=…
    /// attainable=… maxAbs=…@r3,c17 …`.
    pub fn text(&self) -> String {
        let n = &self.noise;
        let regained = self.restored.map_or("-".to_string(), |r| {
            format!("{} klShare={:.1}% sensitivity={}", significant(r.regained), percent(r.share), brief(r.sensitivity))
        });
        let attainable = n.attainable.map_or(String::new(), |l2| format!(" attainable={}", brief(l2)));
        let broken = if n.non_finite > 0 { format!(" nonFinite={}", n.non_finite) } else { String::new() };
        let ([row, column], [reference, own]) = (n.at, n.types);
        format!(
            "TENSOR name={} role={} sqnr={}dB klRegained={regained} squaredError={} relativeL2={}{attainable} maxAbs={}@r{row},c{column} differing={}/{} types={reference},{own}{broken}",
            n.name,
            n.role.replace(' ', "."),
            decibels(n.sqnr),
            brief(n.squared_error),
            brief(n.relative_l2),
            brief(n.max_abs),
            n.differing,
            n.elements,
        )
    }
}

impl Noise {
    /// `ANOMALY kind=poor_quantisation tensor=… value=0.41 …` where the error is beyond what the format explains.
    pub fn anomaly(&self) -> Option<String> {
        let attainable = self.attainable.filter(|_| self.is_poor())?;
        let (l2, attainable, format) = (brief(self.relative_l2), brief(attainable), self.types[1]);
        let why =
            format!("relativeL2 in {format}; encoding the reference anew gives {attainable}: its blocks are damaged, or of other weights");
        Some(format!("ANOMALY kind=poor_quantisation tensor={} role={} value={l2} ({why})", self.name, self.role.replace(' ', ".")))
    }
}

/// Without a sign where it would stand before 0.0.
fn percent(share: f64) -> f64 {
    if share.abs() < 5e-4 { 0.0 } else { 100.0 * share }
}

/// Two decimals; NaN and Inf by name.
fn decibels(x: f64) -> String {
    if x.is_finite() { format!("{x:.2}") } else { significant(x) }
}
