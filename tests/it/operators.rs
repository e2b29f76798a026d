//! What operators do to a Redis, and what they get wrong.
