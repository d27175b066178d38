//! `doppler stages`: the names of all values that a model computes. With a model: which of them it has, and which
//! module of its Hugging Face class computes each, which is how the reference scripts find them.

use crate::end::{Ended, Stop};
use crate::model::{self, Model};
use crate::output;
use doppler::Result;
use doppler::config::hugging_face_modules;
use doppler::plan::stage::{STAGE_TABLE_VERSION, STAGES, StageInfo};
use doppler::plan::{Plan, Stage};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show what this model has: a folder, its config.json alone, or `demo`
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,
    /// Show models too whose config.json has keys that are not understood
    #[arg(long, requires = "model")]
    allow_unknown_config: bool,
    /// Write the table as JSON, in place of the text if FILE is `-` (stdout)
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
}

pub fn run(args: &Args) -> Result<Ended, Stop> {
    output::check(&[("--json", args.json.as_deref().map(Path::new))])?;
    let model = args.model.as_deref().map(|spec| model::open_config(spec, args.allow_unknown_config)).transpose()?;
    let json = table(model.as_ref());
    if let Some(path) = &args.json {
        output::document(path, &json)?;
    }
    if args.json.as_deref() != Some("-") {
        print(&json, model.is_some())?;
    }
    Ok(Ended::Fine)
}

/// The table, with what the model adds to it.
fn table(model: Option<&Model>) -> Value {
    let rows: Vec<Value> = STAGES.iter().map(|info| row(info, model)).collect();
    let name = model.map(|m| m.name.as_str());
    let preset = model.map(|m| m.resolved.config.preset.as_str());
    let layers = model.map(|m| m.plan.num_layers);
    json!({"stageTable": STAGE_TABLE_VERSION, "model": name, "preset": preset, "layers": layers, "stages": rows})
}

fn row(info: &StageInfo, model: Option<&Model>) -> Value {
    let mut row = json!({
        "name": info.name,
        "aliases": info.aliases,
        "perLayer": info.per_layer,
        "category": info.category,
        "shape": info.layout.text(),
        "about": info.about,
    });
    if let Some(Model { resolved, plan, .. }) = model {
        let node = plan.nodes.iter().find(|node| node.at.stage == info.stage);
        let modules = hugging_face_modules(&resolved.config.preset);
        row["present"] = json!(has(plan, info.stage));
        row["layers"] = if info.per_layer { json!(plan.layers_with(info.stage)) } else { Value::Null };
        row["width"] = json!(node.map(|node| node.width));
        row["huggingFace"] = modules.and_then(|modules| modules.get(info.name)).cloned().unwrap_or_default();
    }
    row
}

/// Whether the model has `stage`. The chosen token is no value of the plan, but every model has one.
fn has(plan: &Plan, stage: Stage) -> bool {
    stage == Stage::Sampled || plan.nodes.iter().any(|node| node.at.stage == stage)
}

fn print(table: &Value, of_model: bool) -> Result<(), Stop> {
    let mut out = crate::terminal::stdout();
    let text = |value: &Value| value.as_str().map_or_else(|| if value.is_null() { "-".into() } else { value.to_string() }, str::to_string);
    if of_model {
        writeln!(out, "{} ({}, {} layers)", text(&table["model"]), text(&table["preset"]), table["layers"])?;
        writeln!(out, "{:<15} {:<8} {:>7}  {:<44} about", "stage", "category", "width", "Hugging Face module")?;
    } else {
        writeln!(out, "{:<15} {:<8} {:<5} {:<26} about", "stage", "category", "per", "shape")?;
    }
    for row in table["stages"].as_array().into_iter().flatten() {
        let (name, category) = (text(&row["name"]), text(&row["category"]));
        let aliases: Vec<String> = row["aliases"].as_array().into_iter().flatten().map(text).collect();
        let also = if aliases.is_empty() { String::new() } else { format!(" (also called {})", aliases.join(", ")) };
        let about = text(&row["about"]) + &also;
        if of_model && row["present"] == json!(false) {
            writeln!(out, "{name:<15} {category:<8} {:>7}", "absent")?;
        } else if of_model {
            let (width, module) = (text(&row["width"]), text(&row["huggingFace"]));
            writeln!(out, "{name:<15} {category:<8} {width:>7}  {module:<44} {about}")?;
        } else {
            let per = if row["perLayer"] == json!(true) { "layer" } else { "model" };
            writeln!(out, "{name:<15} {category:<8} {per:<5} {:<26} {about}", text(&row["shape"]))?;
        }
    }
    Ok(())
}
