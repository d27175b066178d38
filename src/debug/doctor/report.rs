//! What a diagnosis says: the verdict with its evidence, as JSON and as text. It examines nothing.

use super::cause::Cause;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use std::fmt::Write as _;

/// Where a fault is. What is not known is null.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Site {
    /// The first layer that is wrong, for what exists per layer.
    pub layer: Option<usize>,
    /// The first stage whose values are wrong.
    pub stage: Option<&'static str>,
    /// The tensor of the checkpoint.
    pub tensor: Option<String>,
    /// The key of config.json, as a dotted path.
    pub config_key: Option<String>,
    /// The kernel.
    pub kernel: Option<String>,
}

/// How to mend a fault.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Fix {
    /// What to do, in a sentence.
    pub text: String,
    /// What to change in config.json, by dotted path; null takes a key out. Resolving the changed file was tried.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
    /// The model's files can be mended by `--apply`.
    pub applicable: bool,
}

/// A fault that was named.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fault {
    /// Its class.
    pub cause: Cause,
    /// Where it is.
    pub site: Site,
    /// How to mend it.
    pub fix: Option<Fix>,
    /// What shows it, a sentence each.
    pub evidence: Vec<String>,
}

/// A cause that could not be excluded, and could not be proved.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Suspect {
    /// Its class.
    pub cause: Cause,
    /// Where it would be.
    pub site: Site,
    /// What speaks for it.
    pub why: String,
}

/// The outcome in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing is wrong in what was examined.
    Healthy,
    /// At least one fault was named, and nothing is left unexplained.
    Diagnosed,
    /// Something is wrong that was not named.
    Abstained,
}

/// The whole diagnosis.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Verdict {
    /// Faults in the order in which they were found.
    pub faults: Vec<Fault>,
    /// What is wrong and has no name, a sentence each.
    pub unexplained: Vec<String>,
    /// What else was seen, a sentence each.
    pub evidence: Vec<String>,
    /// What could be the cause, most likely first.
    pub suspects: Vec<Suspect>,
    /// What was examined.
    pub examined: Vec<String>,
    /// What was not, and why.
    pub not_examined: Vec<String>,
}

impl Verdict {
    /// The outcome.
    pub fn outcome(&self) -> Outcome {
        match (self.faults.is_empty(), self.unexplained.is_empty()) {
            (true, true) => Outcome::Healthy,
            (false, true) => Outcome::Diagnosed,
            // A fault that was proved stays named; what is left is among the evidence.
            (false, false) => Outcome::Diagnosed,
            (true, false) => Outcome::Abstained,
        }
    }
    /// Whether nothing is wrong in what was examined.
    pub fn is_healthy(&self) -> bool {
        self.outcome() == Outcome::Healthy
    }
    /// Adds what another check found.
    pub fn add(&mut self, other: Self) {
        self.faults.extend(other.faults);
        self.unexplained.extend(other.unexplained);
        self.evidence.extend(other.evidence);
        self.suspects.extend(other.suspects);
        self.examined.extend(other.examined);
        self.not_examined.extend(other.not_examined);
    }
    /// The line for scripts: `VERDICT diagnosed cause=rope_base …`.
    pub fn line(&self) -> String {
        let outcome = match self.outcome() {
            Outcome::Healthy => "healthy",
            Outcome::Diagnosed => "diagnosed",
            Outcome::Abstained => "abstained",
        };
        let mut line = format!("VERDICT {outcome}");
        for fault in &self.faults {
            let _ = write!(line, " cause={}{}", fault.cause.id(), fault.site);
        }
        if self.faults.is_empty() {
            for suspect in self.suspects.iter().take(3) {
                let _ = write!(line, " suspect={}", suspect.cause.id());
            }
        }
        if !self.unexplained.is_empty() {
            let _ = write!(line, " unexplained={}", self.unexplained.len());
        }
        line
    }
    /// Everything for people, the line for scripts first.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.line());
        for fault in &self.faults {
            let _ = writeln!(text, "Cause    {}: {}{}", fault.cause.id(), fault.cause.text(), fault.site);
            for line in &fault.evidence {
                let _ = writeln!(text, "         {line}");
            }
            match &fault.fix {
                Some(fix) => text.push_str(&format!("Fix      {}\n", fix.text)),
                None => text.push_str("Fix      none is known that these files could be given\n"),
            }
        }
        let mut list = |name: &str, lines: &[String]| lines.iter().for_each(|line| text.push_str(&format!("{name:<8} {line}\n")));
        list("Wrong", &self.unexplained);
        list("Seen", &self.evidence);
        let suspects: Vec<String> = self.suspects.iter().map(|s| format!("{}{}: {}", s.cause.id(), s.site, s.why)).collect();
        list("Suspect", &suspects);
        list("Examined", &self.examined);
        list("Not", &self.not_examined);
        text
    }
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(layer) = self.layer {
            write!(f, " layer={layer}")?;
        }
        if let Some(stage) = self.stage {
            write!(f, " stage={stage}")?;
        }
        for (name, value) in [("tensor", &self.tensor), ("config_key", &self.config_key), ("kernel", &self.kernel)] {
            if let Some(value) = value {
                write!(f, " {name}={value}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Json<'a> {
            verdict: Outcome,
            cause: Option<Cause>,
            site: Site,
            fix: Option<&'a Fix>,
            evidence: Vec<&'a str>,
            suspects: &'a [Suspect],
            /// Faults beyond the first.
            also: &'a [Fault],
            unexplained: &'a [String],
            examined: &'a [String],
            not_examined: &'a [String],
        }
        let first = self.faults.first();
        let of_first = first.map_or(&[][..], |fault| &fault.evidence[..]);
        Json {
            verdict: self.outcome(),
            cause: first.map(|fault| fault.cause),
            site: first.map(|fault| fault.site.clone()).unwrap_or_default(),
            fix: first.and_then(|fault| fault.fix.as_ref()),
            evidence: of_first.iter().chain(&self.evidence).map(String::as_str).collect(),
            suspects: &self.suspects,
            also: self.faults.get(1..).unwrap_or_default(),
            unexplained: &self.unexplained,
            examined: &self.examined,
            not_examined: &self.not_examined,
        }
        .serialize(serializer)
    }
}
