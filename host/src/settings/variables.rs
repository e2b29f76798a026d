//! Environment variables that look like settings but are not.

use super::secrets::VARIABLE as SECRET;
use crate::events::{SERVICE_VARIABLE, UNKNOWN_SETTING};
use std::collections::BTreeSet;

const PREFIX: &str = "GATEWAY_";

/// The variables that are settings, and that Kubernetes sets in every container of the
/// namespace of a Service with such a name.
const SERVICES: [(&str, &str); 2] = [("APP_PORT", "app"), ("REDIS_PORT", "redis")];

/// What to log of each variable that Kubernetes has set and that is no setting.
pub fn service_variables() -> Vec<String> {
    let found = SERVICES.into_iter().filter_map(|(name, service)| {
        let value = std::env::var_os(name)?.into_string().ok().filter(|value| is_service_address(value))?;
        Some(format!(
            "{SERVICE_VARIABLE}: {name}={} is what Kubernetes sets for a Service called \"{service}\"",
            value.trim()
        ))
    });
    found.collect()
}

/// Whether a port is an address like `tcp://10.0.0.1:6379`.
pub(super) fn is_service_address(value: &str) -> bool {
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.trim_start().starts_with(scheme))
}

/// A warning for each unknown variable of the environment. `known` has the
/// variables of every command.
pub fn unknown_variables(known: &BTreeSet<String>) -> Vec<String> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    warnings(names.collect(), known)
}

fn warnings(names: BTreeSet<String>, known: &BTreeSet<String>) -> Vec<String> {
    let is_unknown = |name: &String| {
        name.starts_with(PREFIX) && !name.starts_with(SECRET) && !known.contains(name) && !is_from_kubernetes(name)
    };
    names.into_iter().filter(is_unknown).map(|name| warning(&name, known)).collect()
}

fn warning(name: &str, known: &BTreeSet<String>) -> String {
    let suggestion =
        known.iter().max_by(|one, other| strsim::jaro_winkler(name, one).total_cmp(&strsim::jaro_winkler(name, other)));
    match suggestion {
        Some(suggestion) => format!("{UNKNOWN_SETTING} {name} (ignored); did you mean {suggestion}?"),
        None => format!("{UNKNOWN_SETTING} {name} (ignored)"),
    }
}

/// For a service called `gateway` or `gateway-...` Kubernetes sets variables
/// like `GATEWAY_PORT` in every container of the namespace.
fn is_from_kubernetes(name: &str) -> bool {
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_port = |suffix: &str| {
        let (number, protocol) = suffix.split_once('_').unwrap_or((suffix, ""));
        is_digits(number) && ["TCP", "UDP", "SCTP"].iter().any(|name| protocol.starts_with(name))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_PORT")
        || name.contains("_SERVICE_PORT")
        || name.split_once("_PORT_").is_some_and(|(_, suffix)| is_port(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_variable_is_reported_with_a_suggestion_and_foreign_ones_are_not() {
        let known = ["GATEWAY_LISTEN", "GATEWAY_QUEUE_LEASE", "GATEWAY_QUEUE_GROUP"].map(str::to_owned).into();
        let warnings = |name: &str| warnings([name.to_owned()].into(), &known);
        assert_eq!(
            warnings("GATEWAY_QUEUE_LEESE"),
            ["unknown setting GATEWAY_QUEUE_LEESE (ignored); did you mean GATEWAY_QUEUE_LEASE?"]
        );
        for fine in [
            "GATEWAY_LISTEN",
            "GATEWAY_SECRET_ANY",
            "PATH",
            "MY_GATEWAY_X",
            "GATEWAY_SERVICE_HOST",
            "GATEWAY_PORT",
            "GATEWAY_WORKER_SERVICE_PORT_HTTP",
            "GATEWAY_WORKER_PORT_8084_TCP",
            "GATEWAY_WORKER_PORT_8084_TCP_ADDR",
        ] {
            assert!(warnings(fine).is_empty(), "{fine}");
        }
    }
}
