//! Variables of the environment that look like settings and are none.

use super::secrets::VARIABLE as SECRET;
use std::collections::BTreeSet;

const PREFIX: &str = "GATEWAY_";

/// What is to be said of each; `known` are all that any command knows.
pub fn unknown_variables(known: &BTreeSet<String>) -> Vec<String> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    told(names.collect(), known)
}

fn told(names: BTreeSet<String>, known: &BTreeSet<String>) -> Vec<String> {
    let is_unknown = |name: &String| {
        name.starts_with(PREFIX) && !name.starts_with(SECRET) && !known.contains(name) && !is_of_kubernetes(name)
    };
    names.into_iter().filter(is_unknown).map(|name| tell(&name, known)).collect()
}

fn tell(name: &str, known: &BTreeSet<String>) -> String {
    let likest =
        known.iter().max_by(|one, other| strsim::jaro_winkler(name, one).total_cmp(&strsim::jaro_winkler(name, other)));
    match likest {
        Some(likest) => format!("{name} is no setting, and is ignored; the likest is {likest}"),
        None => format!("{name} is no setting, and is ignored"),
    }
}

/// For a service called `gateway` or `gateway-...` it sets `GATEWAY_PORT` and
/// the like for every container beside it.
fn is_of_kubernetes(name: &str) -> bool {
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let of_port = |rest: &str| {
        let (number, kind) = rest.split_once('_').unwrap_or((rest, ""));
        is_digits(number) && ["TCP", "UDP", "SCTP"].iter().any(|one| kind.starts_with(one))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_PORT")
        || name.contains("_SERVICE_PORT")
        || name.split_once("_PORT_").is_some_and(|(_, rest)| of_port(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_told_with_the_likest_and_what_others_set_is_not() {
        let known = ["GATEWAY_LISTEN", "GATEWAY_QUEUE_LEASE", "GATEWAY_QUEUE_GROUP"].map(str::to_owned).into();
        let told = |name: &str| told([name.to_owned()].into(), &known);
        assert_eq!(
            told("GATEWAY_QUEUE_LEESE"),
            ["GATEWAY_QUEUE_LEESE is no setting, and is ignored; the likest is GATEWAY_QUEUE_LEASE"]
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
            assert!(told(fine).is_empty(), "{fine}");
        }
    }
}
