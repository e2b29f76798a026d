-- Settles messages that are done and have nothing to send on: the usual case,
-- as one acknowledgement for many.
-- KEYS 1: stream   2: state   3..: markers of what has finished
-- ARGV 1: group   2: 1 to delete, 0 where another group reads the stream too
--   3: how long the markers last, in ms   4: the counter's name   5..: ids
-- Returns 1. May be sent twice. Counter and markers come last: they may be
-- refused at maxmemory, and then the messages are settled all the same.
local count = redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, 5))
if ARGV[2] == '1' then redis.call('XDEL', KEYS[1], unpack(ARGV, 5)) end
for i = 3, #KEYS do redis.pcall('SET', KEYS[i], '1', 'PX', ARGV[3]) end
redis.pcall('HINCRBY', KEYS[2], ARGV[4], count)
return 1
