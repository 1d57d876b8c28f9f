//! What every verb has at hand.

use std::path::Path;

use config::{ConfigError, Layers, Settings, resolve_layers};
use jobs::spool::Spool;

use crate::args::Global;
use crate::error::Error;

/// The settings of this call.
#[derive(Debug, Default)]
pub struct Context {
    /// As they are resolved for the command line: no container's annotations are among them.
    pub settings: Settings,
    /// Print one JSON document.
    pub json: bool,
    /// What is wrong with the configuration. The settings are defaults then, and only `check` goes on.
    pub problem: Option<ConfigError>,
}

impl Context {
    /// Reads the configuration.
    pub fn read(global: &Global) -> Self {
        let resolved =
            Layers::of_this_process(global.config_dir.as_deref()).and_then(|layers| resolve_layers(&layers));
        let (settings, problem) = match resolved {
            Ok(settings) => (settings, None),
            Err(problem) => (Settings::default(), Some(problem)),
        };
        Self {
            settings,
            json: global.json,
            problem,
        }
    }

    /// The registry's database.
    ///
    /// # Errors
    /// The registry is switched off.
    pub fn database(&self) -> Result<&Path, Error> {
        self.settings.db.path.as_deref().ok_or_else(|| {
            Error::unsupported("there is no registry of jobs: db.path is empty")
                .hint("set db.path in the configuration, or remove the line: it has a default")
        })
    }

    /// Where shims publish their jobs.
    ///
    /// # Errors
    /// As [`Context::database`].
    pub fn spool(&self) -> Result<Spool, Error> {
        Ok(Spool::live(self.database()?))
    }

    /// Where checkpoints go that are not said to go elsewhere.
    pub fn checkpoint_dir(&self) -> &Path {
        &self.settings.checkpoint.dir
    }

    /// Nobody chose that directory, so nobody made it either.
    pub fn checkpoint_dir_is_default(&self) -> bool {
        !self.settings.sources.contains_key("checkpoint.dir")
    }
}
