//! Opens a topic: finds out what its keys are, and creates the missing groups.

use super::handle::TopicHandle;
use super::state::{TopicKeys, TopicKind};
use crate::queue::error::QueueError;
use crate::queue::keyspace::StreamKind;
use crate::queue::lua::scripts;

/// Afterwards the group exists in each key that is a stream.
pub async fn open(handle: &TopicHandle) -> Result<TopicKeys, QueueError> {
    let keys = handle.keys();
    let mut script = scripts::OPEN.prepare_invoke();
    script.key(&[&keys.main, &keys.state, &keys.high, &keys.work, &keys.low][..]).arg(handle.group());
    type Reply = (String, bool, Vec<i8>, Vec<usize>);
    let (kind, is_paused, states, others): Reply = script.invoke_async(&mut handle.shared()).await?;
    for (stream, others) in StreamKind::ALL.into_iter().zip(others) {
        handle.set_other_groups(stream, others);
    }
    let kind = match kind.as_str() {
        "none" => TopicKind::Absent,
        "stream" => TopicKind::Stream,
        "list" => TopicKind::List,
        _ => TopicKind::Other(kind),
    };
    let with_state = |wanted| {
        let streams = StreamKind::ALL.into_iter().zip(&states);
        streams.filter(move |(_, state)| **state == wanted).map(|(stream, _)| stream)
    };
    Ok(TopicKeys { kind, is_paused, streams: with_state(1).collect(), absent: with_state(0).collect() })
}
