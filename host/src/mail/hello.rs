//! The name that the worker gives of itself in EHLO. Large relays refuse names
//! without a dot and address literals, and a container's host name has no dot.

use lettre::transport::smtp::extension::ClientId;

/// Ends of names that mean nothing outside of their own network.
const INTERNAL: [&str; 4] = ["internal", "local", "localdomain", "localhost"];

/// The setting; else the host's name if it is fully qualified; else the domain of
/// the default sender, which relays can look up.
pub(super) fn hello_name(setting: Option<&str>, host: &str, sender_domain: &str) -> ClientId {
    let name = match setting {
        Some(name) => name,
        None => [host, sender_domain].into_iter().find(|name| is_qualified(name)).unwrap_or(sender_domain),
    };
    ClientId::Domain(name.to_owned())
}

/// Empty where the system does not tell it.
pub(super) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_ascii_lowercase()
}

fn is_qualified(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let Some((_, last)) = name.rsplit_once('.') else { return false };
    name.len() <= 253
        && name.split('.').all(is_label)
        && last.bytes().any(|byte| byte.is_ascii_alphabetic())
        && !INTERNAL.contains(&last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_setting_or_fully_qualified() {
        for (setting, host, name) in [
            (Some("worker.example"), "mx.other.example", "worker.example"),
            (None, "mx1.other.example", "mx1.other.example"),
            (None, "4f1c2a9b7d3e", "shop.example"),
            (None, "", "shop.example"),
            (None, "localhost.localdomain", "shop.example"),
            (None, "pod-1.ns.svc.cluster.local", "shop.example"),
            (None, "ip-10-0-0-1.ec2.internal", "shop.example"),
            (None, "10.0.0.1", "shop.example"),
            (None, "under_score.example", "shop.example"),
            (None, "-.example", "shop.example"),
        ] {
            assert_eq!(hello_name(setting, host, "shop.example").to_string(), name, "{setting:?} {host}");
        }
        assert_eq!(hello_name(None, "4f1c", "localhost").to_string(), "localhost");
    }
}
