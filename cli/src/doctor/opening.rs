//! The model that is examined; where it does not open, that is the diagnosis.

use super::Args;
use crate::end::Stop;
use crate::model::Model;
use doppler::debug::doctor::Verdict;
use doppler::debug::doctor::opening::{Files, examine};
use doppler::loader::{Checkpoint, ModelFiles, open_directory};
use doppler::{Error, Kind};
use pollster::block_on;
use std::path::Path;

/// Opens the model, or says why it does not.
///
/// # Errors
/// For what is not there: that is no model that could be wrong.
pub fn open(args: &Args) -> Result<Result<Model, Box<Verdict>>, Stop> {
    match args.model.open() {
        Ok(model) => Ok(Ok(model)),
        Err(error) if error.kind == Kind::Io => Err(error.into()),
        Err(error) => {
            let files = open_directory(Path::new(&args.model.model)).ok();
            Ok(Err(Box::new(verdict(&error, files.as_ref()))))
        }
    }
}

/// The diagnosis of a model whose weights do not fit its config.
///
/// # Errors
/// For files that cannot be read.
pub fn weights(model: &Model, error: &Error) -> Result<Verdict, Stop> {
    if error.kind == Kind::Io {
        return Err(error.clone().into());
    }
    Ok(verdict(error, Some(&model.files)))
}

fn verdict(error: &Error, files: Option<&ModelFiles>) -> Verdict {
    let checkpoint = files.and_then(|files| block_on(Checkpoint::open(files.sources.clone(), files.shards.as_ref())).ok());
    let index = checkpoint.as_ref().map(|checkpoint| &checkpoint.index);
    examine(error, files.map(|files| Files { texts: &files.texts, index }))
}
