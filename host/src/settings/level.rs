//! Which settings were typed on the command line. Clap hands out what it found
//! there and in the environment alike, and where two settings name the same
//! thing, the higher level has the word.

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use std::collections::BTreeSet;

/// By the names of their fields. To be flattened into arguments as the first
/// of them: those before it have been taken out already.
#[derive(Debug, Clone, Default)]
pub struct OnLine(BTreeSet<String>);

impl OnLine {
    pub(super) fn has(&self, field: &str) -> bool {
        self.0.contains(field)
    }

    #[cfg(test)]
    pub(super) fn of(fields: &[&str]) -> Self {
        Self(fields.iter().map(ToString::to_string).collect())
    }
}

impl FromArgMatches for OnLine {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let is_typed = |id: &&clap::Id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine);
        Ok(Self(matches.ids().filter(is_typed).map(ToString::to_string).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for OnLine {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}
