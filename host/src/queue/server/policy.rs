//! Checks whether the servers are configured so that a queue is safe on them.

use super::connection::Connection;

/// A setting of a server that is unsuitable for queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyProblem {
    pub server: String,
    pub text: String,
}

/// What is unsuitable in the configuration of each server.
pub async fn check_policy(connection: &Connection) -> Vec<PolicyProblem> {
    let Ok(masters) = connection.masters().await else { return Vec::new() };
    let mut problems = Vec::new();
    for mut master in masters {
        let info = redis::cmd("INFO").query_async::<String>(&mut master.connection).await;
        // An ACL may forbid INFO; then the policy can't be checked.
        let Ok(info) = info else { continue };
        let value = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        if let Some(policy) = value("maxmemory_policy").filter(|policy| *policy != "noeviction") {
            problems.push(PolicyProblem {
                server: master.name.clone(),
                text: format!(
                    "maxmemory-policy is {policy}: Redis may evict whole queues when its memory is full; set it to noeviction"
                ),
            });
        }
        if value("cluster_enabled") == Some("1") && !connection.is_cluster() {
            let text = "the server is part of a Redis Cluster, and only the topics whose slots it owns work; write \
                        redis+cluster:// (or rediss+cluster://) in redis.url";
            problems.push(PolicyProblem { server: master.name.clone(), text: text.to_owned() });
        }
    }
    problems
}
