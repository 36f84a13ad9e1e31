//! What applies to the files of a mount, or would, as far as that is to be seen from here.

use std::path::{Path, PathBuf};

use super::args::MountArgs;
use super::exit::{Exit, Failure};
use super::options::MountOptions;
use super::plan::overrides;
use super::served::{self, Served};
use crate::config::Overrides;
use crate::rules::file::{Configuration, ConfigurationError};
use crate::rules::find::find;

/// A configuration, and where it comes from.
pub(super) struct Configured {
    pub(super) file: Configuration,
    /// `None`: there is none, everything is built in.
    pub(super) path: Option<PathBuf>,
    /// Options of the daemon's command line, which win.
    pub(super) overrides: Overrides,
}

impl Configured {
    /// That of the file that was named; else of the daemon that serves BACKING; else of the one that
    /// would be started there.
    ///
    /// # Errors
    /// [`Exit::Configuration`] for a file that can't be used.
    pub(super) fn of(served: &Served, named: Option<&Path>) -> Result<Self, Failure> {
        let daemon = served.daemon.as_ref();
        let args = daemon.and_then(|daemon| served::mount_args(daemon.pid));
        let args = args.as_ref().filter(|_| named.is_none());
        let (theirs, overrides) = match args {
            Some(args) => said(args)?,
            None => (None, Overrides::default()),
        };
        let named = named.or(theirs.as_deref());
        let (file, path) = find(named, &served.root, &served.backing).map_err(unusable)?;
        Ok(Self {
            file,
            path,
            overrides,
        })
    }
}

/// The configuration file that a daemon was given, and the options beside it.
fn said(args: &MountArgs) -> Result<(Option<PathBuf>, Overrides), Failure> {
    let options = MountOptions::parse(&args.options)?;
    let overrides = overrides(args, &options);
    Ok((args.config.clone().or(options.config), overrides))
}

fn unusable(error: ConfigurationError) -> Failure {
    Failure::new(Exit::Configuration, error.to_string())
}
