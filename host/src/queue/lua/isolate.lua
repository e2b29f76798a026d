-- Records that a message is about to run in isolation.
-- KEYS 1: stream   2: isolated
-- ARGV 1: group   2: our consumer   3: the entry's id   4: its field in isolated
--   5: how long isolated is stored, in seconds, if no worker deletes the record
-- Returns how many workers in a row have recorded it, including this one.
-- Afterwards its lease is renewed, if it is ours. May be sent twice: a worker that
-- records it again was not lost, and is counted once.
--
-- The renewal comes first, because Redis never refuses it at maxmemory, and after
-- one write a script may write on.
local row = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
if row and row[2] == ARGV[2] then
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'JUSTID')
end
local by = ARGV[4] .. ':by'
local is_same_worker = redis.call('HGET', KEYS[2], by) == ARGV[2]
local count = redis.call('HINCRBY', KEYS[2], ARGV[4], is_same_worker and 0 or 1)
redis.call('HSET', KEYS[2], by, ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[5])
return count
