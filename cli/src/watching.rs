//! What `debug` is asked to show: options laid over the runtime config, and the files that are written when a run is over.

use crate::args;
use crate::output;
use doppler::Result;
use doppler::config::runtime::{Debug, Position};
use doppler::debug::anomaly::Profile;
use doppler::debug::categories::Categories;
use doppler::debug::dump::DumpObserver;
use doppler::debug::html::attention;
use doppler::debug::perfetto::{self, KernelSpan, StepSpans};
use doppler::debug::watching::{Keep, Watching, profile_of};
use doppler::formats::text::{MAX_TEXT, read_text};
use doppler::gpu::{DispatchLog, StepLog};
use doppler::plan::Plan;
use std::path::{Path, PathBuf};

/// Options about what is shown.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Seeing")]
pub struct WatchArgs {
    /// Show statistics of every value of these categories: embed, attn, ffn, kv, logits, layer; the chosen tokens
    /// (sample); tensors as they load (loader); dispatches (kernels) and their times (perf); what each layer would say
    /// (lens). `all` is all but lens and perf, `all,-kernels` leaves one out
    #[arg(long, value_name = "CATEGORY,…", value_delimiter = ',', allow_hyphen_values = true)]
    pub trace: Option<Vec<String>>,
    /// Trace these layers only, and print a LAYER_OUT line for each: 0,3-5,mid,-1; negative numbers count from the end
    #[arg(long, value_name = "LAYER,…", value_parser = parse_layers, allow_hyphen_values = true)]
    pub trace_layers: Option<Layers>,
    /// Write a report with pictures: one HTML file that needs nothing else
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Show attention in the report of --html, token by token: of these layers, as in --attention=0,3-5, or of all
    #[arg(long, value_name = "LAYER,…", num_args = 0..=1, require_equals = true, default_missing_value = "all", value_parser = parse_attention, requires = "html")]
    pub attention: Option<AttentionLayers>,
    /// Write the GPU times of every kernel for ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE")]
    pub perfetto: Option<PathBuf>,
    /// Stop at the first anomaly, and write the values around it to FILE
    #[arg(long = "break", value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "doppler-break.safetensors")]
    pub break_at: Option<PathBuf>,
    /// Write what this healthy run looked like to FILE; what FILE holds of earlier runs stays
    #[arg(long, value_name = "FILE")]
    pub record_profile: Option<PathBuf>,
    /// Judge sizes by the healthy runs recorded in FILE instead of by the layers before
    #[arg(long, value_name = "FILE", conflicts_with = "record_profile")]
    pub profile: Option<PathBuf>,
}

/// The argument of `--attention`; `None` for all layers.
#[derive(Debug, Clone)]
pub struct AttentionLayers(Option<Vec<usize>>);

fn parse_attention(text: &str) -> std::result::Result<AttentionLayers, String> {
    if text == "all" {
        Ok(AttentionLayers(None))
    } else {
        args::parse_layers(text).map(|args::Layers(layers)| AttentionLayers(Some(layers)))
    }
}

/// The argument of `--trace-layers`.
#[derive(Debug, Clone)]
pub struct Layers(Vec<Position>);

fn parse_layers(text: &str) -> std::result::Result<Layers, String> {
    let mut layers = Vec::new();
    for part in text.split(',').map(str::trim) {
        match (part, part.parse()) {
            ("mid", _) => layers.push(Position::Mid),
            (_, Ok(number)) => layers.push(Position::At(number)),
            _ => match args::layers(part) {
                Ok(range) => layers.extend(range.map(|layer| Position::At(layer as i64))),
                Err(_) => return Err(format!("`{part}` is no layer; expected numbers and ranges like 0,3-5,-1, or mid")),
            },
        }
    }
    Ok(Layers(layers))
}

