//! Who may change something over HTTP.

use super::set;
use crate::capability::Secret;
use serde::Deserialize;

/// A shorter token could be guessed.
const TOKEN_BYTES_MIN: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AdminSettings {
    /// Who knows it may change things. Without one nobody may.
    pub token: Option<Secret>,
    /// Without a token, whoever is on this machine may: for `dev`.
    pub trusts_this_machine: bool,
}

#[derive(Debug, Clone, Default, clap::Args)]
pub struct TypedAdmin {
    /// Who sends this may change things over HTTP; better given by the environment [default: nobody may]
    #[arg(long, env = "GATEWAY_ADMIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub admin_token: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct FileAdmin {
    token: Option<String>,
}

impl TypedAdmin {
    pub(super) fn or_file(self, file: FileAdmin) -> Self {
        Self { admin_token: set(&self.admin_token).or(file.token) }
    }

    pub fn check(&self, faults: &mut Vec<String>) -> AdminSettings {
        let token = set(&self.admin_token).map(|token| token.trim().to_owned());
        if let Some(token) = &token {
            if token.len() < TOKEN_BYTES_MIN {
                faults.push(format!(
                    "admin.token: it has {} characters, at least {TOKEN_BYTES_MIN} are needed",
                    token.len()
                ));
            }
            if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                faults.push("admin.token: allowed are letters, digits and punctuation of ASCII".to_owned());
            }
        }
        AdminSettings { token: token.map(Secret::new), trusts_this_machine: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_a_length_and_characters_that_a_header_can_carry() {
        for (token, is_good) in
            [("a".repeat(15), false), ("a".repeat(16), true), (format!("{} b", "a".repeat(16)), false)]
        {
            let mut faults = Vec::new();
            TypedAdmin { admin_token: Some(token.clone()) }.check(&mut faults);
            assert_eq!(faults.is_empty(), is_good, "{token}");
            assert!(!faults.iter().any(|fault| fault.contains(&token)), "{faults:?}");
        }
        let mut faults = Vec::new();
        assert_eq!(TypedAdmin { admin_token: Some(" ".to_owned()) }.check(&mut faults), AdminSettings::default());
        assert!(faults.is_empty());
    }
}
