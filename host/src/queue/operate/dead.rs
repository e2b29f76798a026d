//! Dead letters: ours, and legacy ones, which a cluster stores in another slot.
//! They are read in batches, and each change of one is one script, so an
//! interrupted command may be repeated.

mod letter;
mod letters;
mod purge;
mod replay;

pub use letter::{DeadLetter, DeadLetterEntry, DeadLetterId, Origin};
pub use letters::{DeadLetterPages, DeadLetters, Order};
pub use purge::DeadLetterPurge;
pub use replay::{Replay, Replayed};
