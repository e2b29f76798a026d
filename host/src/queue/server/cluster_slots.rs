//! Which master of a cluster owns which hash slots.

use super::servers::{Node, Servers};
use super::shared::Shared;
use crate::queue::error::QueueError;
use redis::Value;
use redis::cluster_routing::Slot;

/// A range of slots and the address of their master.
struct Range {
    first: u16,
    last: u16,
    host: Option<String>,
    port: u16,
}

pub(crate) async fn owner(servers: &Servers, key: &str, shared: &mut Shared) -> Result<Node, QueueError> {
    let slot = Slot::for_key(key);
    let ranges = ranges(shared).await?;
    let owner = ranges.iter().find(|range| (range.first..=range.last).any(|number| Slot::new(number) == Some(slot)));
    let owner = owner.ok_or_else(|| {
        QueueError::Away(format!("Redis can't serve now: no server of the cluster owns the slot of {key}"))
    })?;
    Ok(servers.node(owner.host.as_deref(), owner.port))
}

pub(crate) async fn masters(servers: &Servers, shared: &mut Shared) -> Result<Vec<Node>, QueueError> {
    let mut nodes: Vec<Node> = Vec::new();
    for range in ranges(shared).await? {
        let node = servers.node(range.host.as_deref(), range.port);
        if nodes.iter().all(|known| known.name != node.name) {
            nodes.push(node);
        }
    }
    Ok(nodes)
}

async fn ranges(shared: &mut Shared) -> Result<Vec<Range>, QueueError> {
    let list: Vec<Value> = redis::cmd("CLUSTER").arg("SLOTS").query_async(shared).await?;
    Ok(list.iter().filter_map(range).collect())
}

/// `[first, last, [host, port, ...] of the master, replicas ...]`
fn range(value: &Value) -> Option<Range> {
    let Value::Array(parts) = value else { return None };
    let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &parts[..] else { return None };
    let [host, Value::Int(port), ..] = &master[..] else { return None };
    // A node that does not know its own host reports one of these instead.
    let host = match host {
        Value::BulkString(host) => {
            String::from_utf8(host.clone()).ok().filter(|host| !matches!(host.as_str(), "" | "?" | "0.0.0.0" | "::"))
        }
        _ => None,
    };
    Some(Range {
        first: (*first).try_into().ok()?,
        last: (*last).try_into().ok()?,
        host,
        port: (*port).try_into().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_may_have_no_host() {
        let node = |host: Value| Value::Array(vec![host, Value::Int(7001), Value::BulkString(b"id".to_vec())]);
        for (host, expected) in [
            (Value::BulkString(b"10.0.0.1".to_vec()), Some("10.0.0.1")),
            (Value::BulkString(b"".to_vec()), None),
            (Value::BulkString(b"?".to_vec()), None),
            (Value::Nil, None),
        ] {
            let range = range(&Value::Array(vec![Value::Int(5), Value::Int(9), node(host)])).unwrap();
            assert_eq!((range.first, range.last, range.port, range.host.as_deref()), (5, 9, 7001, expected));
        }
    }
}
