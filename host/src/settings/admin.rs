//! Authorisation of changes over HTTP.

use super::set;
use crate::capability::Secret;
use serde::Deserialize;

/// A shorter token could be guessed by brute force.
const TOKEN_BYTES_MIN: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AdminSettings {
    /// The bearer token that authorises changes. None forbids all changes.
    pub token: Option<Secret>,
    /// Whether programs on this machine may make changes where no token is set,
    /// for `dev`.
    pub trusts_loopback: bool,
}

#[derive(Debug, Clone, Default, clap::Args)]
pub struct RawAdmin {
    /// Bearer token for changes over HTTP; set it in the environment, since other users can see flags [default: no changes]
    #[arg(long, env = "GATEWAY_ADMIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub admin_token: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileAdmin {
    token: Option<String>,
}

impl RawAdmin {
    pub(super) fn or_file(self, file: FileAdmin) -> Self {
        Self { admin_token: set(&self.admin_token).or(file.token) }
    }

    pub fn check(&self, errors: &mut Vec<String>) -> AdminSettings {
        let token = set(&self.admin_token).map(|token| token.trim().to_owned());
        if let Some(token) = &token {
            if token.len() < TOKEN_BYTES_MIN {
                errors
                    .push(format!("admin.token: got {} characters, allowed: at least {TOKEN_BYTES_MIN}", token.len()));
            }
            if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                errors.push("admin.token: allowed: ASCII letters, digits and punctuation".to_owned());
            }
        }
        AdminSettings { token: token.map(Secret::new), trusts_loopback: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_a_minimum_length_and_only_characters_that_a_header_can_carry() {
        for (token, is_good) in
            [("a".repeat(15), false), ("a".repeat(16), true), (format!("{} b", "a".repeat(16)), false)]
        {
            let mut errors = Vec::new();
            RawAdmin { admin_token: Some(token.clone()) }.check(&mut errors);
            assert_eq!(errors.is_empty(), is_good, "{token}");
            assert!(!errors.iter().any(|error| error.contains(&token)), "{errors:?}");
        }
        let mut errors = Vec::new();
        assert_eq!(RawAdmin { admin_token: Some(" ".to_owned()) }.check(&mut errors), AdminSettings::default());
        assert!(errors.is_empty());
    }
}
