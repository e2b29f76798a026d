//! The names of the settings that came from the command line. Clap does not
//! distinguish flags from environment variables in the parsed values, but where
//! two settings name the same thing, a flag has precedence.

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use std::collections::BTreeSet;

/// The field names of the settings that flags set. It must be the first field
/// of the struct that it is flattened into, because clap removes each argument
/// from the matches as it reads the field.
#[derive(Debug, Clone, Default)]
pub struct FromCommandLine(BTreeSet<String>);

impl FromCommandLine {
    pub(super) fn contains(&self, field: &str) -> bool {
        self.0.contains(field)
    }

    #[cfg(test)]
    pub(super) fn of(fields: &[&str]) -> Self {
        Self(fields.iter().map(ToString::to_string).collect())
    }
}

impl FromArgMatches for FromCommandLine {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let is_flag = |id: &&clap::Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
        Ok(Self(matches.ids().filter(is_flag).map(ToString::to_string).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for FromCommandLine {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}