impl WatchArgs {
    /// What to show: `config`, over which the options are laid.
    ///
    /// # Errors
    /// `Kind::Invalid` for unknown categories.
    pub fn over(&self, config: &Debug) -> Result<Debug> {
        let mut config = config.clone();
        let trace = &mut config.trace;
        if !trace.enabled {
            (trace.enabled, trace.categories, trace.layers) = (true, Vec::new(), None);
        }
        if let Some(names) = &self.trace {
            Categories::parse(names.iter().map(String::as_str)).map_err(|e| e.within("--trace"))?;
            trace.categories.clone_from(names);
        }
        if let Some(Layers(layers)) = &self.trace_layers {
            trace.layers = Some(layers.clone());
        }
        Ok(config)
    }
    /// What to keep of a run of `model`, whose plan is `plan`, of at most `tokens` tokens, and to `dump`.
    ///
    /// # Errors
    /// What reading a profile reports; for layers without attention, and more than a report can hold.
    pub fn keep(&self, (model, plan): (&str, &Plan), tokens: usize, dump: Option<DumpObserver>) -> Result<Keep> {
        let attention = self.attention.as_ref().map(|AttentionLayers(layers)| attention(plan, layers.as_deref(), tokens));
        Ok(Keep {
            attention: attention.transpose().map_err(|e| e.within("--attention"))?,
            report: self.html.is_some(),
            dump,
            profile: self.profile.as_deref().map(|path| read_profile(path, model)).transpose()?,
            record_profile: self.record_profile.is_some(),
            stop: self.break_at.is_some(),
            candidates: 0,
            times: self.perfetto.is_some(),
        })
    }
    /// Refuses a file of `--record-profile` to which no run of `model` can be added.
    ///
    /// # Errors
    /// What reading it reports.
    pub fn check_profile(&self, model: &str) -> Result<()> {
        let file = self.record_profile.as_deref().filter(|path| path.is_file());
        file.map_or(Ok(()), |path| read_profile(path, model).map(|_| ()))
    }
    /// Writes the times of dispatches, where there are any; `about` is the run in words.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn write_times(&self, steps: &[StepLog], prompt: usize, about: &str) -> Result<()> {
        let Some(path) = &self.perfetto else { return Ok(()) };
        let span = |d: &DispatchLog| {
            let (start_ns, duration_ns) = d.time?;
            Some(KernelSpan { kernel: d.kernel.into(), at: d.at, start_ns, duration_ns })
        };
        let spans = steps.iter().map(|s| StepSpans { name: s.name(prompt), kernels: s.dispatches.iter().filter_map(span).collect() });
        let spans: Vec<StepSpans> = spans.collect();
        if spans.iter().any(|s| !s.kernels.is_empty()) { output::file(path, &perfetto::trace(about, &spans)) } else { Ok(()) }
    }
    /// Writes the profile of a run, joined with what the file held; how that went, in words.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn write_profile(&self, watching: &Watching<'_>, model: &str) -> Result<Option<String>> {
        let (Some(path), Some(made)) = (&self.record_profile, watching.profile()) else { return Ok(None) };
        let mut profile = match made {
            Ok(profile) => profile,
            Err(why) => return Ok(Some(why)),
        };
        let normal: Vec<String> = profile.accepted.iter().map(|a| a.kind.clone()).collect();
        let mut before = "";
        // What it holds is read now: another run may have been added since this one began.
        output::update(path, |old| {
            if let Some(old) = old {
                profile.join(&profile_of(model, old, &path.display().to_string())?);
                before = ", joined with the runs it held";
            }
            Ok(profile.to_json(model))
        })?;
        let taken = if normal.is_empty() { String::new() } else { format!("; taken as normal: {}", normal.join(", ")) };
        Ok(Some(format!("profile of this run written to {}{before}{taken}; judge by it with --profile", path.display())))
    }
    /// Writes the report, if one was made.
    ///
    /// # Errors
    /// `Kind::Io`.
    pub fn write_report(&self, html: Option<&str>) -> Result<()> {
        if let (Some(path), Some(html)) = (&self.html, html) { output::file(path, html) } else { Ok(()) }
    }
}

fn read_profile(path: &Path, model: &str) -> Result<Profile> {
    let text = read_text(path, MAX_TEXT)?;
    profile_of(model, &text, &path.display().to_string())
}
