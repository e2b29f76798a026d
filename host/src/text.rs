//! Rules for texts that are shown to people: what may stand in a log line, and
//! how much of it.
