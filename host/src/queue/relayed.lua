-- Takes follow-ups off the outbox that have reached their topics.
-- KEYS 1: out
-- ARGV 1: group   2..: ids
-- Returns how many. May be sent twice.
local ids = {}
for i = 2, #ARGV do ids[#ids + 1] = ARGV[i] end
redis.call('XACK', KEYS[1], ARGV[1], unpack(ids))
return redis.call('XDEL', KEYS[1], unpack(ids))
