-- Settles finished messages without follow-ups. This is the usual case, so many
-- messages share one acknowledgement.
-- KEYS 1: stream   2: state   3..: the markers of their deduplication keys
-- ARGV 1: group   2: 1 to delete the entries, 0 where another group reads the
--   stream too   3: how long the markers last, in ms   4: the counter's name
--   5..: ids
-- Returns 1. May be sent twice. Counter and markers come last: at maxmemory they
-- may be refused, and the messages have to be settled all the same.
local count = redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 5))
if ARGV[2] == '1' then redis.call('XDEL', KEYS[1], unpack(ARGV, 5)) end
for i = 3, #KEYS do redis.pcall('SET', KEYS[i], '1', 'PX', ARGV[3]) end
redis.pcall('HINCRBY', KEYS[2], ARGV[4], count)
return 1
