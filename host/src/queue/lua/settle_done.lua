-- Settles finished messages without follow-ups and claims. This is the usual case,
-- so many messages share one acknowledgement.
-- KEYS 1: stream   2: state   3: deleted
-- ARGV 1: group   2: our consumer   3: 1 to delete the entries, 0 where another
--   group reads the stream too   4: the stream's class in tokens   5: the counter's
--   name   6..: ids
-- Returns 1. May be sent twice. The counter comes last: at maxmemory it may be
-- refused, and the messages have to be settled all the same.
local at = {
  stream = KEYS[1], state = KEYS[2], deleted = KEYS[3],
  group = ARGV[1], consumer = ARGV[2], deletes = ARGV[3], class = ARGV[4],
}
redis.pcall('HINCRBY', KEYS[2], ARGV[5], acknowledge(at, { unpack(ARGV, 6) }))
return 1
