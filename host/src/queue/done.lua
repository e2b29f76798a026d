-- Settles messages that are done and have nothing to send on: the usual case,
-- as one acknowledgement for many.
-- KEYS 1: stream   2: state
-- ARGV 1: group   2: 1 to delete, 0 where another group reads the stream too
--   3..: ids
-- Returns 1. May be sent twice. The counter comes last: it may be refused at
-- maxmemory, and then the messages are settled all the same.
local ids = {}
for i = 3, #ARGV do ids[#ids + 1] = ARGV[i] end
local count = redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
if ARGV[2] == '1' then redis.call('XDEL', KEYS[1], unpack(ids)) end
redis.pcall('HINCRBY', KEYS[2], 'done', count)
return 1
