//! Where each setting came from. Clap does not distinguish flags from environment
//! variables in the parsed values, but where two settings name the same thing the
//! stronger source wins, and an error names what has to be changed.

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use std::collections::BTreeMap;

/// The sources, the strongest last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    File,
    Environment,
    CommandLine,
}

/// The sources of the fields that flags and variables set; all others are from the
/// file. It must be the first field of the struct that it is flattened into, because
/// clap removes each argument from the matches as it reads the field.
#[derive(Debug, Clone, Default)]
pub struct Sources(BTreeMap<String, Source>);

impl Sources {
    pub(super) fn of(&self, field: &str) -> Source {
        self.0.get(field).copied().unwrap_or(Source::File)
    }

    pub(super) fn forget(&mut self, field: &str) {
        self.0.remove(field);
    }

    #[cfg(test)]
    pub(super) fn from(source: Source, fields: &[&str]) -> Self {
        Self(fields.iter().map(|field| ((*field).to_owned(), source)).collect())
    }
}

impl FromArgMatches for Sources {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        // An empty value counts as unset, so it hides no weaker source.
        let is_set = |id: &str| {
            let mut values = matches.try_get_raw(id).ok().flatten().into_iter().flatten();
            values.any(|value| !value.to_string_lossy().trim().is_empty())
        };
        let source = |id: &clap::Id| {
            let source = match matches.value_source(id.as_str())? {
                ValueSource::CommandLine => Source::CommandLine,
                ValueSource::EnvVariable => Source::Environment,
                _ => return None,
            };
            is_set(id.as_str()).then(|| (id.to_string(), source))
        };
        Ok(Self(matches.ids().filter_map(source).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Sources {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}
